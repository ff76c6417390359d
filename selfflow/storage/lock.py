"""Locks of files between processes; the kernel releases them when their holder ends, even if it is killed."""

import errno
import fcntl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# Errors of flock(2) on file systems without locks: Lustre mounted without `flock`, NFS without lockd, some FUSE mounts.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_warned: set[Path] = set()


def try_lock(file: IO, shared: bool = False, unsupported: bool = True) -> bool:
    """Locks an open file without waiting.

    On a file system without locks there is no exclusion, and a warning is printed to stderr once for each folder.

    Args:
      file: open file; the lock is held until it is closed.
      shared: whether other processes may hold a shared lock beside this one.
      unsupported: return value on a file system without locks.

    Returns:
      False if another process holds the lock.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _warn_unsupported(file, error)
        return unsupported
    return True


def _lock(file: IO) -> None:
    """Locks an open file; blocks while another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        _warn_unsupported(file, error)


def _warn_unsupported(file: IO, error: OSError) -> None:
    if error.errno not in _UNSUPPORTED:
        raise error
    folder = Path(file.name).parent
    if folder not in _warned:
        _warned.add(folder)
        print(
            f"warning: the file system of {folder} has no locks ({error.strerror}): "
            "start only one process at a time that writes there",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def locked(path: Path, task: str = "") -> Iterator[None]:
    """Holds an exclusive lock; blocks while another process holds it.

    Args:
      path: lock file, created if missing and kept afterwards.
      task: purpose of the lock; if given, waiting is announced on stderr.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The file is kept: another process may have opened it, and would lock a file that no longer has the name.
    with path.open("a", encoding="utf-8") as lock:
        if not try_lock(lock):
            if task:
                print(f"{task}: waiting for another process that does the same", file=sys.stderr, flush=True)
            _lock(lock)
        yield


def wait_for_file(path: Path, task: str) -> None:
    """Blocks until host 0 has written a file, with a line on stderr every 30 seconds.

    Args:
      path: file on a disk that the hosts share.
      task: description of the work of host 0.
    """
    announced = 0.0
    while not path.exists():
        if time.monotonic() - announced > 30:
            print(f"waiting for host 0 to {task}; it must run, too", file=sys.stderr, flush=True)
            announced = time.monotonic()
        time.sleep(0.5)
