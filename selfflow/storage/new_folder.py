"""A folder that appears under its name once it is complete."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfflow.errors import UserError
from selfflow.storage.paths import bucket_url


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `out`, which is renamed to `out` at the end and removed after an error.

    Raises:
      UserError: if `out` exists and is not an empty folder, or if another command writes it or was killed doing so.
    """
    if bucket_url(out):
        raise UserError(f"--out {bucket_url(out)}: write to a local folder and copy it into the bucket")
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not empty: choose another folder or remove it")
    # On the same file system, so that it can be renamed; mkdir is atomic and excludes a second command.
    partial = out.with_name(f"{out.name}.partial")
    try:
        partial.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{partial} exists: another command writes it or was killed; wait, or remove it") from None
    except OSError as error:
        raise UserError(f"--out {out} cannot be created ({error.strerror}): choose another folder") from None
    try:
        yield partial
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
