"""Folders that commands read and write."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfflow.errors import UserError
from selfflow.storage.paths import url, url_of


def refuse_bucket(folder: Path, command: str) -> None:
    """Raises `UserError` where the data folder is the copy of one in a bucket, for a command that does not go there."""
    if where := url_of(folder):
        raise UserError(
            f"--data-dir {where}: `selfflow {command}` works on a disk alone: copy the folder here, and back afterwards"
        )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into: at the end it becomes `out`, after an error it goes away.

    Raises:
      UserError: if `out` is there and no empty folder, or another command writes it, or was killed while it did.
    """
    if url(out):
        raise UserError(f"--out {url(out)}: write to a local folder, and copy it into the bucket")
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is there and not empty: choose another folder, or remove this one")
    partial = out.with_name(f"{out.name}.partial")
    try:
        partial.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{partial} is there: another command writes it, or was killed: wait, or remove it") from None
    except OSError as error:
        raise UserError(f"--out {out} cannot be made ({error.strerror}): choose another folder") from None
    try:
        yield partial
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
