"""`gs://` and `s3://` paths and their local copies; imports no client of an object store."""

import atexit
import glob
import os
import re
import shutil
import socket
from functools import lru_cache
from pathlib import Path

from selfflow.errors import UserError


def bucket_url(path: str | Path) -> str | None:
    """Returns the URL of a path in a bucket, such as "gs://bucket/folder"; None for a local path.

    pathlib collapses `gs://bucket` to `gs:/bucket`, and flags are parsed to paths: both forms are accepted.
    """
    match = re.fullmatch("(gs|s3):/+([^/]+)/*(.*?)/*", str(path))
    if match is None:
        return None
    scheme, bucket, name = match.groups()
    return f"{scheme}://{bucket}/{name}" if name else f"{scheme}://{bucket}"


def local_path(path: str | Path, owner: str = "own") -> Path:
    """Returns a local path with `~` expanded; for a URL the folder of its local copy.

    Args:
      path: local path or URL.
      owner: "own" for the copy that is written to; readers have copies of their own, see `reader_name`.
    """
    url = bucket_url(path)
    return _copies() / owner / url.replace("://", "/") if url else Path(path).expanduser()


def url_of_copy(path: Path) -> str | None:
    """Returns the URL that a local copy mirrors; None for other local paths."""
    try:
        _, scheme, *rest = path.absolute().relative_to(_copies()).parts
    except (ValueError, UserError):  # it lies elsewhere; without a home folder there are no copies
        return None
    return f"{scheme}://{'/'.join(rest)}" if rest else None


def reader_name() -> str:
    """Name of the folder of read-only copies of this process."""
    return f"read-{socket.gethostname()}-{os.getpid()}"


def remove_stale_copies() -> None:
    """Removes the copies of readers that have ended, and registers those of this process for removal at its exit."""
    for other in _copies().glob(f"read-{glob.escape(socket.gethostname())}-*"):
        # Signal 0 tests only whether the process exists; one of another user raises PermissionError.
        try:
            os.kill(int(other.name.rpartition("-")[2]), 0)
        except ProcessLookupError:
            shutil.rmtree(other, ignore_errors=True)
        except (ValueError, PermissionError):
            pass
    # Registered once, however often this is called.
    atexit.unregister(_remove_own)
    atexit.register(_remove_own)


def _remove_own() -> None:
    shutil.rmtree(_copies() / reader_name(), ignore_errors=True)


def cache_folder() -> Path:
    """Folder of local copies: `$SELFFLOW_CACHE`, else `~/.cache/selfflow`."""
    folder = os.environ.get("SELFFLOW_CACHE")
    return _resolved(folder) if folder else _default_folder("SELFFLOW_CACHE")


def data_folder(folder: str | Path | None) -> Path:
    """Folder of data sets and latents: `folder`, else $SELFFLOW_DATA, else ~/.cache/selfflow.

    For a folder in a bucket, its local copy.
    """
    folder = folder or os.environ.get("SELFFLOW_DATA")
    return local_path(folder) if folder else _default_folder("SELFFLOW_DATA")


def _default_folder(variable: str) -> Path:
    """~/.cache/selfflow.

    Raises:
      UserError: if the user has no home folder, naming the variable that sets another folder.
    """
    try:
        return _resolved(str(Path("~/.cache/selfflow").expanduser()))
    except RuntimeError as error:  # HOME is not set, and the user is not in the password database
        raise UserError(f"~/.cache/selfflow: this user has no home folder; set {variable} to another folder") from error


def _copies() -> Path:
    return cache_folder() / "buckets"


@lru_cache(maxsize=4)
def _resolved(path: str) -> Path:
    return Path(path).expanduser().resolve()
