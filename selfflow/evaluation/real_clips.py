"""Real clips of a component, as latents and as media: the reference for generated samples."""

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
"""Latents and media of clips, {modality: [B, ...]} each."""


class RealClips(NamedTuple):
    """The whole clips of a component in a split of its data, in a fixed random order.

    Attributes:
      source: batches and latents of the run.
      built: the data set with its raw media; None if only the latents exist.
      component: name of the component.
      split: split of the data.
      lengths: frames or samples of the component's media, by modality; 0 for images.
      autoencoders: autoencoders by modality.
    """

    source: "BatchSource"
    built: "BuiltDataset | None"
    component: str
    split: str
    lengths: dict[str, int]
    autoencoders: dict[str, Autoencoder]

    def indices(self, first: int = 0) -> np.ndarray:
        """Returns the indices of the records from `first` on, in random order; empty if the data has no such split."""
        if self.split not in self.source.latents[self.source.mixture[self.component].data].records:
            return np.zeros(0, int)
        records = self.source.reader(self.component, self.split).records
        return np.random.default_rng(0).permutation(records[records >= first])

    def batches(self, indices: np.ndarray, rows: int, decoded: bool = False) -> Iterator[Batch]:
        """Yields latents and media of records; unreadable records and those shorter than the component's clips are left
        out.

        Args:
          indices: indices of the records.
          rows: records in a batch.
          decoded: whether media are decoded latents instead of raw media; always true if there are no raw records.
        """
        reader = self.source.reader(self.component, self.split)
        raw = None if decoded or self.built is None else self.built.records(self.split)
        for start in range(0, len(indices), rows):
            clips = []
            for index in indices[start : start + rows]:
                clip = self._clip(reader, raw, int(index))
                if clip is not None:
                    clips.append(clip)
            if not clips:
                continue
            latents, media = {}, {}
            for m in self.lengths:
                latents[m] = np.stack([of_clip[m] for of_clip, _ in clips]).astype(np.float32)
                if raw is None:
                    media[m] = self.autoencoders[m].decode(latents[m])
                else:
                    media[m] = np.stack([of_clip[m] for _, of_clip in clips])
            yield latents, media

    def _clip(self, reader: "Reader", raw: "Records | None", index: int) -> Batch | None:
        """Latents and raw media of one record; None if it is unreadable or too short."""
        sample = reader(index)
        if not sample["weight"]:
            return None  # unreadable latents
        for m, frames in sample.get("frames", {}).items():
            if frames != len(sample["latents"][m]):
                return None  # padded to the length of the component
        try:
            record = {} if raw is None else raw[index]
        except BadRecord:
            return None
        media = {}
        for m, length in self.lengths.items():
            if m in record:
                # Clips of the component start with the record, and may be shorter. Images have no time axis to cut.
                media[m] = record[m][:length] if length else record[m]
        return sample["latents"], media
