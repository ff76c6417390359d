"""Random access to the records of a built data set of any kind, even if some shards are damaged."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from selfflow.data.dataset import Dataset
from selfflow.data.shards import BadRecord, ShardReader, one_line
from selfflow.data.stored import read_splits
from selfflow.errors import UserError


class Records(Sequence):
    """One split of a built data set: `records[i]` is a record in the common form (see `data/README.md`).

    Can be pickled; files are opened when they are first read. Never imports TensorFlow.

    Args:
      settings: settings of the data set.
      folder: folder of its shards, `builder.data_dir`.
      split: name of the split.

    Raises:
      UserError: on first use, if there is no prepared data set in `folder`, or no such split in it.
      BadRecord: from `records[i]` and `raw(i)`, if record i cannot be read; other records remain readable.
    """

    def __init__(self, settings: Dataset, folder: Path, split: str):
        self._settings, self._folder, self._split = settings, Path(folder), split
        self._shards: ShardReader | None = None
        self._decode: Callable[[bytes], dict[str, Any]] | None = None

    def __getstate__(self) -> tuple:
        return self._settings, self._folder, self._split

    def __setstate__(self, state: tuple) -> None:
        self.__init__(*state)

    def __len__(self) -> int:
        return len(self._shard_reader())

    def __getitem__(self, i: int) -> dict[str, Any]:
        raw = self.raw(i)
        # On first use, because importing TFDS takes seconds.
        if self._decode is None:
            self._decode = self._settings.decoder(self._folder)
        try:
            return self._decode(raw)
        except UserError:
            raise
        except Exception as error:  # decoders raise errors of many types for damaged bytes
            raise BadRecord(self.shard_of(i), f"record {i} cannot be decoded: {one_line(error)}") from error

    def raw(self, i: int) -> bytes:
        """Record i as it is stored, serialized."""
        return self._shard_reader()[i]

    def shard_of(self, i: int) -> str:
        """Name of the file that holds record i."""
        return self._shard_reader().shard_of(i)

    def _shard_reader(self) -> ShardReader:
        if self._shards is None:
            splits = read_splits(self._folder)
            if self._split not in splits:
                names = ", ".join(splits) or "none"
                raise UserError(f"{self._folder} has no split {self._split!r}; choose from {names}")
            split = splits[self._split]
            self._shards = ShardReader(split.paths, split.lengths)
        return self._shards
