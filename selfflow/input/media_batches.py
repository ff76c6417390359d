"""Batches of raw media that autoencoders train on: clips cropped in time and area, in the order of `Batches`."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from selfflow.data.built import BuiltDataset
from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.input.batches import Batches, LoaderOptions, Rows
from selfflow.input.media_index import media_index
from selfflow.input.mixture import Component, Stage
from selfflow.media import medium_of

_HELD_OUT_BYTES = 200e6  # limit for each component


@dataclass(frozen=True)
class Cut:
    """Shape of a component's samples.

    Attributes:
      length: frames or samples; 0 for an image.
      side: side of the cropped area, pixels; 0 for audio.
      shape: shape of a sample, with a time and a channel axis.
    """

    length: int
    side: int
    shape: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Number of frames or audio samples, the unit of a run's speed."""
        return max(self.length, 1)

    @property
    def nbytes(self) -> int:
        """Size of a sample in bytes."""
        return math.prod(self.shape) * (1 if self.side else 2)


class MediaSource:
    """Random access to the records of a split, in worker processes.

    Args:
      built: the data set.
      split: name of the split.
      excluded: ids that are never read.
      indexes: folder of the cached indexes.
    """

    def __init__(self, built: BuiltDataset, split: str, excluded: Collection[str], indexes: Path):
        self.folder, self._records = built.folder, built.records(split)
        self.index = media_index(built, split, indexes)
        self._excluded = np.isin(self.index["id"], np.array([i.encode() for i in sorted(excluded)], bytes))

    @property
    def remedy(self) -> str:
        """Remedy for unreadable records, for error messages."""
        return "`selfflow data verify` lists them; build the data set again"

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes read records by number: they need no index, which may be large.
        return self.__dict__ | {"index": {}, "_excluded": None}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self._records[i]

    def indices_with(self, modality: str, quality: float = 0.0) -> np.ndarray:
        """Returns the numbers of the records with a modality and at least this quality, without excluded ones."""
        present = self.index.get(f"present/{modality}", np.zeros(len(self), bool))
        return np.flatnonzero(present & (self.index["quality"] >= quality) & ~self._excluded)

    def shard_of(self, i: int) -> str:
        """Name of the file that holds record i."""
        return self._records.shard_of(i)

    def id(self, i: int) -> str:
        """Id of record i."""
        return self.index["id"][i].decode(errors="replace")


@dataclass(frozen=True)
class MediaReader:
    """Reads records of a component as samples, in worker processes; see `batches.SampleReader`.

    Attributes:
      source: the records.
      records: numbers of the records that the component uses.
      modality: modality of the media.
      cut: shape of a sample.
      delayed: always empty.
    """

    source: MediaSource
    records: np.ndarray
    modality: str
    cut: Cut
    delayed: Mapping[str, int] = field(default_factory=dict)

    modalities = {}  # samples hold no latents

    def __call__(self, record: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Returns the sample of a record, {"media", "weight", "record"}; without `rng` it is cropped at start and
        centre.

        An unreadable record becomes a sample of zeros with weight 0.
        """
        sample = {"record": np.int64(record), "weight": np.float32(1)}
        try:
            sample["media"] = self._cropped(self.source[record], record, rng)
        except BadRecord:
            sample["media"] = np.zeros(self.cut.shape, medium_of(self.modality).dtype)
            sample["weight"] = np.float32(0)
        return sample

    def why(self, record: int) -> tuple[str, str]:
        """Returns (shard, reason) for an unreadable record."""
        try:
            self._cropped(self.source[record], record, None)
        except BadRecord as error:
            return error.shard, error.reason
        return self.source.shard_of(record), "it is readable now"

    def _cropped(self, record: dict[str, Any], number: int, rng: np.random.Generator | None) -> np.ndarray:
        medium, cut = medium_of(self.modality), self.cut
        x = medium.to_sequence(record[self.modality])
        if x.ndim != len(cut.shape) or not x.size:
            raise BadRecord(
                self.source.shard_of(number), f"its {self.modality} has shape {record[self.modality].shape}"
            )
        # Crop time and area of visual media [T, H, W, C], and time of audio [T, C].
        cropped_axes = cut.shape[: -1 if x.ndim > 2 else 1]
        for axis, size in enumerate(cropped_axes):
            if x.shape[axis] < size:
                # Pad short media: repeat the last frame or the border of frames, or append silence.
                missing = [(0, 0)] * x.ndim
                missing[axis] = (0, size - x.shape[axis])
                x = np.pad(x, missing, mode="edge" if medium.is_visual else "constant")
            room = x.shape[axis] - size
            if rng is not None:
                start = int(rng.integers(room + 1))
            else:
                start = room // 2 if axis else 0  # the centre of the area, the beginning of the clip
            x = np.take(x, np.arange(start, start + size), axis)
        return x


@dataclass(frozen=True)
class MediaBatchSource:
    """The data sets and settings that batches of raw media are drawn from; see `batches.Source`.

    Attributes:
      built: data sets by name.
      mixture: components by name, each of one modality, with its data set.
      cuts: shape of the samples of each component.
      curriculum: changes of the mixture.
      excluded: ids of samples that are never read.
      seed: `seed.data` of the experiment.
      loader: settings of the readers.
      indexes: folder of the cached indexes.
    """

    built: dict[str, BuiltDataset]
    mixture: dict[str, Component]
    cuts: dict[str, Cut]
    curriculum: tuple[Stage, ...] = ()
    excluded: frozenset[str] = frozenset()
    seed: int = 0
    loader: LoaderOptions = LoaderOptions()
    indexes: Path = Path()
    _sources: dict[tuple[str, str], MediaSource] = field(default_factory=dict, repr=False, compare=False)

    # Raw media have no labels.
    label = ""
    latents = {}

    @property
    def modalities(self) -> dict[str, dict[str, Cut]]:
        """The single modality of each component with its `Cut`, which gives `Batches` the number of tokens."""
        return {name: {component.modalities[0]: self.cuts[name]} for name, component in self.mixture.items()}

    def batches(self, start: int, steps: int, rows: Rows | None = None) -> Batches:
        """Returns the batches {"media", "weight"} of steps `start` to `steps`; see `BatchSource.batches`."""
        return Batches(self, start, steps, rows)

    def reader(self, name: str, split: str, quality: float = 0.0) -> MediaReader:
        """Reads the records of a component of at least this quality, from a split of its data set."""
        component = self.mixture[name]
        key = component.data, split
        if key not in self._sources:  # opening one may take a pass over all records
            self._sources[key] = MediaSource(self.built[component.data], split, self.excluded, self.indexes)
        (modality,) = component.modalities
        source = self._sources[key]
        return MediaReader(source, source.indices_with(modality, quality), modality, self.cuts[name])

    def held_out(self, splits: tuple[str, ...], size: int) -> dict[str, tuple[str, np.ndarray]]:
        """Returns fixed, randomly cropped media of each component, {component: (split, [B, ...])}.

        Args:
          splits: splits to try in this order, and train after them; the first that has the component is used.
          size: maximum number of samples; fewer if samples are large.

        Raises:
          UserError: if a component has no readable record.
        """
        media = {}
        for name, component in self.mixture.items():
            for split in (*splits, "train"):
                if split not in self.built[component.data].splits:
                    continue
                samples = self._fixed_samples(self.reader(name, split, component.quality), size)
                if samples:
                    media[name] = split, np.stack(samples)
                    break
            else:
                raise UserError(
                    f"mixture.{name}: no record of {component.data} can be read: run `selfflow data verify`"
                )
        return media

    def _fixed_samples(self, reader: MediaReader, size: int) -> list[np.ndarray]:
        """Reads media of up to `size` readable records; the number of a record seeds its crop."""
        count, samples = max(1, min(size, int(_HELD_OUT_BYTES // reader.cut.nbytes))), []
        for i in np.random.default_rng(0).permutation(reader.records):
            if len(samples) == count:
                break
            sample = reader(int(i), np.random.default_rng(int(i)))
            if sample["weight"]:
                samples.append(sample["media"])
        return samples
