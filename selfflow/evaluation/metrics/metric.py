"""The protocols of metrics. To add one, write a class and add it to `METRICS`."""

from collections.abc import Mapping
from functools import cached_property
from typing import Literal, NamedTuple, Protocol

import numpy as np

from selfflow.errors import UserError
from selfflow.evaluation.accumulate import Accumulator, Statistics
from selfflow.evaluation.distances import PrecisionRecall, precision_recall
from selfflow.evaluation.physics.verifier import TrackedClips

NEIGHBOURS = 3
"""k of precision and recall."""

Better = Literal["lower", "higher"]


class Value(NamedTuple):
    """The value of a metric.

    Attributes:
      value: NaN where it is not defined.
      error: standard error; None if it is unknown.
      count: number of clips that the metric applies to; None for metrics of all samples.
    """

    value: float
    error: float | None = None
    count: int | None = None


class FeaturePair:
    """A real and a generated set in one feature space.

    Args:
      real: features of the real set, or statistics of a reference without features.
      generated: features of the generated set.

    Raises:
      UserError: fewer than two samples in a set, features of different extractors, or different n.
    """

    def __init__(self, real: Accumulator | Statistics, generated: Accumulator):
        for name, part in (("real", real), ("generated", generated)):
            if isinstance(part, Accumulator) and part.count < 2:
                raise UserError(f"{name}: {part.count} samples are too few for a distance; give more")
        if isinstance(real, Accumulator):
            if real.identity != generated.identity:
                raise UserError(
                    f"the real set has features of {real.identity}, the generated set of {generated.identity}: use the "
                    "same extractor for both"
                )
            if real.samples != generated.samples:
                raise UserError(
                    f"Frechet distances depend on the number of samples, {real.samples} real and {generated.samples} "
                    "generated: accumulate both sets for the same n"
                )
        self.real, self.generated = real, generated

    @property
    def kept(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Features of real [m, D] and generated samples [n, D]; None for statistics or too few samples."""
        if isinstance(self.real, Statistics):
            return None
        enough = min(len(self.real.kept), len(self.generated.kept)) > NEIGHBOURS
        return (self.real.kept, self.generated.kept) if enough else None

    @cached_property
    def precision_recall(self) -> PrecisionRecall | None:
        """Precision and recall with k = 3, which share most of their computation."""
        return None if self.kept is None else precision_recall(*self.kept, NEIGHBOURS)


class FeatureMetric(Protocol):
    """A distance between generated and real samples in one feature space, such as KID.

    Its key is NAME/FEATURES/MODALITY, such as `kid/LogMel/audio`; the key of its standard error is
    NAME_error/FEATURES/MODALITY.

    Attributes:
      name: beginning of its keys in JSON and `metrics.jsonl`.
      title: header of its column.
      better: whether higher or lower values are better.
      needs: input of the metric: `features`, `media` or `clips`.
      unit: unit and range of its values.
    """

    name: str
    title: str
    better: Better
    needs: Literal["features"]
    unit: str

    def compute(self, pair: FeaturePair) -> Value | None:
        """Computes the value; None if there are too few samples."""
        ...


class MediaMetric(Protocol):
    """The mean over clips of a value that is computed from the decoded media of each clip. Its key is NAME.

    Attributes: as of `FeatureMetric`.
    """

    name: str
    title: str
    better: Better
    needs: Literal["media"]
    unit: str

    def per_clip(self, media: Mapping[str, np.ndarray], rates: Mapping[str, float]) -> np.ndarray | None:
        """Computes the value of each clip.

        Args:
          media: uint8 images [B, H, W, 3], uint8 videos [B, T, H, W, 3], int16 audio [B, S], by modality.
          rates: frames or samples per second by modality; 0 for images.

        Returns:
          Float64 [B]; NaN for clips to which it does not apply. None if it does not apply to these modalities.
        """
        ...


class ClipMetric(Protocol):
    """Values that the physics verifier computes from all tracked clips. Their keys are NAME or NAME/PART.

    Attributes: as of `FeatureMetric`.
    """

    name: str
    title: str
    better: Better
    needs: Literal["clips"]
    unit: str

    def compute(self, clips: TrackedClips) -> dict[str, Value]:
        """Computes the values by key."""
        ...


Metric = FeatureMetric | MediaMetric | ClipMetric
