"""A stream of samples, looked at from all sides, in memory that does not grow with their number."""

from typing import NamedTuple

import numpy as np

from selfflow.data.collisions import Collisions
from selfflow.evaluation.accumulate import Accumulator
from selfflow.evaluation.av_sync import synchrony
from selfflow.evaluation.extractors import Extractor
from selfflow.evaluation.model_features import OwnLayer
from selfflow.evaluation.physics.corruptions import random_partners
from selfflow.evaluation.physics.materials import MaterialClassifiers
from selfflow.evaluation.physics.verify import ClipAnalysis, PhysicsReport, measure_av_sync, score_clips, track_clip
from selfflow.sampling.generate import check_finite

# Clips whose tracks and sounds are kept for the checks, which look at many of them together.
WATCHED = 1024


class PhysicsVerifier(NamedTuple):
    """Collisions, which physics can judge: settings of the data set, and what was fitted to real clips."""

    settings: Collisions
    judges: MaterialClassifiers | None


class EvaluationSetup(NamedTuple):
    """What samples of a component are looked at with.

    Attributes:
      rates: frames or samples a second of the media, by modality; pictures have 0.
      extractors: each looks at the medium that it names.
      layer: the run's own features, of latents.
      world: of the verifier, for sets with video of Collisions.
      watched: how many clips it and synchrony look at, the first ones.
    """

    rates: dict[str, float]
    extractors: tuple[Extractor, ...] = ()
    layer: OwnLayer | None = None
    world: PhysicsVerifier | None = None
    watched: int = WATCHED


class SampleAccumulator:
    """What is known of a stream of samples.

    Args:
      looks: what they are looked at with.
      n: of the Frechet distances.

    Attributes:
      features: by the name of their Frechet distance and what was looked at, such as "FD-EffNet video".
      seen, sounds: the watched clips, as the verifier keeps them.
      in_step: synchrony of each watched clip with a film and a sound; nan where one of them does not change.
      count: samples.
    """

    def __init__(self, looks: EvaluationSetup, n: int):
        self.looks, self.count = looks, 0
        every = [*looks.extractors, *([looks.layer] if looks.layer else [])]
        self.features = {f"{e.distance} {e.medium}": Accumulator(e, n) for e in every}
        self.seen: list[ClipAnalysis] = []
        self.sounds: list[np.ndarray] = []
        self.in_step: list[float] = []
        self._verdict: PhysicsReport | None = None

    def add(self, latents: dict[str, np.ndarray], media: dict[str, np.ndarray]) -> None:
        """Looks at a batch, as latents and as media {modality: [B, ...]}."""
        looks = self.looks
        check_finite(latents, self.count + np.arange(len(next(iter(latents.values())))))
        for extractor in looks.extractors:
            features = extractor(media[extractor.medium], looks.rates[extractor.medium])
            self.features[f"{extractor.distance} {extractor.medium}"].add(features)
        if looks.layer:
            self.features[f"{looks.layer.distance} {looks.layer.medium}"].add(looks.layer(latents))
        if (room := looks.watched - self.count) > 0:
            self._watch({m: x[:room] for m, x in media.items()})
        self.count += len(next(iter(latents.values())))
        self._verdict = None

    def _watch(self, media: dict[str, np.ndarray]) -> None:
        looks, videos, sounds = self.looks, media.get("video"), media.get("audio")
        if videos is None:
            return
        if looks.world:
            self.seen += [track_clip(video, looks.world.settings) for video in videos]
            self.sounds += [] if sounds is None else [sound.copy() for sound in sounds]
        if sounds is not None:
            self.in_step += synchrony(videos, sounds, looks.rates["video"], looks.rates["audio"]).peak.tolist()

    def verdict(self) -> PhysicsReport | None:
        """What the verifier says of the watched clips; None where it has not looked."""
        if not self.seen:
            return None
        if self._verdict is None:
            self._verdict = score_clips(self.seen, self.sounds or None, *self.looks.world)
        return self._verdict

    def swapped(self, seed: int = 0) -> "AudioMatch | None":
        """How well film and sound of a clip belong together: against another clip's sound.

        Returns:
          None without Collisions that sound, or with fewer than two clips that synchrony can be told of.
        """
        if not self.seen or not self.sounds:
            return None
        own, partners = self.verdict().scores["synchrony"], random_partners(len(self.sounds), seed)
        swap = np.array(
            [measure_av_sync(clip, self.sounds[p], self.looks.world.settings) for clip, p in zip(self.seen, partners)]
        )
        both = np.isfinite(own) & np.isfinite(swap)
        if both.sum() < 2:
            return None
        from sklearn.metrics import roc_auc_score

        truth = np.repeat([1, 0], both.sum())
        return AudioMatch(float(roc_auc_score(truth, np.concatenate([own[both], swap[both]]))), int(both.sum()))


class AudioMatch(NamedTuple):
    """The chance that the verifier's synchrony prefers a clip's own sound to a swapped one.

    Attributes:
      auc: area under the ROC curve; 0.5 for sounds that have nothing to do with their films.
      n: clips with three contacts or more.
    """

    auc: float
    n: int
