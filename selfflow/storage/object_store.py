"""Requests to an object store: list, read, write, with retries for minutes and errors that name the remedy."""

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
_WAITS = (1, 2, 4, 8, 16, 32, 60, 60, 60)  # seconds between tries; in addition to the retries of each client
_CLIENTS = ("aiohttp", "botocore", "aiobotocore", "s3fs", "gcsfs", "google", "requests", "urllib3", "fsspec")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
_DOWNLOADS = 3

Answer = TypeVar("Answer")


class ObjectInfo(NamedTuple):
    """Size of an object in bytes, and a tag that differs between any two contents."""

    size: int
    tag: str


class MissingObject(Exception):
    """An object that does not exist."""


class IncompleteObject(Exception):
    """An object of which fewer bytes arrive than its size."""


def list_objects(url: str) -> dict[str, ObjectInfo]:
    """Returns all objects below a folder, by their paths in it; empty for a folder that does not exist.

    Raises:
      UserError: if the bucket does not exist, may not be listed, or does not answer.
    """
    objects = _request(url, lambda client: client.find(url, detail=True))
    # Clients list names as BUCKET/PATH, and a prefix also finds siblings such as FOLDER-2.
    head = url.partition("://")[2] + "/"
    return {name.removeprefix(head): _info(facts) for name, facts in objects.items() if name.startswith(head)}


def object_info(url: str) -> ObjectInfo:
    """Size and tag of an object.

    Raises:
      MissingObject: if it does not exist.
    """
    return _info(_request(url, lambda client: client.info(url), may_be_missing=True))


def read_object(url: str) -> bytes | None:
    """Returns the content of a small object; None if it does not exist."""
    try:
        return _request(url, lambda client: client.cat_file(url), may_be_missing=True)
    except MissingObject:
        return None


def write_object(url: str, content: bytes, *, fresh: bool = False) -> bool:
    """Writes a small object.

    Returns:
      False if it must be `fresh` and exists with other content, else True.
    """
    try:
        _request(url, lambda client: client.pipe_file(url, content, mode="create" if fresh else "overwrite"))
    except FileExistsError:
        return read_object(url) == content  # an earlier try may have written it and lost its answer
    return True


def upload(path: Path, url: str) -> None:
    """Writes a file to an object, which stores make visible when it is complete."""
    _request(url, lambda client: client.put_file(str(path), url))


def download(url: str, path: Path, size: int) -> None:
    """Writes an object to a file, which gets its name when it is complete.

    Raises:
      MissingObject: if the object does not exist.
      IncompleteObject: if fewer than `size` bytes arrive, several times.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        for _ in range(_DOWNLOADS):
            _request(url, lambda client: client.get_file(url, str(partial)), may_be_missing=True)
            if partial.stat().st_size == size:
                return
        raise IncompleteObject(f"{url} has {size} bytes, but {partial.stat().st_size} arrive")


def delete_objects(urls: Iterable[str]) -> None:
    """Deletes objects; ignores those that do not exist."""
    for url in urls:
        try:
            _request(url, lambda client: client.rm_file(url), may_be_missing=True)
        except MissingObject:
            pass


def move_folder(url: str, target: str) -> None:
    """Copies a folder object by object, then deletes the originals: this is not atomic."""
    names = list(list_objects(url))
    for name in names:
        _request(url, lambda client: client.cp_file(f"{url}/{name}", f"{target}/{name}"))
    delete_objects(f"{url}/{name}" for name in names)


def _info(facts: dict[str, Any]) -> ObjectInfo:
    # gs:// numbers generations; s3:// has ETags, which its clients spell in two ways.
    tag = facts.get("generation") or facts.get("ETag") or facts.get("etag") or ""
    return ObjectInfo(int(facts["size"]), str(tag))


def _request(url: str, call: Callable[[Any], Answer], *, may_be_missing: bool = False) -> Answer:
    """Returns the result of a call on the client of a URL; retried for minutes while the store does not answer."""
    client, bucket = client_of(url), "/".join(url.split("/")[:3])
    for wait in (*_WAITS, None):
        try:
            return call(client)
        except FileNotFoundError as error:
            if may_be_missing:
                raise MissingObject(f"{url} does not exist") from error
            raise UserError(f"{bucket}: no such bucket: create it, or give another path") from error
        except FileExistsError:
            raise
        except Exception as error:  # each client has its own classes, and some raise plain Exceptions
            reason = (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__
            # Answers to a conditional write of an object that exists.
            if "PreconditionFailed" in reason or "ConditionalRequestConflict" in reason:
                raise FileExistsError(url) from error
            remedy = _credentials_remedy(error, reason)
            if remedy:
                raise UserError(f"{bucket} cannot be used ({reason}): {remedy}") from error
            if not _is_store_error(error):
                raise
            if wait is None:
                raise UserError(
                    f"{bucket} has not answered for minutes ({reason}): run the same command again when it does; it "
                    "resumes"
                ) from error
            print(f"{bucket} does not answer ({reason}); trying again in {wait} s", file=sys.stderr, flush=True)
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _credentials_remedy(error: Exception, reason: str) -> str | None:
    """Returns the remedy if credentials are missing or insufficient, else None."""
    if type(error).__name__ in ("NoCredentialsError", "DefaultCredentialsError", "PartialCredentialsError"):
        return "log in (`gcloud auth application-default login`, `aws configure`), or set the credentials' environment"
    code = getattr(error, "code", None)
    if isinstance(error, PermissionError) or code in (401, 403) or "Forbidden" in reason or "Unauthorized" in reason:
        return "log in with an account that may list, read, write and delete its objects"
    return None


def _is_store_error(error: Exception) -> bool:
    """Returns whether the store or the network failed, and not this program or the local disk."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return False
    known = isinstance(error, OSError | asyncio.TimeoutError)
    return known or type(error).__module__.partition(".")[0] in _CLIENTS


def client_of(url: str) -> Any:
    """Returns the fsspec file system for a URL.

    Raises:
      UserError: if its package is not installed.
    """
    return _client(url.partition("://")[0], os.getpid())


@lru_cache(maxsize=4)
def _client(scheme: str, process: int) -> Any:
    """Returns the fsspec file system of a scheme; each process needs its own."""
    try:
        import fsspec

        # For the client of Orbax, too: cached listings would hide what other processes have written since.
        for name in ("gs", "gcs", "s3"):
            fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
        return fsspec.filesystem(scheme)
    except ImportError as error:
        raise UserError(
            f"{scheme}:// paths need a client: pip install 'selfflow[{_EXTRAS[scheme]}]' ({error})"
        ) from error
