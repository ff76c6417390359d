"""Media as data sets have them, of numbers in [-1, 1]."""

import numpy as np
from jaxtyping import Float, Int16, UInt8

from selfflow.errors import UserError

_AXES = {"image": ("H", "W", "3"), "video": ("T", "H", "W", "3"), "audio": ("samples",)}


def check_media(media: np.ndarray, modality: str) -> None:
    """That media are as data sets have them, and not nothing.

    Raises:
      UserError: if not.
    """
    axes, dtype = _AXES[modality], "int16" if modality == "audio" else "uint8"
    fits = isinstance(media, np.ndarray) and media.dtype == dtype and media.ndim >= len(axes)
    if not fits or (axes[-1] == "3" and media.shape[-1] != 3):
        found = (
            f"{media.dtype} of shape {media.shape}" if isinstance(media, np.ndarray) else f"a {type(media).__name__}"
        )
        raise UserError(f"media are {found}: give {dtype} [..., {', '.join(axes)}]")
    _check_some(media)


def check_latents(latents: np.ndarray, modality: str) -> None:
    """That latents have the axes of a modality, and are not nothing.

    Raises:
      UserError: if not.
    """
    axes = ("T", "C") if modality == "audio" else (*_AXES[modality][:-1], "C")
    if not isinstance(latents, np.ndarray) or latents.ndim < len(axes):
        found = f"have shape {latents.shape}" if isinstance(latents, np.ndarray) else f"are a {type(latents).__name__}"
        raise UserError(f"latents {found}: give [..., {', '.join(axes)}]")
    _check_some(latents)


def _check_some(x: np.ndarray) -> None:
    if not x.size:
        raise UserError(f"there is nothing to encode or decode: the array has shape {x.shape}")


def pixels(x: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """uint8 of pictures in [-1, 1], rounded; what lies beyond is cut off."""
    return np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8)


def samples(x: Float[np.ndarray, "..."]) -> Int16[np.ndarray, "..."]:
    """int16 of sound in [-1, 1], rounded; what lies beyond is cut off."""
    return np.clip(np.rint(x * 32768), -32768, 32767).astype(np.int16)
