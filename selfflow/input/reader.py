"""Conversion of stored records to samples: drawing of latents, cropping, padding, and weight 0 if unreadable."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import numpy as np

from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.latents.features import features_fault, features_key, token_features
from selfflow.latents.store import CAPTION, LatentSource
from selfflow.modality import Modality


class _Clip(NamedTuple):
    """A cropped clip.

    Attributes:
      latents: latents by modality.
      frames: number of latent frames before padding, for padded modalities.
      features: targets of the tokens, by modality.
    """

    latents: dict[str, np.ndarray]
    frames: dict[str, np.int32]
    features: dict[str, np.ndarray]


@dataclass(frozen=True)
class Reader:
    """Reads records of a component as samples, in worker processes.

    Attributes:
      source: the stored records.
      records: numbers of the records that the component uses.
      labels: class of every record; -1 for none.
      modalities: streams of a sample.
      padded: modalities with records shorter than a sample.
      caption: (L, C) of the caption's embedding, or None.
      features: channels of the features that are read, by modality.
      delayed: delays of modalities in latent frames.
    """

    source: LatentSource
    records: np.ndarray
    labels: np.ndarray
    modalities: dict[str, Modality]
    padded: tuple[str, ...]
    caption: tuple[int, int] | None
    features: dict[str, int] = field(default_factory=dict)
    delayed: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, record: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Returns the sample of a record; without `rng` clips are cropped at their start and latents are means.

        An unreadable record becomes a sample of zeros with weight 0.
        """
        sample: dict[str, Any] = {"label": np.int32(self.labels[record]), "record": np.int64(record)}
        try:
            stored = self.source[record]
            clip = self._clip(stored, self.source.shard_of(record), rng)
            sample["weight"] = np.float32(1)
        except BadRecord:
            stored, clip = {}, self._empty_clip()
            sample["weight"] = np.float32(0)
        sample["latents"] = clip.latents
        if self.padded:
            sample["frames"] = clip.frames
        if self.features:
            sample["features"] = clip.features
        if self.caption:
            sample["caption"] = padded_caption(stored.get(CAPTION), *self.caption)
        return sample

    def why(self, record: int) -> tuple[str, str]:
        """(shard, reason) of an unreadable record."""
        try:
            self._clip(self.source[record], self.source.shard_of(record), np.random.default_rng(0))
        except BadRecord as error:
            return error.shard, error.reason
        return self.source.shard_of(record), "it is readable now"

    def _empty_clip(self) -> _Clip:
        latents, features = {}, {}
        for m, modality in self.modalities.items():
            latents[m] = np.zeros(modality.latent, np.float16)
            if m in self.features:
                features[m] = np.zeros((modality.tokens, self.features[m]), np.float16)
        return _Clip(latents, dict.fromkeys(self.padded, np.int32(0)), features)

    def _clip(self, stored: dict[str, np.ndarray], shard: str, rng: np.random.Generator | None) -> _Clip:
        """Draws, crops and pads the latents of a record.

        Raises:
          BadRecord: if arrays are missing, have other shapes than expected or are not finite.
        """
        latents, frames, features = {}, {}, {}
        for m in self.modalities:
            # The order of the draws of `rng` is fixed: the latents of all modalities, then the start of the clip.
            latents[m] = self._latent(stored, m, shard, rng)
            if m in self.features:
                features[m] = self._stored_features(stored, m, shard)
        starts = self._starts(latents, rng)
        for m, modality in self.modalities.items():
            if modality.period:
                length = min(len(latents[m]) - starts[m], modality.latent[0])
                if m in self.padded:
                    frames[m] = np.int32(length)
                elif length < modality.latent[0]:
                    raise BadRecord(shard, f"its {m} has {length} frames, fewer than in the index")
                latents[m] = self._crop(latents[m], m, starts[m])
            if m in features:
                cropped = self._crop(features[m], m, starts[m]) if modality.period else features[m]
                features[m] = token_features(cropped, modality)
        return _Clip(latents, frames, features)

    def _latent(self, stored: dict[str, np.ndarray], m: str, shard: str, rng: np.random.Generator | None) -> np.ndarray:
        """Returns the latent of a modality, drawn from its distribution if the autoencoder is stochastic."""
        latent, modality = stored.get(m), self.modalities[m]
        timed = bool(modality.period)  # then the first axis may have any length
        if latent is None or latent.ndim != len(modality.latent) or latent.shape[timed:] != modality.latent[timed:]:
            shape = None if latent is None else latent.shape
            raise BadRecord(shard, f"{m} has shape {shape}, expected {modality.latent}")
        if rng is not None and f"{m}.std" in stored:
            # z = mean + std * noise, a draw from the posterior, as in the training of the decoder. Computed in float32.
            if stored[f"{m}.std"].shape != latent.shape:
                raise BadRecord(shard, f"the standard deviation of its {m} has another shape than the mean")
            noise = rng.standard_normal(latent.shape, np.float32)
            latent = (latent + stored[f"{m}.std"] * noise).astype(np.float16)
        if not np.isfinite(latent).all():
            raise BadRecord(shard, f"the latents of its {m} are not finite")
        return latent

    def _stored_features(self, stored: dict[str, np.ndarray], m: str, shard: str) -> np.ndarray:
        """Returns the features of a modality [..., E] for the whole record.

        Raises:
          BadRecord: if they are missing, have another shape than expected or are not finite.
        """
        fault = features_fault(stored, m, bool(self.modalities[m].period), self.features[m])
        if fault:
            raise BadRecord(shard, fault)
        features = stored[features_key(m)]
        if not np.isfinite(features).all():
            raise BadRecord(shard, f"{features_key(m)} are not finite")
        return features

    def _crop(self, x: np.ndarray, m: str, start: int) -> np.ndarray:
        """Returns the frames [T, ...] of a clip from `start` on, delayed if configured, then padded with zeros."""
        frames = self.modalities[m].latent[0]
        clip = x[start : start + frames]
        missing = frames - len(clip)
        if m in self.delayed:
            clip = np.roll(clip, self.delayed[m], axis=0)  # before padding, which stays at the end
        return np.pad(clip, [(0, missing)] + [(0, 0)] * (clip.ndim - 1)) if missing else clip

    def _starts(self, latents: dict[str, np.ndarray], rng: np.random.Generator | None) -> dict[str, int]:
        """Returns the first frame of each timed modality: one time for all, drawn from the times at which all frames
        start.

        If an autoencoder encodes the first frame of a video separately, clips start at 0: no later latent frame encodes
        a single frame.
        """
        room, periods = {}, {}
        first_frame_alone = False
        for m, modality in self.modalities.items():
            if modality.period:
                room[m] = len(latents[m]) - modality.latent[0]
                periods[m] = Fraction(modality.period).limit_denominator(10_000)
                first_frame_alone = first_frame_alone or modality.offset[0] < 0
        if rng is None or first_frame_alone or max(room.values(), default=0) <= 0:
            return dict.fromkeys(room, 0)
        # Frames of all modalities start together at multiples of the common period.
        common = _least_common_multiple(list(periods.values()))
        # Fractions are exact: with floats a start could fall into the frame before.
        choices = int(min(max(room[m], 0) * periods[m] / common for m in room))
        time = int(rng.integers(choices + 1)) * common
        return {m: int(time / period) for m, period in periods.items()}


def _least_common_multiple(numbers: list[Fraction]) -> Fraction:
    # Reduce to integers over a common denominator.
    denominator = math.lcm(*[number.denominator for number in numbers])
    numerators = [int(number * denominator) for number in numbers]
    return Fraction(math.lcm(*numerators), denominator)


def padded_caption(stored: np.ndarray | None, tokens: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads or cuts an embedding [l, C], or None, to [L, C]; also returns the mask [L] of tokens that are data."""
    embedding = np.zeros((tokens, width), np.float16)
    count = 0 if stored is None else min(len(stored), tokens)
    if count:
        embedding[:count] = stored[:count]
    return embedding, np.arange(tokens) < count


def class_labels(source: LatentSource, label: str, classes: int) -> np.ndarray:
    """Returns the class label of every record, int32 [n]; -1 for a record without one.

    Args:
      source: the records.
      label: name of the field with the label; "" for none.
      classes: number of classes.

    Raises:
      UserError: if a label is not one of the classes.
    """
    if f"label/{label}" not in source.index:
        return np.full(len(source), -1, np.int32)
    labels = source.index[f"label/{label}"].astype(np.int32)
    if labels.max() >= classes:
        raise UserError(
            f"label {label!r} has values up to {labels.max()}: model.labels must be at least {labels.max() + 1}"
        )
    return labels


class SampleReader(Protocol):
    """Reads records of one component as samples in worker processes; implementations are frozen dataclasses.

    Attributes:
      source: random access to a split, with `shard_of(i)`, `id(i)`, `folder` and `remedy`.
      records: numbers of the records that the component uses.
      modalities: modalities of its samples; empty if they are raw media.
      delayed: delays of modalities in latent frames.
    """

    source: Any
    records: np.ndarray
    modalities: Mapping[str, Modality]
    delayed: Mapping[str, int]

    def __call__(self, record: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Returns the sample of a record."""
        ...

    def why(self, record: int) -> tuple[str, str]:
        """(shard, reason) of an unreadable record."""
        ...
