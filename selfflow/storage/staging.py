"""Shards of records from a bucket: downloaded whole at first use, cached on the local disk up to a limit."""

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfflow.errors import UserError
from selfflow.serialization import digest
from selfflow.storage.lock import locked, try_lock
from selfflow.storage.paths import cache_folder, url_of_copy

_PROCESS_START = time.time()
_NAME = re.compile(r"[0-9a-f]{32}-([0-9]+)(\.partial)?")
_warned: list[bool] = []


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yields a local file with the content of `path`, which may be the local copy of an object; it stays until exit.

    Safe with other threads and processes: one downloads, the others wait. A reader that has opened the file may read
    on after it was evicted, and should check for that, since the disk space is free only once it is closed.

    Raises:
      UserError: if the object is larger than the limit, or the bucket does not answer.
      object_store.MissingObject, object_store.IncompleteObject: if the object does not exist, or fewer bytes than its
        size arrive.
    """
    url = None if path.exists() else url_of_copy(path)
    if url is None:
        yield path
        return
    from selfflow.storage.object_store import download, object_info

    info = object_info(url)
    file = _file(url, info.tag, info.size)
    with locked(_lock_of(file)):
        if not file.exists():
            partial = _reserve(file, info.size)
            try:
                download(url, partial, info.size)
                os.replace(partial, file)
            finally:
                partial.unlink(missing_ok=True)
        os.utime(file)  # the time of the last use, by which shards are evicted
        yield file


def adopt(path: Path, tag: str) -> None:
    """Moves a shard that was just uploaded into the cache, as if it had been downloaded."""
    size = path.stat().st_size
    if size <= byte_limit():
        file = _file(url_of_copy(path), tag, size)
        with locked(_lock_of(file)):
            partial = _reserve(file, size)
            os.replace(path, file)
            partial.unlink()
    path.unlink(missing_ok=True)


def byte_limit() -> int:
    """Bytes that staged shards may take: `$SELFFLOW_STAGED_GB`, by default 50 GB.

    Raises:
      UserError: if it is not a positive number.
    """
    gigabytes = os.environ.get("SELFFLOW_STAGED_GB", "50")
    try:
        size = float(gigabytes) * 1e9
    except ValueError:
        size = 0
    if not 0 < size < float("inf"):
        raise UserError(f"SELFFLOW_STAGED_GB is {gigabytes!r}: give the gigabytes that shards from buckets may take")
    return int(size)


def _reserve(file: Path, size: int) -> Path:
    """Makes room for a file and reserves it by an empty file whose name holds the size."""
    if size > byte_limit():
        raise UserError(
            f"a shard has {size / 1e9:.3g} GB, more than SELFFLOW_STAGED_GB ({byte_limit() / 1e9:.3g}) allows"
        )
    while True:
        with locked(_folder() / "lock"):
            if _make_room(size):
                partial = file.with_name(f"{file.name}.partial")
                partial.touch()
                return partial
        time.sleep(0.05)  # others download as much as the limit allows: their shards can be evicted afterwards


def _make_room(size: int) -> bool:
    """Evicts the least recently used shards; returns whether `size` more bytes fit."""
    files = [path for path in _folder().iterdir() if _NAME.fullmatch(path.name)]
    free = byte_limit() - sum(_size(path) for path in files)
    for last_use, path in sorted((_last_use(path), path) for path in files):
        if free >= size:
            break
        # Without waiting: a process that waits here while it holds its own lock could wait forever.
        with _lock_of(path).open("a") as lock:
            if not try_lock(lock):
                continue  # it is being downloaded or opened
            # A shard that this run has read already will be downloaded again in the next epoch.
            if path.suffix != ".partial" and last_use > _PROCESS_START and not _warned:
                _warned.append(True)
                print(
                    f"warning: the shards of this run take more than {byte_limit() / 1e9:.3g} GB and are downloaded "
                    "again and again: set SELFFLOW_STAGED_GB to more",
                    file=sys.stderr,
                )
            for leftover in _folder().glob(f"{path.name}.partial-*"):  # left by a killed process
                leftover.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            free += _size(path)
    return free >= size


def _size(path: Path) -> int:
    """Bytes of a file, or of the file that a reservation is for."""
    return int(_NAME.fullmatch(path.name)[1])


def _last_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # its download has ended and the reservation was renamed, or it was evicted
        return time.time()


def _lock_of(path: Path) -> Path:
    return _folder() / "locks" / path.name.removesuffix(".partial")


def _file(url: str, tag: str, size: int) -> Path:
    """Named after the content, so that an object that was replaced is never taken for its predecessor."""
    return _folder() / f"{digest(f'{url} {tag}', 32)}-{size}"


def _folder() -> Path:
    return cache_folder() / "staged"
