"""One stored record as one sample of a batch: cropped, padded, drawn from its distribution, or left out."""

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.latents.features import encoder_fault, stored_as, token_features
from selfflow.latents.store import CAPTION, LatentSource
from selfflow.modality import Modality


@dataclass(frozen=True)
class Reader:
    """One record of a component as a sample of a batch; travels to worker processes."""

    source: LatentSource
    records: np.ndarray
    labels: np.ndarray
    modalities: dict[str, Modality]
    padded: tuple[str, ...]
    caption: tuple[int, int] | None
    features: dict[str, int] = field(default_factory=dict)  # channels of the features that are wanted
    delayed: dict[str, int] = field(default_factory=dict)  # latent frames

    def __call__(self, record: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """The sample of a record; without `rng` clips begin at their start and latents are their mean.

        A record that cannot be read keeps its place: it is all zeros and its weight is 0.
        """
        sample: dict[str, Any] = {"label": np.int32(self.labels[record]), "record": np.int64(record)}
        try:
            stored = self.source[record]
            latents, frames, features = self._clip(stored, self.source.shard_of(record), rng)
            sample["weight"] = np.float32(1)
        except BadRecord:
            stored = {}
            latents = {m: np.zeros(x.latent, np.float16) for m, x in self.modalities.items()}
            frames = dict.fromkeys(self.padded, np.int32(0))
            features = {m: np.zeros((self.modalities[m].tokens, e), np.float16) for m, e in self.features.items()}
            sample["weight"] = np.float32(0)
        sample["latents"] = latents
        if self.padded:
            sample["frames"] = frames
        if self.features:
            sample["features"] = features
        if self.caption:
            sample["caption"] = padded_caption(stored.get(CAPTION), *self.caption)
        return sample

    def why(self, record: int) -> tuple[str, str]:
        """(shard, reason) of a record that cannot be read."""
        try:
            self._clip(self.source[record], self.source.shard_of(record), np.random.default_rng(0))
        except BadRecord as error:
            return error.shard, error.reason
        return self.source.shard_of(record), "it can be read now"

    def _clip(
        self, stored: dict[str, np.ndarray], shard: str, rng: np.random.Generator | None
    ) -> tuple[dict[str, np.ndarray], dict[str, np.int32], dict[str, np.ndarray]]:
        latents, frames, features = {}, {}, {}
        for m, modality in self.modalities.items():
            latent = stored.get(m)
            timed = bool(modality.period)
            if latent is None or latent.ndim != len(modality.latent) or latent.shape[timed:] != modality.latent[timed:]:
                shape = None if latent is None else latent.shape
                raise BadRecord(shard, f"{m} has shape {shape}, expected {modality.latent}")
            if rng is not None and f"{m}.std" in stored:
                if stored[f"{m}.std"].shape != latent.shape:
                    raise BadRecord(shard, f"the deviation of its {m} has another shape than the mean")
                noise = rng.standard_normal(latent.shape, np.float32)
                latent = (latent + stored[f"{m}.std"] * noise).astype(np.float16)
            if not np.isfinite(latent).all():
                raise BadRecord(shard, f"the latents of its {m} are not finite")
            latents[m] = latent
            if m in self.features:
                features[m] = self._checked(stored, m, shard)
        starts = self._starts(latents, rng)
        for m, modality in self.modalities.items():
            if modality.period:
                lasts = min(len(latents[m]) - starts[m], modality.latent[0])
                if m in self.padded:
                    frames[m] = np.int32(lasts)
                elif lasts < modality.latent[0]:
                    raise BadRecord(shard, f"its {m} lasts {lasts} frames, and the index says more")
                latents[m] = self._cut(latents[m], m, starts[m])
            if m in features:
                cut = self._cut(features[m], m, starts[m]) if modality.period else features[m]
                features[m] = token_features(cut, modality)
        return latents, frames, features

    def _checked(self, stored: dict[str, np.ndarray], m: str, shard: str) -> np.ndarray:
        """The stored features of a modality."""
        modality, features = self.modalities[m], stored.get(stored_as(m))
        if fault := encoder_fault(stored, m, bool(modality.period), self.features[m]):
            raise BadRecord(shard, fault)
        if not np.isfinite(features).all():
            raise BadRecord(shard, f"{stored_as(m)} are not finite")
        return features

    def _cut(self, x: np.ndarray, m: str, start: int) -> np.ndarray:
        """The frames of a clip, as many as its latents have, late where they are delayed, then padding."""
        frames = self.modalities[m].latent[0]
        clip = x[start : start + frames]
        missing = frames - len(clip)
        if m in self.delayed:
            clip = np.roll(clip, self.delayed[m], axis=0)  # what is padded stays at the end
        return np.pad(clip, [(0, missing)] + [(0, 0)] * (clip.ndim - 1)) if missing else clip

    def _starts(self, latents: dict[str, np.ndarray], rng) -> dict[str, int]:
        """First frame of each modality of a crop: one moment for all, drawn among those that fall on whole frames.

        Where a film's first latent frame stands alone, the beginning: no other latent frame could stand there.
        """
        timed = {m: x for m, x in self.modalities.items() if x.period}
        room = {m: len(latents[m]) - x.latent[0] for m, x in timed.items()}
        alone = any(x.offset[0] < 0 for x in timed.values())
        if rng is None or alone or not any(r > 0 for r in room.values()):
            return dict.fromkeys(timed, 0)
        periods = {m: Fraction(x.period).limit_denominator(10_000) for m, x in timed.items()}
        common = _least_common_multiple(list(periods.values()))
        moments = int(min(max(room[m], 0) * periods[m] / common for m in timed))
        moment = int(rng.integers(moments + 1)) * common
        return {m: int(moment / periods[m]) for m in timed}


def _least_common_multiple(numbers: list[Fraction]) -> Fraction:
    denominator = math.lcm(*(n.denominator for n in numbers))
    return Fraction(math.lcm(*(int(n * denominator) for n in numbers)), denominator)


def padded_caption(stored: np.ndarray | None, tokens: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [l, C], or none, as [L, C] of a fixed length, and which of them are there, [L]."""
    embedding = np.zeros((tokens, width), np.float16)
    count = 0 if stored is None else min(len(stored), tokens)
    if count:
        embedding[:count] = stored[:count]
    return embedding, np.arange(tokens) < count


def labels_of(source: LatentSource, label: str, classes: int) -> np.ndarray:
    """The class label of every record, int32; -1 for none.

    Raises:
      UserError: if a label is none of the classes.
    """
    if f"label/{label}" not in source.index:
        return np.full(len(source), -1, np.int32)
    labels = source.index[f"label/{label}"].astype(np.int32)
    if labels.max() >= classes:
        raise UserError(
            f"label {label!r} goes up to {labels.max()}, so model.labels must be at least {labels.max() + 1}"
        )
    return labels
