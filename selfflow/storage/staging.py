"""Shards of records from a bucket: fetched whole when they are first read, kept on the local disk up to a limit."""

import fcntl
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfflow.errors import UserError
from selfflow.serialization import digest
from selfflow.storage.paths import cache, url_of

_BEGAN = time.time()
_NAME = re.compile(r"[0-9a-f]{32}-([0-9]+)(\.partial)?")
_told: list[bool] = []


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """The file itself, or where the object lies that it is the local copy of; it stays there until the context ends.

    Safe with other threads and processes: one fetches, the others wait for it. Who has opened the file may read on
    after it has made room for others, and should look whether it has, since the disk is free only when it is closed.

    Raises:
      UserError: if the object is larger than the limit, or the bucket does not answer.
      store.Missing, store.Short: if the object is not there, or less of it comes than its size says.
    """
    url = None if path.exists() else url_of(path)
    if url is None:
        yield path
        return
    from selfflow.storage.store import bring, look

    found = look(url)
    file = _file(url, found.tag, found.size)
    with locked(_lock_of(file)):
        if not file.exists():
            partial = _reserve(file, found.size)
            try:
                bring(url, partial, found.size)
                os.replace(partial, file)
            finally:
                partial.unlink(missing_ok=True)
        os.utime(file)
        yield file


def adopt(path: Path, tag: str) -> None:
    """Keeps a shard that was just sent to its bucket as if it had been fetched."""
    size = path.stat().st_size
    if size <= limit():
        file = _file(url_of(path), tag, size)
        with locked(_lock_of(file)):
            partial = _reserve(file, size)
            os.replace(path, file)
            partial.unlink()
    path.unlink(missing_ok=True)


def limit() -> int:
    """Bytes that staged shards may take: `$SELFFLOW_STAGED_GB`, by default 50 GB.

    Raises:
      UserError: if it is no positive number.
    """
    told = os.environ.get("SELFFLOW_STAGED_GB", "50")
    try:
        size = float(told) * 1e9
    except ValueError:
        size = 0
    if not 0 < size < float("inf"):
        raise UserError(f"SELFFLOW_STAGED_GB is {told!r}: give the gigabytes that shards from buckets may take")
    return int(size)


def _reserve(file: Path, size: int) -> Path:
    """Makes room for a file and takes it: an empty file whose name tells the size."""
    if size > limit():
        raise UserError(f"a shard has {size / 1e9:.3g} GB, more than SELFFLOW_STAGED_GB ({limit() / 1e9:.3g}) allows")
    while True:
        with locked(_folder() / "lock"):
            if _make_room(size):
                partial = file.with_name(f"{file.name}.partial")
                partial.touch()
                return partial
        time.sleep(0.05)  # others fetch as much as the limit allows: theirs can go once they have it


def _make_room(size: int) -> bool:
    """Whether `size` more bytes fit, after what was read longest ago has gone."""
    files = [path for path in _folder().iterdir() if _NAME.fullmatch(path.name)]
    free = limit() - sum(_size(path) for path in files)
    for read, path in sorted((_read_last(path), path) for path in files):
        if free >= size:
            break
        with _lock_of(path).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # it is being fetched or opened
            if path.suffix != ".partial" and read > _BEGAN and not _told:
                _told.append(True)
                print(
                    f"warning: the shards that are read take more than {limit() / 1e9:.3g} GB, and are fetched from "
                    "their bucket again and again: set SELFFLOW_STAGED_GB to more",
                    file=sys.stderr,
                )
            for part in _folder().glob(f"{path.name}.partial-*"):  # of a process that was killed
                part.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            free += _size(path)
    return free >= size


def _size(path: Path) -> int:
    """What a file holds, or will hold when it has been fetched."""
    return int(_NAME.fullmatch(path.name)[1])


def _read_last(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # it has been fetched meanwhile, and lost its `.partial`, or has gone
        return time.time()


def _lock_of(path: Path) -> Path:
    return _folder() / "locks" / path.name.removesuffix(".partial")


def _file(url: str, tag: str, size: int) -> Path:
    """Named by what it holds, so that an object that was replaced is never taken for the one before."""
    return _folder() / f"{digest(f'{url} {tag}', 32)}-{size}"


def _folder() -> Path:
    return cache() / "staged"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file, which is made; waits for whoever holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
