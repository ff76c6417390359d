"""Folders that commands read and write."""

from pathlib import Path

from selfflow.errors import UserError
from selfflow.storage.paths import url_of_copy


def refuse_bucket(folder: Path, command: str) -> None:
    """Raises `UserError` where the data folder is the copy of one in a bucket, for a command that does not go there."""
    if where := url_of_copy(folder):
        raise UserError(
            f"--data-dir {where}: `selfflow {command}` works on a disk alone: copy the folder here, and back afterwards"
        )
