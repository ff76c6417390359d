"""Shards of latents, the units of encoding: their records, files and skipped records."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open

from selfflow.data.built import BuiltDataset
from selfflow.encoders.config import Encoder
from selfflow.encoders.text.config import Text
from selfflow.latents.fit_autoencoder import FittedAutoencoder
from selfflow.latents.store import shard_name
from selfflow.modality import Modality
from selfflow.storage.lock import try_lock


@dataclass(frozen=True)
class EncodeJob:
    """A data set and the networks that encode it.

    Attributes:
      built: the data set.
      fitted: autoencoder of each modality, sorted by modality.
      modalities: expected latents of the same modalities.
      text: config of the caption encoder, or None.
      encoders: frozen encoders whose features are stored beside the latents, by modality.
      folder: folder of the latents.
    """

    built: BuiltDataset
    fitted: dict[str, FittedAutoencoder]
    modalities: dict[str, Modality]
    text: Text | None
    encoders: dict[str, Encoder]
    folder: Path


@dataclass(frozen=True)
class Shard:
    """Records `start` to `stop` of a split, which become shard `number` of `count`."""

    job: EncodeJob
    split: str
    number: int
    count: int
    start: int
    stop: int

    @property
    def records(self) -> int:
        """Number of records."""
        return self.stop - self.start

    @property
    def path(self) -> Path:
        """File of the records."""
        return self.job.folder / shard_name(self.split, self.number, self.count)

    @property
    def index_path(self) -> Path:
        """Index of the shard, which is written after the records and marks the shard as finished."""
        return self.path.with_suffix(".index.safetensors")

    @property
    def done(self) -> bool:
        """Whether the shard is finished."""
        return self.index_path.exists()


class SkippedRecord(NamedTuple):
    """A record that could not be encoded; it keeps its position, without latents.

    Attributes:
      record: number of the record in the split.
      shard: file of the data set that holds the record.
      reason: reason in one line.
    """

    record: int
    shard: str
    reason: str


def skipped_records(shard: Shard) -> list[SkippedRecord]:
    """Reads the skipped records of a finished shard from the metadata of its index."""
    with safe_open(shard.index_path, "numpy") as file:
        return [SkippedRecord(*each) for each in json.loads(file.metadata()["skipped"])]


def clear_partials(folder: Path) -> None:
    """Removes the temporary files of killed processes."""
    for partial in folder.glob("*.partial-*"):
        try:
            with partial.open() as file:
                # Without file locks another process may still be writing the file, so it is kept.
                if try_lock(file, unsupported=False):
                    partial.unlink()
        except FileNotFoundError:
            continue  # another process has just renamed it
