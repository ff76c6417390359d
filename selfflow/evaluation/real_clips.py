"""Real clips of a component, as latents and as media: what samples are held against."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from selfflow.data.shards import BadRecord

if TYPE_CHECKING:
    from selfflow.data.built import BuiltDataset
    from selfflow.input.batches import BatchSource

Batch = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


class RealClips(NamedTuple):
    """The whole clips of a component in a split of its data, in an order of their own that is always the same.

    Attributes:
      feed: what the run reads.
      built: the data set with its raw media; None where only the latents are there.
      component: name of the component in the mixture.
      split: of the data.
      lengths: frames or samples of the component's media, by modality; 0 for pictures.
      autoencoders: by modality.
    """

    feed: "BatchSource"
    built: "BuiltDataset | None"
    component: str
    split: str
    lengths: dict[str, int]
    autoencoders: dict[str, Any]

    def numbers(self, first: int = 0) -> np.ndarray:
        """Numbers of the records, from `first` on."""
        if self.split not in self.feed.latents[self.feed.mixture[self.component].data].records:
            return np.zeros(0, int)
        records = self.feed.reader(self.component, self.split).records
        return np.random.default_rng(0).permutation(records[records >= first])

    def batches(self, numbers: np.ndarray, size: int, decoded: bool = False) -> Iterator[Batch]:
        """(latents, media) of some records, without those that are unreadable or shorter than the component's clips.

        Args:
          numbers: of the records.
          size: records in a batch.
          decoded: media as the autoencoder gives them back, and not raw; always so where there is no raw data.
        """
        reader = self.feed.reader(self.component, self.split)
        raw = None if decoded or self.built is None else self.built.records(self.split)
        for start in range(0, len(numbers), size):
            rows = [row for number in numbers[start : start + size] if (row := self._row(reader, raw, int(number)))]
            if rows:
                latents = {m: np.stack([row[0][m] for row in rows]).astype(np.float32) for m in self.lengths}
                media = (
                    {m: self.autoencoders[m].decode(x) for m, x in latents.items()}
                    if raw is None
                    else {m: np.stack([row[1][m] for row in rows]) for m in self.lengths}
                )
                yield latents, media

    def _row(self, reader: Any, raw: Any, number: int) -> Batch | None:
        sample = reader(number)
        whole = all(sample["frames"][m] == len(sample["latents"][m]) for m in sample.get("frames", ()))
        if not sample["weight"] or not whole:
            return None
        try:
            record = {} if raw is None else raw[number]
        except BadRecord:
            return None
        return sample["latents"], {m: x[: self.lengths[m] or None] for m, x in record.items() if m in self.lengths}
