"""The probe table at the end of training, with the ground truth of a data set other than Collisions."""

from types import SimpleNamespace

import numpy as np
import pytest

from selfflow.data.collisions import Collisions
from selfflow.errors import UserError
from selfflow.modality import Modality
from selfflow.representation.probes.summary import SPLITS, as_text, columns_of, measures_of, summary_table
from tests.conftest import mentions

MODALITIES = {"video": Modality((2, 2, 2, 3), (1, 1, 1), 8.0), "audio": Modality((4, 3), (1,), 4.0)}


class Pendulum:
    """Ground truth of clips of a pendulum."""

    kinds = {"length": "number", "angle": "token"}
    columns = (("direction", "video"), ("length", "both"), ("angle", "video"))
    features = ("direction", "length")

    def of_clip(self, record):
        return {"direction": int(record["direction"]), "length": float(record["length"])}

    def of_tokens(self, record, grid):
        tokens = np.arange(grid[0])
        return tokens, {"angle": np.stack([tokens, tokens * record["length"]], axis=1).astype(np.float32)}


class Clips:
    """Clips whose latents contain the direction and the length."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.ids, self.labels = [f"{seed}-{i}" for i in range(24)], {}
        self._records = [{"direction": i % 2, "length": rng.uniform(1, 2)} for i in range(24)]
        values = np.array([[record["direction"], record["length"], 0] for record in self._records])
        self.latents = []
        for value in values:
            latents = {m: rng.normal(size=modality.latent) * 0.01 for m, modality in MODALITIES.items()}
            self.latents.append({m: (x + value).astype(np.float32) for m, x in latents.items()})
        self.frame_differences = self.log_mel = self.motion = values.astype(np.float32)

    def record(self, i):
        return self._records[i]


def table_of(truth):
    clips = {split: Clips(seed) for seed, split in enumerate(SPLITS)}
    dataset = SimpleNamespace(kind="pendulum", ground_truth=truth)
    return summary_table(clips, {}, MODALITIES, layers=(1,), tau=0.1, null_label=0, dataset=dataset)


def test_the_columns_of_the_table_are_those_of_the_ground_truth():
    table = table_of(Pendulum())
    assert table["chance"]["direction/video"].test == 0.5 and table["chance"]["length/both"].test == 0
    latents = table["raw latents"]
    assert set(latents) == {"direction/video", "length/both", "angle/video"}
    assert latents["direction/video"].test == 1 and latents["length/both"].test > 0.9
    assert table["true kinematics, boosted trees"].keys() == {"direction/video"}
    columns = columns_of(Pendulum())
    assert measures_of(columns) == "balanced accuracy; length and angle: R^2"
    header = as_text(table, columns).splitlines()[:2]
    assert [line.split() for line in header] == [["direction", "length", "angle"], ["video", "both", "video"]]


def test_a_column_without_a_target_is_refused():
    truth = Pendulum()
    truth.columns = (("colour", "video"),)
    with pytest.raises(UserError, match=mentions("colour pendulum.ground_truth direction length")):
        table_of(truth)


def test_the_columns_of_collisions():
    columns = columns_of(Collisions().ground_truth)
    sources = ("video", "audio", "both")
    classes = [f"{target}/{source}" for target in ("material", "shape", "count") for source in sources]
    assert [column.key for column in columns] == [*classes, "position/video", "contacts/audio"]
    assert measures_of(columns) == "balanced accuracy; position and contacts: R^2"
