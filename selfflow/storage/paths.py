"""`gs://` and `s3://` paths, and where the local copies of what they name lie; knows no client of any bucket."""

import atexit
import glob
import os
import re
import shutil
import socket
from functools import lru_cache
from pathlib import Path


def url(path: str | Path) -> str | None:
    """The URL that a path means, such as "gs://bucket/folder"; None for a local path.

    pathlib has made `gs:/bucket` of `gs://bucket`, and flags are parsed to paths: that is the same here.
    """
    found = re.fullmatch("(gs|s3):/+([^/]+)/*(.*?)/*", str(path))
    return f"{found[1]}://{found[2]}" + (f"/{found[3]}" if found[3] else "") if found else None


def local(path: str | Path, who: str = "own") -> Path:
    """A local path as it is, its `~` filled in; for a URL the folder of its local copy.

    Args:
      path: either.
      who: "own" for the copy that is written to; others have copies of their own beside it.
    """
    where = url(path)
    return _copies() / who / where.replace("://", "/") if where else Path(path).expanduser()


def url_of(path: Path) -> str | None:
    """The URL that a local copy is of; None for what lies elsewhere."""
    try:
        _, scheme, *rest = path.absolute().relative_to(_copies()).parts
    except ValueError:
        return None
    return f"{scheme}://{'/'.join(rest)}" if rest else None


def reader() -> str:
    """Whose the copies are that this process reads and nobody writes to."""
    return f"read-{socket.gethostname()}-{os.getpid()}"


def clear_up() -> None:
    """Removes the copies of readers that have ended, and sees to it that those of this process go with it."""
    for other in _copies().glob(f"read-{glob.escape(socket.gethostname())}-*"):
        try:
            os.kill(int(other.name.rpartition("-")[2]), 0)
        except ProcessLookupError:
            shutil.rmtree(other, ignore_errors=True)
        except (ValueError, PermissionError):
            pass
    atexit.unregister(_remove_own)
    atexit.register(_remove_own)


def _remove_own() -> None:
    shutil.rmtree(_copies() / reader(), ignore_errors=True)


def cache() -> Path:
    """Where copies are kept: `$SELFFLOW_CACHE`, else `~/.cache/selfflow`."""
    return _resolved(os.environ.get("SELFFLOW_CACHE") or "~/.cache/selfflow")


def data_folder(chosen: str | Path | None) -> Path:
    """Where data sets and latents are kept: the chosen folder, else $SELFFLOW_DATA, else ~/.cache/selfflow.

    Of a folder in a bucket it is the local copy.
    """
    return local(chosen or os.environ.get("SELFFLOW_DATA") or "~/.cache/selfflow")


def _copies() -> Path:
    return cache() / "buckets"


@lru_cache(maxsize=4)
def _resolved(path: str) -> Path:
    return Path(path).expanduser().resolve()
