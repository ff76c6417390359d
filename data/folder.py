"""Data sets made of a folder of the user's files: their settings, the files in the folder and the splits."""

import hashlib
import os
import stat
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

from selfflow.data.dataset import Dataset
from selfflow.data.report import Remark
from selfflow.errors import UserError, check_fraction
from selfflow.serialization import digest


@dataclass(frozen=True)
class FolderSettings(Dataset):
    """Settings shared by all data sets made of a folder."""

    source: str = ""
    """The folder to read, with all folders below it; hidden files are ignored."""
    name: str = ""
    """Name of the data set. With a name, the data set is identified by it wherever `source` is; without one, by the
    path of `source`."""
    validation_fraction: float = 0.05
    """Share of the files in the split `validation`."""
    test_fraction: float = 0.05
    """Share of the files in the split `test`."""
    seed: int = 0
    """Seed of the splits."""
    derived: ClassVar[Collection[str]] = ()
    """Fields that are filled in from the contents of the folder."""

    def check(self) -> None:
        """Raises UserError, which names the field, if a value is invalid."""
        check_fraction(self, f"{self.kind}.", "validation_fraction", "test_fraction", below_one=True)
        if self.validation_fraction + self.test_fraction >= 1:
            raise UserError(
                f"{self.kind}.validation_fraction + {self.kind}.test_fraction is 1 or more; leave a share for train"
            )
        if not (self.source or self.name):
            raise UserError(f"{self.kind}.source is empty; name the folder of your files, such as --source ~/files")

    def folder(self) -> str:
        """Returns the absolute path of `source`, or "" if it is empty."""
        return os.path.abspath(os.path.expanduser(self.source)) if self.source else ""

    def resolved(self, previous: Self | None = None) -> Self:
        """Returns a copy with the absolute path of `source`, which holds in any working directory."""
        del previous
        return replace(self, source=self.folder())

    def source_folder(self, data_dir: Path) -> str:
        """Returns the folder of the user's files."""
        return self.source

    def contents(self, data_dir: Path) -> "tuple[list[File], list[Remark]]":
        """Returns the files whose paths, sizes and times identify the contents of the folder, and remarks on others.

        Raises:
          UserError: the folder is missing, is not a folder, or cannot be listed.
        """
        raise NotImplementedError

    def source_changed(self, folder: Path) -> bool:
        source = Path(self.folder())
        if not self.source or not source.exists():
            return False
        data_dir = folder.parents[2]  # data_dir/KIND/CONFIG/VERSION; CONFIG ends with the fingerprint of the contents
        return not folder.parent.name.endswith(f"-{fingerprint(self.contents(data_dir)[0])}")

    def key(self) -> str:
        """Returns a short hash of all settings that change a record. The contents of the folder have a hash of their
        own."""
        settings = {name: value for name, value in asdict(self).items() if name not in self.derived}
        # With a name the data set is the same wherever its folder is.
        if self.name:
            del settings["source"]
        else:
            settings["source"] = self.folder()
        return digest(settings, 8)  # JSON escapes bytes of paths that are not UTF-8


@dataclass(frozen=True)
class File:
    """A file in the folder.

    Attributes:
      path: path of the file.
      relative: path below the folder, with slashes.
      size: size in bytes.
      modified: time of the last change, ns.
    """

    path: Path
    relative: str
    size: int
    modified: int


def scan(settings: FolderSettings, excluded: tuple[Path, ...] = ()) -> tuple[list[File], list[Remark]]:
    """Returns all regular files of a data set's folder in the order of their paths, and remarks on what cannot be
    opened.

    Hidden files and folders, and the `excluded` folders, are left out. Links are followed, each folder once.

    Raises:
      UserError: the folder is missing, is not a folder, or cannot be listed.
    """
    folder, field = Path(settings.folder()), f"{settings.kind}.source"
    if not folder.exists():
        raise UserError(f"the folder {folder} does not exist; check {field}")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; {field} must be the folder that holds your files")
    excluded_paths = {os.path.realpath(path) for path in excluded}
    if os.path.realpath(folder) in excluded_paths:
        raise UserError(f"{folder} is where data sets are written; keep your files in another folder")
    files: list[File] = []
    remarks: list[Remark] = []
    visited: set[tuple[int, int]] = set()
    pending = [(folder, "")]
    while pending:
        current, prefix = pending.pop()
        try:
            identity = current.stat()
            # A link may point to a folder that was visited, or form a loop.
            if (identity.st_dev, identity.st_ino) in visited or os.path.realpath(current) in excluded_paths:
                continue
            visited.add((identity.st_dev, identity.st_ino))
            names = sorted(os.listdir(current))
        except OSError as error:
            # The folder itself must be readable; one below it is only reported.
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
                pending.append((path, relative + "/"))
            elif stat.S_ISREG(status.st_mode):
                files.append(File(path, _text(relative), status.st_size, status.st_mtime_ns))
            else:  # opening a named pipe would block
                remarks.append(Remark(_text(relative), "not a regular file"))
    return sorted(files, key=lambda file: os.fsencode(file.path)), remarks


def fingerprint(files: list[File]) -> str:
    """Returns a short hash of the paths, sizes and times of `files`."""
    lines = "".join(f"{file.relative}\0{file.size}\0{file.modified}\n" for file in files)
    return digest(lines, 8)


def position(relative: str, seed: int) -> float:
    """Returns a number in [0, 1) that depends on a file's path and the seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{relative}".encode()).digest()[:6], "big") / 2**48


def split_of(relative: str, seed: int, validation_fraction: float, test_fraction: float) -> str:
    """Returns the split of a file: `train`, `validation` or `test`. It does not depend on other files."""
    value = position(relative, seed)
    if value < test_fraction:
        return "test"
    return "validation" if value < test_fraction + validation_fraction else "train"


def _text(relative: str) -> str:
    # A name that is not UTF-8 reaches Python with surrogates, which no record or JSON file can hold.
    return os.fsencode(relative).decode("utf-8", "backslashreplace")
