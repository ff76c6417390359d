"""The physics verifier of a data set, fitted to its real clips, and the tracked clips that it scores."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from selfflow.data.built import BuiltDataset
from selfflow.data.collisions import Collisions
from selfflow.data.dataset import Dataset
from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.evaluation.physics.materials import MaterialClassifiers, fit_material_classifiers
from selfflow.evaluation.physics.verify import ClipAnalysis, PhysicsReport, score_clips, track_clip
from selfflow.progress import progress

# The material classifiers are fitted to at most this number of clips, and to at most half of the training split: the
# other half is for evaluation.
_MAX_FITTED = 1024


class PhysicsVerifier(NamedTuple):
    """The checks of a data set.

    Attributes:
      settings: settings of the data set.
      classifiers: classifiers of the material, fitted to real clips; None leaves out the checks that need them.
    """

    settings: Collisions
    classifiers: MaterialClassifiers | None


def physics_verifier(data: Dataset, modalities: tuple[str, ...], built: BuiltDataset | None) -> PhysicsVerifier | None:
    """Returns the physics verifier of a data set. Fitting its classifiers takes about a minute.

    Args:
      data: settings of the data set.
      modalities: modalities of the clips.
      built: the data set with its raw records, or None.

    Returns:
      The verifier; None if the data set has none, if the clips have no video, or if there are no raw records.

    Raises:
      UserError: if the data set names an unknown verifier.
    """
    if data.verifier not in ("", "physics"):
        raise UserError(f"data set {data.kind}: verifier is {data.verifier!r}: give 'physics' or '' for none")
    if not data.verifier or built is None or "video" not in modalities:
        return None
    if "audio" not in modalities or data.materials != "clip":
        return PhysicsVerifier(data, None)
    records = list(readable_records(built.records("train"), fitted_clips(built)))
    if len({int(record["material"]) for record in records}) < 2:
        return PhysicsVerifier(data, None)
    return PhysicsVerifier(data, fit_classifiers(records, data))


def fitted_clips(built: BuiltDataset | None) -> int:
    """Number of the first training clips that classifiers are fitted to."""
    return 0 if built is None else min(_MAX_FITTED, len(built.records("train")) // 2)


def fit_classifiers(records: Iterable[dict[str, Any]], settings: Collisions) -> MaterialClassifiers:
    """Fits the material classifiers to records of a split; 1000 clips take about 15 s."""
    audio, events, materials = [], [], []
    for record in progress(list(records), "fitting material classifiers", unit="clips"):
        audio.append(record["audio"])
        events.append(track_clip(record["video"], settings).events)
        materials.append(record["material"])
    return fit_material_classifiers(audio, events, materials, settings)


def readable_records(records: Sequence[dict[str, Any]], count: int | None = None) -> Iterator[dict[str, Any]]:
    """Yields the readable records among the first `count`, by default among all."""
    for i in range(len(records) if count is None else min(count, len(records))):
        try:
            yield records[i]
        except BadRecord:
            continue


class TrackedClips:
    """Tracked clips of samples, with their audio: the input of the physics checks.

    Args:
      verifier: verifier of their data set.

    Attributes:
      tracked: tracking results, one per clip.
      audio: int16 [S] per clip; empty for clips without audio.
    """

    def __init__(self, verifier: PhysicsVerifier):
        self.verifier = verifier
        self.tracked: list[ClipAnalysis] = []
        self.audio: list[np.ndarray] = []
        self._report: PhysicsReport | None = None

    def add(self, videos: np.ndarray, audio: np.ndarray | None) -> None:
        """Tracks uint8 videos [B, T, H, W, 3] and keeps their int16 audio [B, S]."""
        self.tracked += [track_clip(video, self.verifier.settings) for video in videos]
        if audio is not None:
            self.audio += [clip.copy() for clip in audio]
        self._report = None

    def report(self) -> PhysicsReport:
        """Computes the results of the checks on all clips."""
        if self._report is None:
            settings, classifiers = self.verifier
            self._report = score_clips(self.tracked, self.audio or None, settings, classifiers)
        return self._report
