"""Records -> a prepared TFDS data set in ArrayRecord files: the one writer of all data sets here.

TFDS's own writer shuffles: it keeps a whole split in memory, and past 1 GB it needs TensorFlow's file system. The
pipeline shuffles anyway, so that records are written here as they are made. A set is written to a folder of its own
and renamed when it is whole; a lock lets one process build it, so that others wait and leftovers are known as such.
"""

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
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
    """A TFDS config that carries the settings of a data set; its name must change with them."""

    settings: Any = None


class Shards:
    """Writes the records of one split to one file after another, none much above SHARD_BYTES.

    Attributes:
      paths: the files, under names for the time of writing.
      lengths: records in each.
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
        if self._writer is None or self._shard_size > SHARD_BYTES:
            self.close()
            self.paths.append(self._folder / f"unfinished-{self._split}-{len(self.paths):05d}")
            self.lengths.append(0)
            self._shard_size = 0
            self._writer = ArrayRecordWriter(str(self.paths[-1]), "group_size:1")
        self._writer.write(record)
        if not self._writer.ok():
            self.close()  # which tells the reason; writing itself fails silently
        self.lengths[-1] += 1
        self._shard_size += len(record)
        self.size += len(record)

    def close(self) -> None:
        """Raises OSError if not all that was written is in the file."""
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        try:
            writer.close()
        except RuntimeError as error:
            raise OSError(None, str(error).split(";")[0]) from error


class RecordsBuilder(FileReaderBuilder, skip_registration=True):
    """A TFDS builder that streams. A data set gives `name`, `VERSION`, `_info` and `records`; see `prepare`."""

    name = "records"
    VERSION = tfds.core.Version("1.0.0")

    def records(self) -> Iterable[tuple[str, dict]]:
        """All records with their splits, in the order in which they are to lie in their split."""
        raise NotImplementedError

    def arranged(self, written: dict[str, Shards]) -> dict[str, list[Shards]]:
        """The splits and what they are made of; those without records are not there."""
        return {split: [shards] for split, shards in written.items()}

    def finished(self, folder: Path) -> None:
        """Called when all records are written: the place to leave further files in `folder`."""

    def _download_and_prepare(self, dl_manager, download_config) -> None:
        folder = Path(self.data_path)
        written: dict[str, Shards] = {}
        made = iter(self.records())
        try:
            for split, record in made:
                shards = written.setdefault(split, Shards(folder, split))
                shards.write(self.info.features.serialize_example(record))
            for shards in written.values():
                shards.close()
        finally:
            if hasattr(made, "close"):
                made.close()  # ends worker processes, whatever happened
        infos = []
        for split, parts in self.arranged(written).items():
            template = self._get_filename_template(split)
            paths = [path for part in parts for path in part.paths]
            for path, final in zip(paths, template.sharded_filepaths(num_shards=len(paths)), strict=True):
                os.rename(path, final)
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[length for part in parts for length in part.lengths],
                    num_bytes=sum(part.size for part in parts),
                    filename_template=template,
                )
            )
        self.info.set_splits(tfds.core.SplitDict(infos))
        self.finished(folder)

    # TFDS prints these to stdout, which belongs to the command that builds.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass


Builder = TypeVar("Builder", bound=tfds.core.DatasetBuilder)


def _fill(builder: tfds.core.DatasetBuilder) -> None:
    builder.download_and_prepare(file_format="array_record")


def prepare(make: Callable[[], Builder], fill: Callable[[Builder], None] = _fill) -> Builder:
    """Makes a builder and prepares its data set if it is not there yet.

    Args:
      make: returns a builder below the same folder whenever it is called; called again once the set is there.
      fill: prepares the data set of a builder.

    Returns:
      The builder of the ready set. Of several processes one builds and the others wait for it.

    Raises:
      UserError: the data folder cannot be written.
    """
    with quiet():
        builder = make()
        if builder.is_prepared():
            return builder
        folder = Path(builder.data_path)
        try:
            with _alone(folder) as certain:
                builder = make()
                if builder.is_prepared():
                    return builder
                if certain:  # nobody else builds this set, so what lies about was left by killed processes
                    for leftover in folder.parent.glob(f"incomplete.*_{folder.name}"):
                        shutil.rmtree(leftover, ignore_errors=True)
                fill(builder)
        except OSError as error:
            # Where there are no locks another process may have been first; TFDS does not rename over its set.
            if not make().is_prepared():
                reason = error.strerror or error
                raise UserError(
                    f"data_dir: the data set cannot be written to {folder} ({reason}); "
                    "make room or choose another folder"
                ) from error
        return make()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Holds the lock of a data set's folder; yields whether there is one, which some file systems do not offer."""
    path = folder.with_name(f".{folder.name}.lock")
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        lock = path.open("w")
        try:
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
            # Whoever held the lock has removed its file: only the one that is still there counts.
            if not _is_file(lock.fileno(), path):
                continue
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
            return


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences all log lines below errors: progress is shown by Progress."""
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        yield
    finally:
        absl_logging.set_verbosity(verbosity)
