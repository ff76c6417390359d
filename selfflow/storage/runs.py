"""Run folders in buckets: a local copy is worked on; all but checkpoints goes up from it when something is saved."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfflow.storage.paths import clear_up, local, reader, url, url_of

CHECKPOINTS = "checkpoints"
# What a checkpoint has in a bucket once it is whole: Orbax's own there, and there what `Uploads` sends last.
MARKS = {"gs": "commit_success.txt", "s3": "_CHECKPOINT_METADATA"}
_LEASE = "lease.json"
_LAST = "experiment.json"  # which makes a folder a run

_sent: dict[Path, dict[str, tuple[int, int]]] = {}
_leases: dict[Path, "Lease"] = {}


def local_copy(path: str | Path) -> Path:
    """The folder of a run that is only read; of one in a bucket a copy, as it is now, which goes with the process.

    It lacks the checkpoints, which are fetched when they are asked for.
    """
    where = url(path)
    if where is None:
        return Path(path)
    folder = local(path, reader())
    clear_up()
    _bring_all(where, folder, without=f"{CHECKPOINTS}/ tensorboard/".split())
    return folder


@contextmanager
def open_for_training(path: str | Path, writes: bool = True) -> Iterator[Path]:
    """The folder to train in; of one in a bucket a copy, and in the end everything is in the bucket.

    What a killed process left in the copy goes away: the bucket tells what the run is.

    Args:
      path: the run folder.
      writes: whether this process does; the others of a run have copies to read.

    Raises:
      UserError: if another process trains into this run.
    """
    where = url(path)
    if where is None or not writes:
        yield local_copy(path)
        return
    from selfflow.storage.lease import leased

    folder = local(path)
    with leased(f"{where}/{_LEASE}") as lease:
        shutil.rmtree(folder, ignore_errors=True)
        _bring_all(where, folder, without=[f"{CHECKPOINTS}/"])
        _sent[folder], _leases[folder] = _files(folder), lease
        try:
            yield folder
        finally:
            try:
                send_changes(folder)
            finally:
                del _leases[folder]


def send_changes(folder: Path) -> None:
    """Sends what has changed in a run folder since it was last sent; where it is no copy, does nothing.

    Raises:
      UserError: if another process has taken the run over.
    """
    if folder not in _leases:
        return
    from selfflow.storage.store import remove, send

    _leases[folder].check()
    where, before, now = url_of(folder), _sent[folder], _files(folder)
    for name in sorted(now, key=lambda name: (name == _LAST, name)):
        if before.get(name) != now[name]:
            send(folder / name, f"{where}/{name}")
            before[name] = now[name]
    gone = [name for name in before if name not in now]
    remove(f"{where}/{name}" for name in gone)
    for name in gone:
        del before[name]


def checkpoint_folder(folder: Path) -> Path:
    """Where Orbax is to write the checkpoints of a run: absolute; `gs://` it writes to itself."""
    where = url_of(folder)
    if where is None or not where.startswith("gs://"):
        return (folder / CHECKPOINTS).resolve()
    from etils import epath

    from selfflow.storage.store import client_of

    client_of(where)  # which names the extra if it is missing, and has the listings of all clients made anew
    return epath.Path(f"{where}/{CHECKPOINTS}")


def saved_steps(folder: Path) -> list[int]:
    """The steps of which a run has a whole checkpoint, be it in its bucket."""
    where = url_of(folder)
    if where is None:
        return sorted(int(path.name) for path in (folder / CHECKPOINTS).glob("*") if path.name.isdigit())
    from selfflow.storage.store import listing

    mark = MARKS[where.partition(":")[0]]
    names = (name.partition("/") for name in listing(f"{where}/{CHECKPOINTS}"))
    return sorted(int(step) for step, _, rest in names if step.isdigit() and rest == mark)


def _bring_all(where: str, folder: Path, without: list[str]) -> None:
    """Fetches a run, but for some of its folders."""
    from selfflow.storage.store import bring, listing

    folder.mkdir(parents=True, exist_ok=True)
    for name, found in listing(where).items():
        if name != _LEASE and not name.startswith(tuple(without)):
            bring(f"{where}/{name}", folder / name, found.size)


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file that goes to the bucket, by its path in the folder."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file() and not name.startswith(f"{CHECKPOINTS}/") and ".partial" not in name and name != "lock":
            status = path.stat()
            found[name] = status.st_size, status.st_mtime_ns
    return found
