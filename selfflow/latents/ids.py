"""Ids of samples: files of them, arrays of them, and hashes."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from selfflow.errors import UserError
from selfflow.serialization import digest


def read_ids(path: str | Path) -> set[str]:
    """The ids in a text file with one id on each line; empty lines are ignored.

    Raises:
      UserError: if the file cannot be read, is not UTF-8 or holds no id.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"the file of ids {path} cannot be read ({error.strerror}): give one with an id on each line"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"the file of ids {path} is not UTF-8 text: give one with an id on each line") from error
    ids = {line.strip() for line in text.splitlines()} - {""}
    if not ids:
        raise UserError(f"the file of ids {path} has no ids: give one with an id on each line")
    return ids


def hash_ids(ids: Collection[str], length: int = 16) -> str:
    """Hash of a set of ids, independent of their order."""
    return digest("\n".join(sorted(ids)), length)


def encode_ids(ids: list[str]) -> np.ndarray:
    """Ids as uint8 [n, bytes of the longest], padded with zeros: safetensors holds no text."""
    encoded = np.array([i.encode() for i in ids], bytes)
    return encoded.view(np.uint8).reshape(len(ids), encoded.itemsize)


def decode_ids(array: np.ndarray) -> np.ndarray:
    """The inverse of `encode_ids`: bytes [n]."""
    return np.ascontiguousarray(array).view(f"S{array.shape[1]}").reshape(-1)
