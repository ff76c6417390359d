"""Who trains into a run in a bucket: an object that its holder renews, since no lock of a disk reaches other hosts."""

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
from selfflow.storage.store import read, remove, write

_RENEWED = 20.0  # seconds between renewals
_DEAD = 100.0  # seconds without one after which the holder is taken to be gone


class Lease:
    """A lease that is held; `check` tells whether it still is."""

    def __init__(self, url: str):
        self._url, self._told = url, _about_this_process()
        self._lost: str | None = None
        self._ended, self._writing = threading.Event(), threading.Lock()

    def check(self) -> None:
        """Raises `UserError` if another process has taken the lease over."""
        if self._lost is None:
            found = _parsed(read(self._url))
            if found is not None and found.get("holder") != self._told["holder"]:
                self._lost = f"{found.get('host')}, process {found.get('pid')}"
        if self._lost is not None:
            raise UserError(
                f"{self._url}: {self._lost}, trains into this run now, since this process could not renew its lease: "
                "it stops here"
            )

    def renew(self) -> None:
        """Writes the lease anew, unless it was taken over or given back."""
        with self._writing:
            if not self._ended.is_set():
                self.check()
                self._told["renewed"] = time.time()
                write(self._url, json.dumps(self._told).encode())

    def keep(self) -> None:
        """Renews the lease until it is given back; what goes wrong shows at the next `check`."""
        while not self._ended.wait(_RENEWED):
            try:
                self.renew()
            except Exception as error:  # whatever it was, without a renewal another process takes this run over
                print(f"warning: {error}", file=sys.stderr)
                if self._lost is not None:
                    return

    def take(self) -> None:
        """Takes the lease; one whose holder is gone is taken over, which is told.

        Raises:
          UserError: if another process holds it.
        """
        if write(self._url, json.dumps(self._told).encode(), fresh=True):
            return
        seen, since = read(self._url), time.monotonic()
        while seen is not None and not _ended_here(seen) and time.monotonic() - since < _DEAD:
            if since + 1 > time.monotonic():
                print(f"{_described(self._url, seen)}: watching whether it lives", file=sys.stderr, flush=True)
            time.sleep(min(2.0, _DEAD / 10))
            now = read(self._url)
            if now is not None and now != seen:
                raise UserError(f"{_described(self._url, now)}: wait for it, or use another --workdir")
            seen = now
        if seen is not None:
            print(f"{_described(self._url, seen)} and is gone: taking over", file=sys.stderr, flush=True)
            if read(self._url) == seen:
                remove([self._url])
        if not write(self._url, json.dumps(self._told).encode(), fresh=True):
            raise UserError(f"{self._url}: another process was faster: wait for it, or use another --workdir")

    def give_back(self) -> None:
        """Ends the lease, unless it was taken over."""
        with self._writing:
            self._ended.set()
            found = _parsed(read(self._url))
            if found is not None and found.get("holder") == self._told["holder"]:
                remove([self._url])


@contextmanager
def leased(url: str) -> Iterator[Lease]:
    """Holds the lease that is the object `url`.

    Raises:
      UserError: if another process holds it.
    """
    lease = Lease(url)
    lease.take()
    threading.Thread(target=lease.keep, daemon=True).start()
    try:
        yield lease
    finally:
        lease.give_back()


def _about_this_process() -> dict[str, Any]:
    told = {"holder": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "where": _where()}
    return told | {"renewed": time.time()}


def _where() -> str:
    """Names what the number of a process is unique in: this start of this machine, or a container on it."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex  # not to be told apart: nobody is taken to have ended here


def _ended_here(content: bytes) -> bool:
    told = _parsed(content)
    if told is None or told.get("where") != _where():
        return False
    try:
        os.kill(int(told["pid"]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, KeyError, ValueError):
        pass
    return False


def _parsed(content: bytes | None) -> dict[str, Any] | None:
    try:
        told = json.loads(content) if content is not None else None
    except ValueError:
        return {}
    return told if told is None or isinstance(told, dict) else {}


def _described(url: str, content: bytes) -> str:
    told = _parsed(content) or {}
    renewed = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(told.get("renewed", 0)))
    return f"{url}: {told.get('host')}, process {told.get('pid')}, trains into this run (renewed {renewed})"
