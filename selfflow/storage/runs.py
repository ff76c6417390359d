"""Run folders in buckets: training works on a local copy whose changes are uploaded whenever something is saved.

Checkpoints are exempt: Orbax writes them to `gs://` directly, and `CheckpointUploads` sends them to `s3://`.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from selfflow.errors import UserError
from selfflow.storage.paths import bucket_url, local_path, reader_name, remove_stale_copies, url_of_copy

if TYPE_CHECKING:
    from selfflow.storage.lease import Lease

CHECKPOINTS = "checkpoints"
# The object that marks a complete checkpoint, by scheme: Orbax's own, and the one that `CheckpointUploads` sends last.
MARKS = {"gs": "commit_success.txt", "s3": "_CHECKPOINT_METADATA"}
_LEASE = "lease.json"
_LAST = "experiment.json"  # which makes a folder a run

_uploaded: dict[Path, dict[str, tuple[int, int]]] = {}
_leases: dict[Path, "Lease"] = {}


def local_copy(path: str | Path) -> Path:
    """Local read-only folder of a run.

    For a run in a bucket, a snapshot without checkpoints, which are downloaded when they are restored; it is removed
    when the process exits.
    """
    url = bucket_url(path)
    if url is None:
        return Path(path)
    folder = local_path(path, reader_name())
    remove_stale_copies()
    _download_all(url, folder, without=[f"{CHECKPOINTS}/", "tensorboard/"])
    return folder


@contextmanager
def open_for_training(path: str | Path, writes: bool = True) -> Iterator[Path]:
    """Local folder to train in; for a run in a bucket a copy, whose changes are in the bucket on exit.

    An earlier copy is removed, as the bucket is authoritative.

    Args:
      path: the run folder.
      writes: whether this process writes; the other processes of a run have read-only copies.

    Raises:
      UserError: if another process trains into this run.
    """
    url = bucket_url(path)
    if url is None or not writes:
        yield local_copy(path)
        return
    from selfflow.storage.lease import leased

    folder = local_path(path)
    with leased(f"{url}/{_LEASE}") as lease:
        shutil.rmtree(folder, ignore_errors=True)
        _download_all(url, folder, without=[f"{CHECKPOINTS}/"])
        _uploaded[folder], _leases[folder] = _files(folder), lease
        try:
            yield folder
        finally:
            try:
                upload_changes(folder)
            finally:
                del _leases[folder]


def upload_changes(folder: Path) -> None:
    """Uploads what has changed in a run folder since the last call; does nothing for a local run.

    Raises:
      UserError: if another process has taken the run over.
    """
    if folder not in _leases:
        return
    from selfflow.storage.object_store import delete_objects, upload

    _leases[folder].check()
    # experiment.json last: a folder in the bucket is a run only once its other files are there.
    url, before, now = url_of_copy(folder), _uploaded[folder], _files(folder)
    for name in sorted(now, key=lambda name: (name == _LAST, name)):
        if before.get(name) != now[name]:
            upload(folder / name, f"{url}/{name}")
            before[name] = now[name]
    removed = [name for name in before if name not in now]
    delete_objects(f"{url}/{name}" for name in removed)
    for name in removed:
        del before[name]


def checkpoint_folder(folder: Path) -> Path:
    """Absolute folder that Orbax writes the checkpoints of a run to: `gs://` for a run there, else a local one."""
    url = url_of_copy(folder)
    if url is None or not url.startswith("gs://"):
        return (folder / CHECKPOINTS).resolve()
    from etils import epath

    from selfflow.storage.object_store import client_of

    client_of(url)  # names the extra if its package is missing, and turns off the listings cache of all clients
    return epath.Path(f"{url}/{CHECKPOINTS}")


@contextmanager
def bucket_errors(folder: Path) -> Iterator[None]:
    """Explains errors of Orbax on the checkpoints of a run in `gs://`, which Orbax writes directly.

    Raises:
      UserError: naming the bucket and the permissions that are needed.
    """
    try:
        yield
    except Exception as error:
        url = url_of_copy(folder)
        if url is None or not url.startswith("gs://"):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"{url}/{CHECKPOINTS} cannot be written or listed ({reason}): the account needs the permission to, and "
            "storage.buckets.get on the bucket itself; then run the same command again"
        ) from error


def saved_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints of a run, those in its bucket included, in ascending order."""
    url = url_of_copy(folder)
    if url is None:
        # Orbax renames a local checkpoint to its step once it is complete.
        return sorted(int(path.name) for path in (folder / CHECKPOINTS).glob("*") if path.name.isdigit())
    from selfflow.storage.object_store import list_objects

    mark = MARKS[url.partition(":")[0]]
    steps = []
    for name in list_objects(f"{url}/{CHECKPOINTS}"):
        step, _, rest = name.partition("/")
        if step.isdigit() and rest == mark:
            steps.append(int(step))
    return sorted(steps)


def _download_all(url: str, folder: Path, without: list[str]) -> None:
    """Downloads a run except for the folders of these prefixes."""
    from selfflow.storage.object_store import download, list_objects

    folder.mkdir(parents=True, exist_ok=True)
    for name, info in list_objects(url).items():
        if name != _LEASE and not name.startswith(tuple(without)):
            download(f"{url}/{name}", folder / name, info.size)


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and modification time of every file that is uploaded, by its path in the folder."""
    files = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file() and not name.startswith(f"{CHECKPOINTS}/") and ".partial" not in name and name != "lock":
            status = path.stat()
            files[name] = status.st_size, status.st_mtime_ns
    return files
