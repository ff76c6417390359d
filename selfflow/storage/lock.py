"""Locks of files between processes; the kernel releases them when their holder ends, however it ends."""

import fcntl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, task: str = "") -> Iterator[None]:
    """Holds an exclusive lock; blocks while another process holds it.

    Args:
      path: lock file, created if missing and kept afterwards.
      task: what the lock is for; if given, waiting is announced on stderr.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if task:
                print(f"{task}: waiting for another process that does the same", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def wait_for_file(path: Path, task: str) -> None:
    """Blocks until host 0 has written a file, with a line on stderr every 30 seconds.

    Args:
      path: file on a disk that the hosts share.
      task: what host 0 does.
    """
    announced = 0.0
    while not path.exists():
        if time.monotonic() - announced > 30:
            print(f"waiting for host 0 to {task}; it must run, too", file=sys.stderr, flush=True)
            announced = time.monotonic()
        time.sleep(0.5)
