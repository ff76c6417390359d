"""The shards of a split as one sequence of raw records, of which some may be damaged."""

import bisect
import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfflow.storage.object_store import IncompleteObject, MissingObject
from selfflow.storage.staging import staged


class BadRecord(Exception):
    """A record that cannot be read or decoded.

    Attributes:
      shard: name of the file that holds it.
      reason: reason in one line.
    """

    def __init__(self, shard: str, reason: str):
        super().__init__(shard, reason)
        self.shard, self.reason = shard, reason

    def __str__(self) -> str:
        return f"{self.shard}: {self.reason}"


class ShardReader(Sequence):
    """Random access to the raw records in ArrayRecord files. Can be pickled; files are opened when first read.

    Files in object storage are fetched when they are first read.

    Args:
      paths: the files, in order.
      lengths: number of records in each.

    Raises:
      BadRecord: from `shards[i]`, if record i cannot be read; other records remain readable.
    """

    def __init__(self, paths: list[Path], lengths: list[int]):
        self._paths, self._lengths = paths, lengths
        self._ends = list(itertools.accumulate(lengths))
        self._lock = threading.Lock()
        self._readers: dict[int, tuple[Path, Any]] = {}

    def __getstate__(self) -> tuple:
        return self._paths, self._lengths

    def __setstate__(self, state: tuple) -> None:
        self.__init__(*state)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, i: int) -> bytes:
        shard, position = self._place(i)
        try:
            return self._reader(shard).read([position])[0]
        except (RuntimeError, IndexError) as error:
            raise BadRecord(self._paths[shard].name, f"record {i} cannot be read: {one_line(error)}") from error

    def shard_of(self, i: int) -> str:
        """Name of the file that holds record i."""
        return self._paths[self._place(i)[0]].name

    def _place(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        # The first shard that ends after record i.
        shard = bisect.bisect_right(self._ends, i)
        return shard, int(i) - (self._ends[shard - 1] if shard else 0)

    def _reader(self, shard: int) -> Any:
        path = self._paths[shard]
        # Readers are shared by the threads of the input pipeline.
        with self._lock:
            file, reader = self._readers.get(shard, (path, None))
            if reader is not None and (file is path or file.exists()):
                return reader
            # Its local copy was evicted for other files: close it and fetch it again.
            self._readers.pop(shard, None)
        try:
            with staged(path) as file:
                reader = self._open(shard, file)
        except (MissingObject, IncompleteObject) as error:
            raise BadRecord(path.name, one_line(error)) from error
        with self._lock:
            return self._readers.setdefault(shard, (file, reader))[1]

    def _open(self, shard: int, file: Path) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        name, expected = self._paths[shard].name, self._lengths[shard]
        if not file.exists():
            raise BadRecord(name, "the file is missing")
        try:
            reader = ArrayRecordReader(str(file), options="readahead_buffer_size:0", file_reader_buffer_size=32768)
        except RuntimeError as error:
            raise BadRecord(name, one_line(error)) from error
        if reader.num_records() != expected:  # 0 if the end of the file is damaged
            raise BadRecord(name, f"it has {reader.num_records()} readable records of {expected}")
        return reader


def one_line(error: Exception) -> str:
    """Returns the message of an error in one line of at most 200 characters."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
