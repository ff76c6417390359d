"""Checkpoints in stores that Orbax cannot write to: uploaded from the local copy once they are complete."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from selfflow.storage.object_store import delete_objects, download, list_objects, move_folder, upload
from selfflow.storage.runs import MARKS, saved_steps

_MARK = MARKS["s3"]


class CheckpointUploads:
    """Uploads the checkpoints of a run's local copy in the background, and downloads those that are restored.

    Args:
      folder: local copy of the run.
      url: URL of the run.
      keep_last, keep_every: which checkpoints stay in the bucket, as for `Checkpoints`.
    """

    def __init__(self, folder: Path, url: str, keep_last: int, keep_every: int | None):
        self._folder, self._path, self._url = folder, folder / "checkpoints", f"{url}/checkpoints"
        self._keep_last, self._keep_every = keep_last, keep_every
        self._path.mkdir(parents=True, exist_ok=True)
        self._known = set(self._local_steps())  # steps that are in the bucket or on their way
        self._thread = ThreadPoolExecutor(1)
        self._jobs: list[Future] = []

    def start_new(self) -> None:
        """Starts uploading the checkpoints that have become complete; raises the error of an upload that failed."""
        for job in [job for job in self._jobs if job.done()]:
            self._jobs.remove(job)
            job.result()
        self._known &= set(self._local_steps())  # a step that was set aside may be saved again
        for step in self._local_steps():
            if step not in self._known:
                self._known.add(step)
                self._jobs.append(self._thread.submit(self._upload, step))

    def wait(self) -> None:
        """Blocks until all saved checkpoints are in the bucket."""
        self.start_new()
        while self._jobs:
            self._jobs.pop(0).result()

    def fetch(self, step: int) -> bool:
        """Downloads a checkpoint of the bucket; returns False if it exists locally."""
        if step in self._known:
            return False
        url = f"{self._url}/{step}"
        objects = list_objects(url)
        # Under another name until it is complete.
        for name in _mark_last(objects):
            download(f"{url}/{name}", self._path / f"{step}.fetched" / name, objects[name].size)
        os.replace(self._path / f"{step}.fetched", self._path / str(step))
        self._known.add(step)
        return True

    def set_aside(self, step: int, name: str) -> None:
        """Renames a checkpoint in the bucket."""
        move_folder(f"{self._url}/{step}", f"{self._url}/{name}")

    def close(self) -> None:
        """Ends the background thread."""
        self._thread.shutdown(cancel_futures=True)

    def _local_steps(self) -> list[int]:
        return sorted(int(name) for name in os.listdir(self._path) if name.isdigit())

    def _upload(self, step: int) -> None:
        url, folder = f"{self._url}/{step}", self._path / str(step)
        # Checkpoints without a mark are partial uploads of a killed process.
        complete = set(map(str, saved_steps(self._folder)))
        folders = {name.partition("/")[0] for name in list_objects(self._url)}
        for incomplete in folders - complete | {str(step)}:
            if incomplete.isdigit():
                self._delete(int(incomplete))
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        for name in _mark_last(names):
            upload(folder / name, f"{url}/{name}")
        for old in saved_steps(self._folder)[: -self._keep_last]:
            if not self._keep_every or old % self._keep_every:
                self._delete(old)

    def _delete(self, step: int) -> None:
        # The mark first, so that a deletion that is killed leaves no checkpoint that looks complete.
        url = f"{self._url}/{step}"
        names = sorted(list_objects(url), key=lambda name: (name != _MARK, name))
        delete_objects(f"{url}/{name}" for name in names)


def _mark_last(names) -> list[str]:
    return sorted(names, key=lambda name: (name == _MARK, name))
