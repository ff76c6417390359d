"""Media as data sets have them, of numbers in [-1, 1]."""

import numpy as np
from jaxtyping import Float, Int16, UInt8

from selfflow.errors import UserError


def check_some(x: np.ndarray) -> None:
    """That there is something to encode or decode.

    Raises:
      UserError: if not.
    """
    if not x.size:
        raise UserError(f"there is nothing to encode or decode: the array has shape {x.shape}")


def pixels(x: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """uint8 of pictures in [-1, 1], rounded; what lies beyond is cut off."""
    return np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8)


def samples(x: Float[np.ndarray, "..."]) -> Int16[np.ndarray, "..."]:
    """int16 of sound in [-1, 1], rounded; what lies beyond is cut off."""
    return np.clip(np.rint(x * 32768), -32768, 32767).astype(np.int16)
