"""Files of sample ids."""

from pathlib import Path

from selfflow.errors import UserError
from selfflow.serialization import digest


def read_ids(path: str | Path) -> set[str]:
    """The ids in a file, one on each line; empty lines do not count.

    Raises:
      UserError: if there is no such file, it is no UTF-8 text, or it holds no id.
    """
    try:
        ids = {line.strip() for line in Path(path).expanduser().read_text(encoding="utf-8").splitlines()} - {""}
    except OSError as error:
        raise UserError(
            f"the file of ids {path} cannot be read ({error.strerror}): give one with an id a line"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"the file of ids {path} is no UTF-8 text: give one with an id on each line") from error
    if not ids:
        raise UserError(f"the file of ids {path} holds none: give one with an id on each line")
    return ids


def file_hash(path: str | Path) -> str:
    """Hash of the ids in a file, whatever their order."""
    return digest("\n".join(sorted(read_ids(path))))
