"""Writes records to ArrayRecord files as a prepared TFDS data set.

The writer of TFDS shuffles: it keeps a whole split in memory, and above 1 GB it needs TensorFlow's file system. The
input pipeline shuffles anyway, so that records are written here in the order in which they are generated. A data set
is written to a temporary folder and renamed when it is complete. A lock lets one process build it while others wait,
and identifies files of interrupted builds.
"""

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tensorflow_datasets as tfds
from absl import logging as absl_logging
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from selfflow.errors import UserError

SHARD_BYTES = 256 << 20


@dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    """A TFDS config with the settings of a data set; its name must change with them."""

    settings: Any = None


class Shards:
    """Writes the records of one split to one file after another, none much above SHARD_BYTES.

    Attributes:
      paths: the files, under temporary names.
      lengths: number of records in each.
      size: bytes of all records before compression.
    """

    def __init__(self, folder: Path, split: str):
        self._folder, self._split = folder, split
        self.paths: list[Path] = []
        self.lengths: list[int] = []
        self.size = self._shard_size = 0
        self._writer: ArrayRecordWriter | None = None

    def write(self, record: bytes) -> None:
        """Appends a serialized record."""
        # One shard after another, so that a reader needs one file at a time and object storage transfers parts.
        if self._writer is None or self._shard_size > SHARD_BYTES:
            self.close()
            self.paths.append(self._folder / f"unfinished-{self._split}-{len(self.paths):05d}")
            self.lengths.append(0)
            self._shard_size = 0
            self._writer = ArrayRecordWriter(str(self.paths[-1]), "group_size:1")
        self._writer.write(record)
        # Checked after every record, so that a full disk ends the build at once.
        if not self._writer.ok():
            self.close()  # raises with the reason; a failed write itself is silent
        self.lengths[-1] += 1
        self._shard_size += len(record)
        self.size += len(record)

    def close(self) -> None:
        """Closes the current file.

        Raises:
          OSError: not all records could be written to it.
        """
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        try:
            writer.close()
        except RuntimeError as error:
            raise OSError(None, str(error).split(";")[0]) from error


class RecordsBuilder(FileReaderBuilder, skip_registration=True):
    """A TFDS builder that streams records to files. A data set defines `name`, `VERSION`, `_info` and `records`."""

    name = "records"
    VERSION = tfds.core.Version("1.0.0")

    def records(self) -> Iterable[tuple[str, dict]]:
        """(split, record) of all records, in the order of storage."""
        raise NotImplementedError

    def split_parts(self, written: dict[str, Shards]) -> dict[str, list[Shards]]:
        """Returns the parts of each split, none without records; by default each split is one part."""
        return {split: [shards] for split, shards in written.items()}

    def write_files(self, folder: Path) -> None:
        """Called after all records are written; may add files to `folder`."""

    def _download_and_prepare(self, dl_manager, download_config) -> None:
        folder = Path(self.data_path)
        written: dict[str, Shards] = {}
        records = iter(self.records())
        try:
            for split, record in records:
                shards = written.setdefault(split, Shards(folder, split))
                shards.write(self.info.features.serialize_example(record))
            for shards in written.values():
                shards.close()
        finally:
            if isinstance(records, Generator):
                records.close()  # ends worker processes, also after an error
        infos = []
        for split, parts in self.split_parts(written).items():
            template = self._get_filename_template(split)
            paths: list[Path] = []
            lengths: list[int] = []
            for part in parts:
                paths += part.paths
                lengths += part.lengths
            # TFDS names contain the number of shards, which is known only now.
            for path, final in zip(paths, template.sharded_filepaths(num_shards=len(paths)), strict=True):
                os.rename(path, final)
            size = sum(part.size for part in parts)
            infos.append(
                tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template)
            )
        self.info.set_splits(tfds.core.SplitDict(infos))
        self.write_files(folder)

    # TFDS would print these to stdout, which has the output of the command.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass


Builder = TypeVar("Builder", bound=tfds.core.DatasetBuilder)


def _fill(builder: tfds.core.DatasetBuilder) -> None:
    builder.download_and_prepare(file_format="array_record")


def prepare(make: Callable[[], Builder], fill: Callable[[Builder], None] = _fill) -> Builder:
    """Returns a builder of a prepared data set; prepares it if it does not exist. If several processes call it, one
    builds and the others wait.

    Args:
      make: returns a builder, always of the same folder; called again after the data set is prepared.
      fill: prepares the data set of a builder.

    Raises:
      UserError: the data folder cannot be written.
    """
    # Without a lock, which a prepared data set does not need.
    with quiet():
        builder = make()
        if builder.is_prepared():
            return builder
        folder = Path(builder.data_path)
        try:
            with _build_lock(folder) as locked:
                builder = make()
                if builder.is_prepared():
                    return builder
                if locked:  # no other process builds this data set, so these are files of killed processes
                    for leftover in folder.parent.glob(f"incomplete.*_{folder.name}"):
                        shutil.rmtree(leftover, ignore_errors=True)
                fill(builder)
        except OSError as error:
            # Without locks another process may have built the data set, which TFDS does not replace.
            if not make().is_prepared():
                reason = error.strerror or error
                raise UserError(
                    f"data_dir: the data set cannot be written to {folder} ({reason}); "
                    "free disk space or choose another folder"
                ) from error
        return make()


@contextlib.contextmanager
def _build_lock(folder: Path) -> Iterator[bool]:
    """Holds the lock of a data set's folder; yields False on file systems without locks."""
    path = folder.with_name(f".{folder.name}.lock")
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        lock = path.open("w")
        try:
            # First without blocking, so that the reason for waiting can be printed.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is building {folder}: waiting for it", file=sys.stderr, flush=True)
            with lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
            continue
        except OSError:
            lock.close()
            yield False
            return
        with lock:
            # The process that held the lock has removed its file: only a lock of the current file counts.
            if not _is_same_file(lock.fileno(), path):
                continue
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
            return


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the logs of absl below errors; `Progress` shows the progress."""
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        yield
    finally:
        absl_logging.set_verbosity(verbosity)
