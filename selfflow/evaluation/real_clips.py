"""Real clips of a component, as latents and as media: the reference of samples."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from selfflow.autoencoders.config import Autoencoder
from selfflow.data.shards import BadRecord

if TYPE_CHECKING:
    from selfflow.data.built import BuiltDataset
    from selfflow.data.records import Records
    from selfflow.input.batches import BatchSource
    from selfflow.input.reader import Reader

Batch = tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]
"""Latents and media of some clips, {modality: [B, ...]}."""


class RealClips(NamedTuple):
    """The whole clips of a component in a split of its data, in a fixed random order.

    Attributes:
      source: batches and latents of the run.
      built: the data set with its raw media; None if only the latents exist.
      component: name of the component.
      split: of the data.
      lengths: frames or samples of the component's media, by modality; 0 for images.
      autoencoders: by modality.
    """

    source: "BatchSource"
    built: "BuiltDataset | None"
    component: str
    split: str
    lengths: dict[str, int]
    autoencoders: dict[str, Autoencoder]

    def indices(self, first: int = 0) -> np.ndarray:
        """Indices of the records from `first` on, in random order; empty if the data has no such split."""
        if self.split not in self.source.latents[self.source.mixture[self.component].data].records:
            return np.zeros(0, int)
        records = self.source.reader(self.component, self.split).records
        return np.random.default_rng(0).permutation(records[records >= first])

    def batches(self, indices: np.ndarray, rows: int, decoded: bool = False) -> Iterator[Batch]:
        """Latents and media of records, without those that are unreadable or shorter than the component's clips.

        Args:
          indices: of the records.
          rows: records in a batch.
          decoded: whether media are decoded latents in place of raw media; always so without raw records.
        """
        reader = self.source.reader(self.component, self.split)
        raw = None if decoded or self.built is None else self.built.records(self.split)
        for start in range(0, len(indices), rows):
            clips = [self._clip(reader, raw, int(index)) for index in indices[start : start + rows]]
            readable = [clip for clip in clips if clip is not None]
            if not readable:
                continue
            latents = {m: np.stack([clip[0][m] for clip in readable]).astype(np.float32) for m in self.lengths}
            if raw is None:
                media = {m: self.autoencoders[m].decode(x) for m, x in latents.items()}
            else:
                media = {m: np.stack([clip[1][m] for clip in readable]) for m in self.lengths}
            yield latents, media

    def _clip(self, reader: "Reader", raw: "Records | None", index: int) -> Batch | None:
        """Latents and raw media of one record; None if it is unreadable or too short."""
        sample = reader(index)
        is_whole = all(sample["frames"][m] == len(sample["latents"][m]) for m in sample.get("frames", ()))
        if not sample["weight"] or not is_whole:
            return None
        try:
            record = {} if raw is None else raw[index]
        except BadRecord:
            return None
        return sample["latents"], {m: record[m][: self.lengths[m] or None] for m in self.lengths if m in record}
