"""Atomic writes: a reader sees the previous file or the complete new one, never a part."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`; the file written there replaces `path` when the block ends.

    If the block raises, the temporary file is removed and `path` stays as it was. A killed process leaves it behind
    under a name that holds `.partial-`, which no reader opens.

    Example:
      with atomic_write(folder / "manifest.json") as partial:
          partial.write_text(json.dumps(manifest))

    Args:
      path: file to replace; its folder must exist.
      durable: whether content and name are on the disk on return, so that they survive a crash of the machine.
    """
    # Unique on all hosts: several processes may write the same file on a shared disk.
    partial = path.with_name(f"{path.name}.partial-{uuid.uuid4().hex[:12]}")
    try:
        yield partial
        if durable:
            sync(partial)
        os.replace(partial, path)
        if durable:
            sync(path.parent)
    finally:
        # It still exists after an error, and if it was a hard link to `path`, which renaming leaves alone.
        with suppress(OSError):
            partial.unlink()


def sync(path: Path) -> None:
    """Blocks until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
