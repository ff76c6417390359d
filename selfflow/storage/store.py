"""What is asked of an object store: listings, objects in and out, retried for minutes, refused with a remedy."""

import asyncio
import errno
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from selfflow.errors import UserError
from selfflow.storage.atomic import atomic_write

_EXTRAS = {"gs": "gcs", "s3": "s3"}
_WAITS = (1, 2, 4, 8, 16, 32, 60, 60, 60)  # seconds between tries; each client tries several times on its own, too
_CLIENTS = ("aiohttp", "botocore", "aiobotocore", "s3fs", "gcsfs", "google", "requests", "urllib3", "fsspec")
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTDIR, errno.EISDIR)

Answer = TypeVar("Answer")


class Found(NamedTuple):
    """An object: its size in bytes, and what changes whenever its content does."""

    size: int
    tag: str


class Missing(Exception):
    """An object that is not there."""


class Short(Exception):
    """An object of which less comes than its size says."""


def listing(url: str) -> dict[str, Found]:
    """All objects below a folder, by their paths in it; none where there is no such folder.

    Raises:
      UserError: if there is no such bucket, it may not be listed, or it does not answer.
    """
    found = _asked(url, lambda client: client.find(url, detail=True))
    head = url.partition("://")[2] + "/"
    return {name.removeprefix(head): _found(about) for name, about in found.items() if name.startswith(head)}


def look(url: str) -> Found:
    """Size and tag of an object.

    Raises:
      Missing: it is not there.
    """
    return _found(_asked(url, lambda client: client.info(url), object_may_lack=True))


def read(url: str) -> bytes | None:
    """The content of a small object; None if there is none."""
    try:
        return _asked(url, lambda client: client.cat_file(url), object_may_lack=True)
    except Missing:
        return None


def write(url: str, content: bytes, *, fresh: bool = False) -> bool:
    """Stores a small object; where it must be `fresh` and is there, returns False."""
    try:
        _asked(url, lambda client: client.pipe_file(url, content, mode="create" if fresh else "overwrite"))
    except FileExistsError:
        return read(url) == content  # a try whose answer was lost may have stored it
    return True


def send(path: Path, url: str) -> None:
    """Stores a file as an object; as with all stores it is there whole or not at all."""
    _asked(url, lambda client: client.put_file(str(path), url))


def bring(url: str, path: Path, size: int) -> None:
    """Fetches an object; the file appears under its name when it is whole.

    Raises:
      Missing: the object is not there.
      Short: less than `size` comes, several times.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        for _ in range(3):
            _asked(url, lambda client: client.get_file(url, str(partial)), object_may_lack=True)
            if partial.stat().st_size == size:
                return
        raise Short(f"{url} has {size} bytes, but {partial.stat().st_size} come")


def remove(urls: Iterable[str]) -> None:
    """Deletes objects; those that are not there are passed over."""
    for each in urls:
        try:
            _asked(each, lambda client: client.rm_file(each), object_may_lack=True)
        except Missing:
            pass


def move(url: str, to: str) -> None:
    """Renames a folder: not at once, but copied object by object, then removed."""
    names = list(listing(url))
    for name in names:
        _asked(url, lambda client: client.cp_file(f"{url}/{name}", f"{to}/{name}"))
    remove(f"{url}/{name}" for name in names)


def _found(about: dict[str, Any]) -> Found:
    tag = about.get("generation") or about.get("ETag") or about.get("etag") or ""
    return Found(int(about["size"]), str(tag))


def _asked(url: str, call: Callable[[Any], Answer], *, object_may_lack: bool = False) -> Answer:
    """What a call on the client of a URL returns; tried again for minutes while the store does not answer."""
    client, bucket = client_of(url), "/".join(url.split("/")[:3])
    for wait in (*_WAITS, None):
        try:
            return call(client)
        except FileNotFoundError as error:
            if object_may_lack:
                raise Missing(f"{url} is not there") from error
            raise UserError(f"{bucket}: there is no such bucket: make it, or give another path") from error
        except FileExistsError:
            raise
        except Exception as error:  # each client has its own, and some of them are plain Exceptions
            reason = (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__
            if "PreconditionFailed" in reason or "ConditionalRequestConflict" in reason:
                raise FileExistsError(url) from error
            if remedy := _refused(error, reason):
                raise UserError(f"{bucket} cannot be used ({reason}): {remedy}") from error
            if not _of_the_store(error):
                raise
            if wait is None:
                raise UserError(
                    f"{bucket} has not answered for minutes ({reason}): when it does, the same command takes up what "
                    "is finished"
                ) from error
            print(f"{bucket} does not answer ({reason}); trying again in {wait} s", file=sys.stderr, flush=True)
            time.sleep(wait)
    raise AssertionError("the last try has returned or raised")


def _refused(error: Exception, reason: str) -> str | None:
    """The remedy, if an error says that credentials are missing or not enough."""
    if type(error).__name__ in ("NoCredentialsError", "DefaultCredentialsError", "PartialCredentialsError"):
        return "log in (`gcloud auth application-default login`, `aws configure`), or set the credentials' environment"
    code = getattr(error, "code", None)
    if isinstance(error, PermissionError) or code in (401, 403) or "Forbidden" in reason or "Unauthorized" in reason:
        return "log in with an account that may list, read, write and delete its objects"
    return None


def _of_the_store(error: Exception) -> bool:
    """Whether the store or the way to it failed, not this program or the local disk."""
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        return False
    known = isinstance(error, OSError | asyncio.TimeoutError)
    return known or type(error).__module__.partition(".")[0] in _CLIENTS


def client_of(url: str) -> Any:
    """The fsspec file system that a URL is asked of.

    Raises:
      UserError: if its package is not installed.
    """
    return _client(url.partition("://")[0], os.getpid())


@lru_cache(maxsize=4)
def _client(scheme: str, process: int) -> Any:
    """The fsspec file system of a scheme; each process needs its own."""
    try:
        import fsspec

        # Orbax has a client of its own; remembered listings would hide what other processes have written since.
        for name in ("gs", "gcs", "s3"):
            fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
        return fsspec.filesystem(scheme)
    except ImportError as error:
        raise UserError(
            f"{scheme}:// paths need a client: pip install 'selfflow[{_EXTRAS[scheme]}]' ({error})"
        ) from error
