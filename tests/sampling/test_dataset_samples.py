"""Samples of a data set as files."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from selfflow.sampling.dataset_samples import write_dataset_samples


def test_actions_are_written_as_files_and_on_the_sheet(tmp_path):
    records = []
    for i in range(3):
        action = np.full((5, 2), i, np.float32)
        records.append({"id": str(i), "action": action, "present": {"action": True}})
    settings = SimpleNamespace(frames_per_second=12.5, sample_rate=0)
    built = SimpleNamespace(records=lambda split: records, settings=settings, folder=Path("toy"), name="toy")
    samples = write_dataset_samples(built, tmp_path, 2)
    assert [len(samples.records[kind]) for kind in ("action", "video", "image")] == [2, 0, 0]
    assert [file.name for file in samples.files] == ["clips.png", "action-0.npy", "action-1.npy"]
    for file, record in zip(samples.files[1:], samples.records["action"]):
        np.testing.assert_array_equal(np.load(file), record["action"])
