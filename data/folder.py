"""A folder of the user's own as a data set: what lies in it, what it was when it was built, which file goes to which
split."""

import hashlib
import os
import stat
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from selfflow.data.report import Remark
from selfflow.errors import UserError, check_fraction
from selfflow.serialization import digest


@dataclass(frozen=True)
class FolderSettings:
    """What the settings of such data sets have in common."""

    source: str = ""
    """The folder to read, with all folders below it; hidden files are ignored."""
    name: str = ""
    """What to call the data set. With a name it is found again under that name wherever `source` lay; without
    one it is known by the path of `source`."""
    validation_fraction: float = 0.05
    """Share of the files that goes to the split `validation`."""
    test_fraction: float = 0.05
    """Share of the files that goes to the split `test`."""
    seed: int = 0
    """Chooses which files go to which split."""
    kind: ClassVar[str]
    follows: ClassVar[Collection[str]] = ()  # from the contents of the folder

    def check(self) -> None:
        """Raises UserError, which names the field, if a value makes no sense."""
        check_fraction(self, f"{self.kind}.", "validation_fraction", "test_fraction", below_one=True)
        if self.validation_fraction + self.test_fraction >= 1:
            raise UserError(
                f"{self.kind}.validation_fraction + {self.kind}.test_fraction is 1 or more; leave some for train"
            )
        if not (self.source or self.name):
            raise UserError(f"{self.kind}.source is empty; name the folder of your files, such as --source ~/files")

    def folder(self) -> str:
        """The absolute path of `source`, or "" where there is none."""
        return os.path.abspath(os.path.expanduser(self.source)) if self.source else ""

    def key(self) -> str:
        """A short hash of all that decides about the records, but for the contents of the folder."""
        settings = {name: value for name, value in asdict(self).items() if name not in self.follows}
        if self.name:
            del settings["source"]
        else:
            settings["source"] = self.folder()
        return digest(settings, 8)  # JSON escapes the bytes of paths that are not UTF-8


@dataclass(frozen=True)
class File:
    """One file: where it lies, its path below the folder with slashes, its size in bytes and time in ns."""

    path: Path
    relative: str
    size: int
    modified: int


def scan(settings: FolderSettings, without: tuple[Path, ...] = ()) -> tuple[list[File], list[Remark]]:
    """All regular files of a data set's folder in the order of their paths, and remarks on what could not be looked at.

    Hidden files and folders, and the folders in `without`, are passed over. Links are followed, each folder once.

    Raises:
      UserError: the folder is missing, is not a folder, or cannot be listed.
    """
    folder, field = Path(settings.folder()), f"{settings.kind}.source"
    if not folder.exists():
        raise UserError(f"the folder {folder} does not exist; check {field}")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; {field} must be the folder that holds your files")
    passed = {os.path.realpath(path) for path in without}
    if os.path.realpath(folder) in passed:
        raise UserError(f"{folder} is where data sets are written; keep your files in another folder")
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
    return digest(lines, 8)


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
