"""Local copies of finished folders in buckets: downloaded before use, uploaded once they are complete."""

from collections.abc import Iterator
from pathlib import Path

from selfflow.progress import Progress
from selfflow.serialization import digest
from selfflow.storage.lock import locked
from selfflow.storage.paths import cache_folder, url_of_copy

_SHARDS = ".array_record"  # TFDS appends -00000-of-00003


def fetch_folder(folder: Path, mark: str, only: str = "") -> None:
    """Downloads the finished folders at and below a local copy; does nothing for other local folders.

    Shards of records stay in the bucket and are staged when they are read.

    Args:
      folder: local copy of a folder in a bucket.
      mark: name of the file that only finished folders have; it is downloaded last.
      only: prefix of the names to download.
    """
    url = url_of_copy(folder)
    if url is None:
        return
    # Here and below: clients of object stores are imported where a bucket is used, not before.
    from selfflow.storage.object_store import download, list_objects

    objects = list_objects(url)
    finished = {name.rpartition("/")[0] for name in objects if name.rpartition("/")[2] == mark}
    names = [name for name in objects if name.rpartition("/")[0] in finished and name.startswith(only)]
    # The mark last, so that a killed download leaves no folder that looks finished.
    for name in sorted(names, key=lambda name: (name.rpartition("/")[2] == mark, name)):
        if _SHARDS not in name:
            download(f"{url}/{name}", folder / name, objects[name].size)


def publish_folder(folder: Path, mark: str, only: str = "") -> None:
    """Uploads a finished local copy unless the bucket has it; does nothing for other local folders.

    The bucket's version takes precedence over the local one. Uploaded shards become staged ones.

    Args:
      folder: local copy of a folder in a bucket.
      mark: as for `fetch_folder`; it is uploaded last.
      only: prefix of the names to upload.
    """
    url = url_of_copy(folder)
    if url is None:
        return
    from selfflow.storage.object_store import list_objects, upload
    from selfflow.storage.staging import adopt

    with locked(cache_folder() / "locks" / digest(f"{url} {only}", 32)):
        files = sorted(_files(folder, only), key=lambda path: (path.name == mark, path))
        objects = list_objects(url)
        if mark not in objects:
            with Progress(f"send {folder.name}", len(files), unit="file") as shown:
                for path in files:
                    upload(path, f"{url}/{path.relative_to(folder)}")
                    shown.advance()
            objects = list_objects(url)
        # Shards move to the cache, which evicts them; a shard that differs from the bucket's is downloaded when read.
        for path in files:
            if _SHARDS not in path.name:
                continue
            info = objects.get(str(path.relative_to(folder)))
            if info is not None and info.size == path.stat().st_size:
                adopt(path, info.tag)
            else:
                path.unlink()


def _files(folder: Path, only: str) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and path.name.startswith(only) and ".partial" not in path.name and path.name[:4] != "lock":
            yield path
