"""Names of output files and folders, and checks of the settings of existing results."""

import json
from pathlib import Path
from typing import Any

from selfflow.errors import UserError
from selfflow.storage.paths import url_of_copy

SETTINGS = "samples.json"
"""File with the settings of the samples in a folder."""


def refuse_bucket(folder: Path, command: str) -> None:
    """Raises `UserError` if a data folder is the local copy of one in a bucket.

    Args:
      folder: the data folder.
      command: name of the command, which supports only local disks.
    """
    bucket = url_of_copy(folder)
    if bucket:
        raise UserError(
            f"--data-dir {bucket}: `selfflow {command}` works on a local disk: copy the folder to one, and back "
            "afterwards"
        )


def name_of_context(context: tuple[str, ...]) -> str:
    """Returns the suffix of a file name for `--context`, such as "_video" or "_prefix-0.5"; empty without context."""
    return "".join(f"_{text.partition('=')[0].replace(':', '-')}" for text in context)


def unused_path(path: Path, settings: dict[str, Any]) -> Path:
    """Returns the first of path, path-2, path-3, ... that does not exist or was written with the same settings.

    Args:
      path: a folder with its settings in the file `SETTINGS`, or a JSON file that contains its settings.
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
    """Checks that a path has no results with other settings, and creates its parent folder.

    Args:
      path: output file or folder.
      settings_file: file that contains the settings of existing results.
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
    """Returns the settings that differ from a file, {name: (in the file, now)}; an unreadable file has no settings."""
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    return {name: (before.get(name), value) for name, value in settings.items() if before.get(name) != value}
