"""Files and folders of results: their names, and the settings that they were computed with."""

import json
from pathlib import Path
from typing import Any

from selfflow.errors import UserError
from selfflow.storage.paths import url_of_copy

SETTINGS = "samples.json"
"""File in a folder of samples with the settings that they were drawn with."""


def refuse_bucket(folder: Path, command: str) -> None:
    """Raises `UserError` if a data folder is the local copy of one in a bucket.

    Args:
      folder: the data folder.
      command: a command that supports local disks only.
    """
    bucket = url_of_copy(folder)
    if bucket:
        raise UserError(
            f"--data-dir {bucket}: `selfflow {command}` works on a local disk: copy the folder to one, and back "
            "afterwards"
        )


def name_of_context(context: tuple[str, ...]) -> str:
    """The part of a file name for the flag `--context`, such as "_video" or "_prefix-0.5"; empty without context."""
    return "".join(f"_{text.partition('=')[0].replace(':', '-')}" for text in context)


def unused_path(path: Path, settings: dict[str, Any]) -> Path:
    """The first of path, path-2, path-3, ... that does not exist or was written with the same settings.

    Args:
      path: a folder, whose settings are in its file `SETTINGS`, or a JSON file with them.
      settings: settings as JSON data.

    Raises:
      UserError: if 999 paths with other settings exist.
    """
    for number in range(1, 1000):
        candidate = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        file = candidate if candidate.suffix else candidate / SETTINGS
        if not candidate.exists() or not _differences(file, settings):
            return candidate
    raise UserError(f"{path} and 998 others exist: choose another --out")


def claim_path(path: Path, settings_file: Path, settings: dict[str, Any]) -> Path:
    """Checks that a path has no results of other settings, and makes its parent folder.

    Args:
      path: a file or a folder to write.
      settings_file: file of its settings.
      settings: settings as JSON data.

    Raises:
      UserError: naming a setting that differs.
    """
    exists = path.exists() and (path.is_file() or any(path.iterdir()))
    differences = _differences(settings_file, settings) if exists else {}
    if differences:
        name, (before, now) = next(iter(differences.items()))
        raise UserError(f"--out {path} exists, with another {name} ({before!r}, now {now!r}): choose another")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _differences(file: Path, settings: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ from those in a file: {name: (in the file, now)}. An unreadable file has none."""
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    return {name: (before.get(name), value) for name, value in settings.items() if before.get(name) != value}
