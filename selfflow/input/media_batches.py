"""Batches of raw media, for autoencoders to train on: clips cropped in time and area, in the order of `Batches`."""

import hashlib
import json
import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from selfflow.data.built import BuiltDataset
from selfflow.data.features import read_features, read_specs
from selfflow.data.shards import BadRecord, one_line
from selfflow.errors import UserError
from selfflow.input.batches import Batches, Rows
from selfflow.input.mixture import Component, Stage
from selfflow.input.options import LoaderOptions
from selfflow.latents.encode import folder_name
from selfflow.latents.store import ids_from, ids_to
from selfflow.media import medium_of
from selfflow.progress import Progress
from selfflow.storage.atomic import atomic_write

_FORMAT = 1  # raised when equal data sets come to have other indexes
_BYTES = 200e6  # of held-out media of a component


@dataclass(frozen=True)
class Cut:
    """Shape of a component's samples: length in frames or samples, 0 for an image, and side of the cropped area."""

    length: int
    side: int
    shape: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Frames or samples of a sample, which the speed of a run is counted in."""
        return max(self.length, 1)

    @property
    def nbytes(self) -> int:
        """How large a sample is."""
        return math.prod(self.shape) * (1 if self.side else 2)


class MediaSource:
    """The records of a split as `Batches` asks for them; records travel to worker processes.

    Args:
      built: the data set.
      split: of it.
      excluded: ids that are never read.
      indexes: folder in which is kept which record has what: to find that out takes a look at all of them.
    """

    def __init__(self, built: BuiltDataset, split: str, excluded: Collection[str], indexes: Path):
        self.folder, self._records = built.folder, built.records(split)
        self.index = _kept_index(built, split, indexes)
        self._excluded = np.isin(self.index["id"], np.array([i.encode() for i in sorted(excluded)], bytes))

    @property
    def remedy(self) -> str:
        """What to do about records that cannot be read."""
        return "`selfflow data verify` lists them; build the data set again"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"index": {}, "_excluded": None}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self._records[i]

    def having(self, modality: str, quality: float = 0.0) -> np.ndarray:
        """The records in which a modality is present, of at least this quality, without the excluded."""
        present = self.index.get(f"present/{modality}", np.zeros(len(self), bool))
        return np.flatnonzero(present & (self.index["quality"] >= quality) & ~self._excluded)

    def shard_of(self, i: int) -> str:
        """Name of the file that holds record i."""
        return self._records.shard_of(i)

    def id(self, i: int) -> str:
        """Id of record i."""
        return self.index["id"][i].decode(errors="replace")


def _kept_index(built: BuiltDataset, split: str, folder: Path) -> dict[str, np.ndarray]:
    told = [_FORMAT, built.fingerprint, built.forgotten, built.settings.decoding_options()]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / f"{folder_name(built.name)}-{split}-{digest}.safetensors"
    try:
        index = load_file(path)
    except (OSError, SafetensorError):
        index, whole = _index(built, split)
        if whole:  # else the records that cannot be read may be mended by the next time
            _keep(index, path)
    return index | {"id": ids_from(index["id"])}


def _keep(index: dict[str, np.ndarray], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            partial.write_bytes(save(index))
    except OSError as error:  # it is made again the next time
        print(f"note: {path} cannot be written ({error.strerror})", file=sys.stderr)


def _index(built: BuiltDataset, split: str) -> tuple[dict[str, np.ndarray], bool]:
    """Id, quality and what is present of each record, of one that cannot be read nothing; whether all can be read."""
    records, rows, whole = built.records(split), [], True
    small = None
    if not hasattr(built.settings, "decoder"):
        wanted = [name for name in read_specs(built.folder) if name in ("id", "quality") or name.startswith("present.")]
        small = read_features(built.folder, only=wanted)
    with Progress(f"index {built.name.split('/')[0]} {split}", len(records), unit="record") as shown:
        for i in range(len(records)):
            try:
                record = _told(small, records.raw(i), records.shard_of(i)) if small else records[i]
            except BadRecord:
                record, whole = {"id": "", "quality": 0.0, "present": {}}, False
            name = record["id"]
            present = {m: bool(there) for m, there in record["present"].items()}
            rows.append((name.decode() if isinstance(name, bytes) else name, float(record["quality"]), present))
            shown.advance()
    modalities = {m for *_, present in rows for m in present}
    return {
        "id": ids_to([name for name, *_ in rows]),
        "quality": np.array([quality for _, quality, _ in rows], np.float32),
        **{f"present/{m}": np.array([present.get(m, False) for *_, present in rows], bool) for m in modalities},
    }, whole


def _told(small: Any, raw: bytes, shard: str) -> dict[str, Any]:
    try:
        return small.deserialize_example_np(raw)
    except Exception as error:  # whatever the bytes are, what they do to a decoder is about this record
        raise BadRecord(shard, one_line(error)) from error


@dataclass(frozen=True)
class MediaReader:
    """One record of a component as a sample of a batch; travels to worker processes."""

    source: MediaSource
    records: np.ndarray
    modality: str
    cut: Cut
    delayed: Mapping[str, int] = field(default_factory=dict)  # none: `Batches` asks

    modalities = {}  # nothing of a sample is a latent

    def __call__(self, record: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """The sample of a record, {"media", "weight", "record"}; without `rng` it is cut from the start and the middle.

        A record that cannot be read keeps its place: it is all zeros and its weight is 0.
        """
        sample = {"record": np.int64(record), "weight": np.float32(1)}
        try:
            sample["media"] = self._cropped(self.source[record], record, rng)
        except BadRecord:
            sample["media"] = np.zeros(self.cut.shape, medium_of(self.modality).dtype)
            sample["weight"] = np.float32(0)
        return sample

    def why(self, record: int) -> tuple[str, str]:
        """(shard, reason) of a record that cannot be read."""
        try:
            self._cropped(self.source[record], record, None)
        except BadRecord as error:
            return error.shard, error.reason
        return self.source.shard_of(record), "it can be read now"

    def _cropped(self, record: dict[str, Any], number: int, rng: np.random.Generator | None) -> np.ndarray:
        medium, cut = medium_of(self.modality), self.cut
        x = medium.to_sequence(record[self.modality])
        if x.ndim != len(cut.shape) or not x.size:
            raise BadRecord(
                self.source.shard_of(number), f"its {self.modality} has shape {record[self.modality].shape}"
            )
        sizes = cut.shape[: -1 if x.ndim > 2 else 1]
        for axis, size in enumerate(sizes):
            if x.shape[axis] < size:  # silence, its last frame, or the edge of its pictures, goes on
                missing = [(0, size - x.shape[axis] if i == axis else 0) for i in range(x.ndim)]
                x = np.pad(x, missing, mode="edge" if medium.is_visual else "constant")
            room = x.shape[axis] - size
            start = int(rng.integers(room + 1)) if rng is not None else (room // 2 if axis else 0)
            x = np.take(x, np.arange(start, start + size), axis)
        return x


@dataclass(frozen=True)
class MediaBatchSource:
    """What all components of a mixture are read from; see `batches.Feed`.

    Attributes:
      built: data sets.
      mixture: components by name, each of one modality, with its data set.
      cuts: what the samples of each component look like.
      excluded: ids of samples that are never read.
      indexes: folder in which indexes are kept.
    """

    built: dict[str, BuiltDataset]
    mixture: dict[str, Component]
    cuts: dict[str, Cut]
    curriculum: tuple[Stage, ...] = ()
    excluded: frozenset[str] = frozenset()
    seed: int = 0
    loader: LoaderOptions = LoaderOptions()
    indexes: Path = Path()
    opened: dict[tuple[str, str], MediaSource] = field(default_factory=dict, repr=False, compare=False)

    # `Batches` looks for labels in latents, and counts the tokens of modalities.
    label = ""
    latents = {}

    @property
    def modalities(self) -> dict[str, dict[str, Cut]]:
        """The one modality of each component, which tells its `tokens`."""
        return {name: {component.modalities[0]: self.cuts[name]} for name, component in self.mixture.items()}

    def batches(self, start: int, steps: int, rows: Rows | None = None) -> Batches:
        """The batches of steps `start` to `steps`, as `Feed.batches` gives them: {"media", "weight"}."""
        return Batches(self, start, steps, rows)

    def reader(self, name: str, split: str, quality: float = 0.0) -> MediaReader:
        """Reads the records of a component of the mixture, from a split of its data set."""
        component = self.mixture[name]
        if (component.data, split) not in self.opened:  # it takes a look at all records
            self.opened[component.data, split] = MediaSource(
                self.built[component.data], split, self.excluded, self.indexes
            )
        source, (modality,) = self.opened[component.data, split], component.modalities
        return MediaReader(source, source.having(modality, quality), modality, self.cuts[name])

    def held_out(self, splits: tuple[str, ...], size: int) -> dict[str, tuple[str, np.ndarray]]:
        """Media of each component, {component: (split, [B, ...])}; the first split that has any, in the end train.

        They are always the same, and cropped at random as what is trained on.

        Args:
          splits: where to look, in this order.
          size: samples, if there are so many, and of large ones fewer.

        Raises:
          UserError: if a component has no record that can be read.
        """
        found = {}
        for name, component in self.mixture.items():
            for split in (s for s in (*splits, "train") if s in self.built[component.data].splits):
                reader = self.reader(name, split, component.quality)
                most, samples = max(1, min(size, int(_BYTES // reader.cut.nbytes))), []
                for i in np.random.default_rng(0).permutation(reader.records):
                    if len(samples) == most:
                        break
                    if (sample := reader(int(i), np.random.default_rng(int(i))))["weight"]:
                        samples.append(sample)
                if samples:
                    found[name] = split, np.stack([sample["media"] for sample in samples])
                    break
            else:
                raise UserError(
                    f"mixture.{name}: no record of {component.data} can be read: run `selfflow data verify`"
                )
        return found
