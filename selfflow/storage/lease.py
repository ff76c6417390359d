"""Exclusive access to a run in a bucket: an object that its holder renews, as file locks do not reach other hosts."""

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfflow.errors import UserError
from selfflow.storage.object_store import delete_objects, read_object, write_object

_RENEWAL_SECONDS = 20.0
_EXPIRY_SECONDS = 100.0  # the lease expires after this time without a renewal


class Lease:
    """A lease of this process on the object `url`."""

    def __init__(self, url: str):
        self._url, self._holder = url, _this_process()
        self._successor: str | None = None  # the process that has taken the lease over
        self._ended, self._writing = threading.Event(), threading.Lock()

    def check(self) -> None:
        """Raises `UserError` if another process has taken the lease over."""
        if self._successor is None:
            content = _parse(read_object(self._url))
            if content is not None and content.get("holder") != self._holder["holder"]:
                self._successor = f"{content.get('host')}, process {content.get('pid')}"
        if self._successor is not None:
            raise UserError(
                f"{self._url}: {self._successor}, trains into this run now, since this process could not renew its "
                "lease: it stops here"
            )

    def renew(self) -> None:
        """Writes the lease again, unless it was taken over or released."""
        with self._writing:
            if not self._ended.is_set():
                self.check()
                self._holder["renewed"] = time.time()
                write_object(self._url, json.dumps(self._holder).encode())

    def keep(self) -> None:
        """Renews the lease until it is released; a lost lease raises at the next `check`."""
        while not self._ended.wait(_RENEWAL_SECONDS):
            try:
                self.renew()
            except Exception as error:  # renewals must continue after any error, or the lease expires
                print(f"warning: {error}", file=sys.stderr)
                if self._successor is not None:
                    return

    def acquire(self) -> None:
        """Creates the lease; one whose holder is dead is taken over, with a line on stderr.

        Raises:
          UserError: if another process holds it.
        """
        content = json.dumps(self._holder).encode()
        if write_object(self._url, content, fresh=True):
            return
        previous = self._wait_for_expiry()
        if previous is not None:
            print(
                f"{_describe(self._url, previous)} and has not renewed its lease: taking over",
                file=sys.stderr,
                flush=True,
            )
            # Unless another process has taken it over. If several processes delete it, only one can create it again.
            if read_object(self._url) == previous:
                delete_objects([self._url])
        if not write_object(self._url, content, fresh=True):
            raise UserError(f"{self._url}: another process holds the lease: wait for it, or use another --workdir")

    def _wait_for_expiry(self) -> bytes | None:
        """Returns the content of a lease that has expired; None if it was released meanwhile."""
        # Expiry is measured on this machine's clock, from the last change seen: clocks of hosts may differ.
        content, since = read_object(self._url), time.monotonic()
        announced = False
        while content is not None and not _ended_here(content) and time.monotonic() - since < _EXPIRY_SECONDS:
            if not announced:
                print(f"{_describe(self._url, content)}: waiting for its next renewal", file=sys.stderr, flush=True)
                announced = True
            time.sleep(min(2.0, _EXPIRY_SECONDS / 10))
            now = read_object(self._url)
            if now is not None and now != content:
                raise UserError(f"{_describe(self._url, now)}: wait for it, or use another --workdir")
            content = now
        return content

    def release(self) -> None:
        """Ends the lease, unless it was taken over."""
        with self._writing:
            self._ended.set()
            content = _parse(read_object(self._url))
            if content is not None and content.get("holder") == self._holder["holder"]:
                delete_objects([self._url])


@contextmanager
def leased(url: str) -> Iterator[Lease]:
    """Holds the lease that is the object `url`.

    Raises:
      UserError: if another process holds it.
    """
    lease = Lease(url)
    lease.acquire()
    threading.Thread(target=lease.keep, daemon=True).start()
    try:
        yield lease
    finally:
        lease.release()


def _this_process() -> dict[str, Any]:
    """Content of a lease of this process."""
    return {
        "holder": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "where": _namespace(),
        "renewed": time.time(),
    }


def _namespace() -> str:
    """Identity of the namespace of process ids: a boot of this machine, or a container on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex  # unknown: processes of this holder do not count as ended


def _ended_here(content: bytes) -> bool:
    """Returns whether the holder was a process of this machine that has ended, so that its lease can be taken over
    before it expires."""
    holder = _parse(content)
    if holder is None or holder.get("where") != _namespace():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, KeyError, ValueError):
        pass
    return False


def _parse(content: bytes | None) -> dict[str, Any] | None:
    """Returns the fields of a lease; None if there is none, empty if it is damaged."""
    if content is None:
        return None
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if holder is None or isinstance(holder, dict) else {}


def _describe(url: str, content: bytes) -> str:
    holder = _parse(content) or {}
    renewed = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(holder.get("renewed", 0)))
    return f"{url}: {holder.get('host')}, process {holder.get('pid')}, trains into this run (renewed {renewed})"
