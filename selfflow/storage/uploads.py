"""Checkpoints in buckets that Orbax cannot write to: sent from the local copy when they are whole."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from selfflow.storage.runs import MARKS, saved_steps
from selfflow.storage.store import bring, listing, move, remove, send

_MARK = MARKS["s3"]


class Uploads:
    """Sends the checkpoints of a run's local copy in the background, and fetches those that are asked for.

    Args:
      folder: the local copy of the run.
      url: of the run.
      keep_last, keep_every: which checkpoints stay in the bucket, as `Checkpoints` has it.
    """

    def __init__(self, folder: Path, url: str, keep_last: int, keep_every: int | None):
        self._folder, self._path, self._url = folder, folder / "checkpoints", f"{url}/checkpoints"
        self._keep_last, self._keep_every = keep_last, keep_every
        self._path.mkdir(parents=True, exist_ok=True)
        self._known = set(self._local())
        self._thread = ThreadPoolExecutor(1)
        self._jobs: list[Future] = []

    def follow(self) -> None:
        """Starts sending what has been saved whole since; raises what went wrong with what was being sent."""
        for job in [job for job in self._jobs if job.done()]:
            self._jobs.remove(job)
            job.result()
        self._known &= set(self._local())  # what was put aside may be saved anew
        for step in self._local():
            if step not in self._known:
                self._known.add(step)
                self._jobs.append(self._thread.submit(self._send, step))

    def wait(self) -> None:
        """Returns once all that was saved is in the bucket."""
        self.follow()
        while self._jobs:
            self._jobs.pop(0).result()

    def fetch(self, step: int) -> bool:
        """Makes a checkpoint of the bucket a local one; False where it is one already."""
        if step in self._known:
            return False
        where = f"{self._url}/{step}"
        found = listing(where)
        for name in sorted(found, key=lambda name: (name == _MARK, name)):
            bring(f"{where}/{name}", self._path / f"{step}.fetched" / name, found[name].size)
        os.replace(self._path / f"{step}.fetched", self._path / str(step))
        self._known.add(step)
        return True

    def put_aside(self, step: int, name: str) -> None:
        """Gives a checkpoint of the bucket another name."""
        move(f"{self._url}/{step}", f"{self._url}/{name}")

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _local(self) -> list[int]:
        return sorted(int(name) for name in os.listdir(self._path) if name.isdigit())

    def _send(self, step: int) -> None:
        where, folder = f"{self._url}/{step}", self._path / str(step)
        steps = saved_steps(self._folder)
        there = {name.partition("/")[0] for name in listing(self._url)}
        for half in there - set(map(str, steps)) | {str(step)}:
            if half.isdigit():
                self._remove(int(half))  # of a process that was killed while it was sent
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        for name in sorted(names, key=lambda name: (name == _MARK, name)):
            send(folder / name, f"{where}/{name}")
        steps = saved_steps(self._folder)
        for old in steps[: -self._keep_last]:
            if not self._keep_every or old % self._keep_every:
                self._remove(old)

    def _remove(self, step: int) -> None:
        where = f"{self._url}/{step}"
        names = sorted(listing(where), key=lambda name: (name != _MARK, name))
        remove(f"{where}/{name}" for name in names)
