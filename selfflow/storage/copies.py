"""Local copies of folders in buckets: fetched before they are worked on, sent when something was made."""

from collections.abc import Iterator
from pathlib import Path

from selfflow.serialization import digest
from selfflow.storage.paths import cache, url_of

_SHARDS = ".array_record"  # TFDS goes on after it


def fetch(folder: Path, mark: str, only: str = "") -> None:
    """Fetches what a bucket has of a folder, if it is there; where the folder is no copy, does nothing.

    Shards of records are left in the bucket, and are staged when they are read.

    Args:
      folder: a local copy.
      mark: name of the file without which a folder is unfinished; of folders in `folder`, those that have it.
      only: how the names of files begin, where not all of a folder are wanted.
    """
    url = url_of(folder)
    if url is None:
        return
    from selfflow.storage.store import bring, listing

    found = listing(url)
    whole = {name.rpartition("/")[0] for name in found if name.rpartition("/")[2] == mark}
    names = [name for name in found if name.rpartition("/")[0] in whole and name.startswith(only)]
    for name in sorted(names, key=lambda name: (name.rpartition("/")[2] == mark, name)):
        if _SHARDS not in name:
            bring(f"{url}/{name}", folder / name, found[name].size)


def publish(folder: Path, mark: str, only: str = "") -> None:
    """Sends a finished folder to its bucket, unless that has it; where the folder is no copy, does nothing.

    What the bucket has stays, and is what counts from then on. Shards that were sent become staged ones.

    Args:
      folder: a local copy.
      mark: as for `fetch`; it is sent last.
      only: how the names of files begin, where not all of the folder are meant.
    """
    url = url_of(folder)
    if url is None:
        return
    from selfflow.progress import Progress
    from selfflow.storage.staging import adopt, locked
    from selfflow.storage.store import listing, send

    with locked(cache() / "locks" / digest(f"{url} {only}", 32)):
        files = sorted(_files(folder, only), key=lambda path: (path.name == mark, path))
        found = listing(url)
        if mark not in found:
            with Progress(f"send {folder.name}", len(files), unit="file") as shown:
                for path in files:
                    send(path, f"{url}/{path.relative_to(folder)}")
                    shown.advance()
            found = listing(url)
        for path in files:
            if _SHARDS in path.name:
                there = found.get(str(path.relative_to(folder)))
                if there is not None and there.size == path.stat().st_size:
                    adopt(path, there.tag)
                else:
                    path.unlink()


def _files(folder: Path, only: str) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and path.name.startswith(only) and ".partial" not in path.name and path.name[:4] != "lock":
            yield path
