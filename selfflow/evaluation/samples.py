"""Streaming accumulation of samples for all metrics, in memory independent of their number."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from selfflow.evaluation import metrics
from selfflow.evaluation.accumulate import Accumulator
from selfflow.evaluation.extractors import Extractor
from selfflow.evaluation.model_features import ModelFeatures
from selfflow.evaluation.physics.verifier import PhysicsVerifier, TrackedClips
from selfflow.sampling.generate import check_finite

# Physics checks and other metrics of single clips use at most this number: tracking is slow, and audio is kept.
MAX_CLIPS = 1024


class EvaluationSetup(NamedTuple):
    """Extractors and verifier for the metrics of a component.

    Attributes:
      rates: frames or samples per second by modality; 0 for images.
      extractors: feature extractors, each for one modality.
      model_features: features of latents by the run's own network.
      verifier: verifier of the physics of the data set.
      max_clips: number of the first clips that metrics of media and of the verifier are computed from.
    """

    rates: dict[str, float]
    extractors: tuple[Extractor, ...] = ()
    model_features: ModelFeatures | None = None
    verifier: PhysicsVerifier | None = None
    max_clips: int = MAX_CLIPS

    @property
    def feature_spaces(self) -> list[Extractor | ModelFeatures]:
        """All feature extractors, those of media first."""
        spaces: list[Extractor | ModelFeatures] = list(self.extractors)
        if self.model_features:
            spaces.append(self.model_features)
        return spaces


def space_name(extractor: Extractor | ModelFeatures) -> str:
    """Name of a feature space: its Frechet distance and its modality, such as "FD-EffNet video"."""
    return f"{extractor.distance} {extractor.medium}"


class SampleAccumulator:
    """A stream of samples, reduced to the inputs of `METRICS`.

    Args:
      setup: extractors and verifier.
      n: samples on either side of the Frechet distances.

    Attributes:
      features: features by the name of the feature space, see `space_name`.
      clips: tracked clips; None without a verifier.
      per_clip: values of each clip by the name of the metric, for metrics of media.
      count: number of samples.
    """

    def __init__(self, setup: EvaluationSetup, n: int):
        self.setup, self.count = setup, 0
        self.features = {space_name(extractor): Accumulator(extractor, n) for extractor in setup.feature_spaces}
        self.clips = TrackedClips(setup.verifier) if setup.verifier else None
        self.per_clip: dict[str, list[float]] = {}

    def add(self, latents: Mapping[str, np.ndarray], media: Mapping[str, np.ndarray]) -> None:
        """Adds a batch.

        Args:
          latents: {modality: [B, ...]}.
          media: decoded media of the same samples: uint8 images and videos, int16 audio.

        Raises:
          UserError: latents that are not finite, naming the sample.
        """
        setup, size = self.setup, batch_size(latents)
        check_finite(latents, self.count + np.arange(size))
        for extractor in setup.extractors:
            features = extractor(media[extractor.medium], setup.rates[extractor.medium])
            self.features[space_name(extractor)].add(features)
        if setup.model_features:
            self.features[space_name(setup.model_features)].add(setup.model_features(latents))
        room = setup.max_clips - self.count
        if room > 0:
            self._add_clips({m: x[:room] for m, x in media.items()})
        self.count += size

    def _add_clips(self, media: dict[str, np.ndarray]) -> None:
        """Adds decoded clips to the metrics of single clips."""
        if self.clips is not None and "video" in media:
            self.clips.add(media["video"], media.get("audio"))
        for metric in metrics.METRICS:
            if metric.needs == "media":
                values = metric.per_clip(media, self.setup.rates)
                if values is not None:
                    self.per_clip.setdefault(metric.name, []).extend(np.asarray(values, np.float64).tolist())


def batch_size(batch: Mapping[str, np.ndarray]) -> int:
    """B of a batch {modality: [B, ...]}."""
    return len(next(iter(batch.values())))
