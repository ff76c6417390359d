"""Ids of samples: text form, files, arrays and hashes.

The text form of an id is the id itself, or a JSON string in double quotes if the id could be misread: if it is empty,
has surrounding blanks, begins with a double quote, or contains control characters, line or paragraph separators, or a
byte order mark. A file of ids has one text form on each line.
"""

import json
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from selfflow.errors import UserError
from selfflow.serialization import digest

_QUOTED_CATEGORIES = {"Cc", "Zl", "Zp", "Cs"}  # control characters, line and paragraph separators, surrogates
_BYTE_ORDER_MARK = "\ufeff"
_SHOWN_IDS = 5


def format_id(id: str) -> str:
    """Returns the text form of an id: one line, unique for each id."""
    is_plain = id and id == id.strip() and not id.startswith('"') and _BYTE_ORDER_MARK not in id
    if is_plain and not any(unicodedata.category(character) in _QUOTED_CATEGORIES for character in id):
        return id
    return json.dumps(id)


def format_ids(ids: Collection[str]) -> str:
    """Returns the text forms of the first few ids in order, followed by "..." if there are more."""
    shown = [format_id(id) for id in sorted(ids)[:_SHOWN_IDS]]
    return ", ".join(shown) + (", ..." if len(ids) > _SHOWN_IDS else "")


def read_ids(path: str | Path) -> set[str]:
    """Reads a UTF-8 file with one id per line, with or without a byte order mark.

    Lines end with LF or CRLF; other separators and blanks belong to the id. A line that begins with a double quote is a
    JSON string. Blank lines are ignored.

    Raises:
      UserError: if the file cannot be read, a line is not UTF-8 or is a damaged JSON string, or the file holds no id.
    """
    where = f"the file of ids {path}"
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror}): give one with an id on each line") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{where} is UTF-16, not UTF-8 text: convert it (iconv -f UTF-16 -t UTF-8)")
    ids = set()
    for number, line in enumerate(content.removeprefix(_BYTE_ORDER_MARK.encode()).split(b"\n"), start=1):
        id = _parse_line(line.removesuffix(b"\r"), f"{where}, line {number}")
        if id is not None:
            ids.add(id)
    if not ids:
        raise UserError(f"{where} has no ids: give one with an id on each line")
    return ids


def _parse_line(line: bytes, where: str) -> str | None:
    """Returns the id on a line; None if the line is blank."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: {line[:60]!r} is not UTF-8 text: write ids as `selfflow data ids` does") from error
    if "\0" in text:
        raise UserError(f"{where}: {text[:60]!r} has a NUL character: give UTF-8 text, not UTF-16")
    if not text.startswith('"'):
        return text if text.strip() else None
    try:
        id = json.loads(text)
        id.encode("utf-8")  # ids hold no surrogates
    except ValueError as error:
        raise UserError(
            f"{where}: {text[:60]} begins with a double quote but is no JSON string: write ids as `selfflow data ids` "
            "does"
        ) from error
    return id


def hash_ids(ids: Collection[str], length: int = 16) -> str:
    """Returns the hash of a set of ids, independent of their order."""
    return digest("\n".join(sorted(map(format_id, ids))), length)


def hash_id(id: str) -> str:
    """Returns the hash of one id, as in records of deletions."""
    return hash_ids((id,))


def deleted_ids(ids: Collection[str], deletions: Iterable[Mapping[str, Any]]) -> set[str]:
    """Returns the ids that deletions have removed.

    Args:
      ids: the ids.
      deletions: entries of `deleted.json` or of the manifests of latents.
    """
    hashes: set[str] = set()
    for entry in deletions:
        hashes.update(entry.get("hashes", ()))
    return {id for id in ids if hash_id(id) in hashes} if hashes else set()


def check_excluded(
    path: str, excluded: Collection[str], present: Collection[str], deletions: Iterable[Mapping[str, Any]]
) -> set[str]:
    """Returns the excluded ids that are no longer in the data because they were deleted.

    Args:
      path: the file of the excluded ids.
      excluded: the ids.
      present: ids of all data sets of the mixture, or at least the excluded ids among them.
      deletions: deletions from these data sets.

    Raises:
      UserError: if an id is in no data set and was not deleted from any.
    """
    absent = set(excluded).difference(present)
    earlier = deleted_ids(absent, deletions)
    unmatched = absent - earlier
    if unmatched:
        raise UserError(
            f"exclude {path}: {len(unmatched)} of {len(excluded)} ids are in no data set of the mixture and were not "
            f"deleted: {format_ids(unmatched)}; correct or remove these lines (`selfflow data ids` prints all ids)"
        )
    return earlier


def encode_ids(ids: list[str]) -> np.ndarray:
    """Encodes ids as uint8 [n, bytes of the longest id], padded with zeros, as safetensors cannot hold text."""
    encoded = np.array([i.encode() for i in ids], bytes)
    return encoded.view(np.uint8).reshape(len(ids), encoded.itemsize)


def decode_ids(array: np.ndarray) -> np.ndarray:
    """The inverse of `encode_ids`: bytes [n]."""
    return np.ascontiguousarray(array).view(f"S{array.shape[1]}").reshape(-1)
