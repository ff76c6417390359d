"""What lies in the folder, what it was when it was built, and which file goes to which split."""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from selfflow.data.media.report import Remark
from selfflow.errors import UserError


@dataclass(frozen=True)
class File:
    """One file: where it lies, its path below the folder with slashes, its size in bytes and time in ns."""

    path: Path
    relative: str
    size: int
    modified: int


def scan(folder: Path, without: tuple[Path, ...] = ()) -> tuple[list[File], list[Remark]]:
    """All regular files below `folder` in the order of their paths, and remarks on what could not be looked at.

    Hidden files and folders, and the folders in `without`, are passed over. Links are followed, each folder once.

    Raises:
      UserError: `folder` is missing, is not a folder, or cannot be listed.
    """
    if not folder.exists():
        raise UserError(f"the folder {folder} does not exist; check media.source")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; media.source must be the folder that holds your media")
    passed = {os.path.realpath(path) for path in without}
    if os.path.realpath(folder) in passed:
        raise UserError(f"{folder} is where data sets are written; keep your media in another folder")
    files: list[File] = []
    remarks: list[Remark] = []
    seen: set[tuple[int, int]] = set()
    waiting = [(folder, "")]
    while waiting:
        current, prefix = waiting.pop()
        try:
            identity = current.stat()
            if (identity.st_dev, identity.st_ino) in seen or os.path.realpath(current) in passed:
                continue
            seen.add((identity.st_dev, identity.st_ino))
            names = sorted(os.listdir(current))
        except OSError as error:
            if not prefix:
                raise UserError(f"{folder} cannot be read: {error.strerror}; check its permissions") from error
            remarks.append(Remark(_text(prefix), "cannot be opened", error.strerror or ""))
            continue
        for name in names:
            if name.startswith("."):
                continue
            path, relative = current / name, prefix + name
            try:
                status = path.stat()
            except OSError as error:
                remarks.append(Remark(_text(relative), "cannot be opened", error.strerror or ""))
                continue
            if stat.S_ISDIR(status.st_mode):
                waiting.append((path, relative + "/"))
            elif stat.S_ISREG(status.st_mode):
                files.append(File(path, _text(relative), status.st_size, status.st_mtime_ns))
            else:  # opening a named pipe would wait for ever
                remarks.append(Remark(_text(relative), "not a regular file"))
    return sorted(files, key=lambda file: os.fsencode(file.path)), remarks


def fingerprint(files: list[File]) -> str:
    """A short hash of the paths, sizes and times of `files`."""
    lines = "".join(f"{file.relative}\0{file.size}\0{file.modified}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:8]


def position(relative: str, seed: int) -> float:
    """A number in [0, 1) that depends on a file's path and the seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{relative}".encode()).digest()[:6], "big") / 2**48


def split_of(relative: str, seed: int, validation_fraction: float, test_fraction: float) -> str:
    """The split of a file: `train`, `validation` or `test`. Other files have no influence on it."""
    place = position(relative, seed)
    if place < test_fraction:
        return "test"
    return "validation" if place < test_fraction + validation_fraction else "train"


def _text(relative: str) -> str:
    # a name that is not UTF-8 reaches Python with surrogates, which no record or JSON file can hold
    return os.fsencode(relative).decode("utf-8", "backslashreplace")
