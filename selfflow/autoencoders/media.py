"""Checks of what autoencoders encode and decode."""

from typing import Any

import numpy as np

from selfflow.errors import UserError
from selfflow.media import medium_of


def check_media(media: Any, modality: str) -> None:
    """Checks that raw media are an array [..., *axes] of the dtype and axes of their modality, and not empty.

    Raises:
      UserError: if they are not.
    """
    medium = medium_of(modality)
    if not medium.matches(media):
        raise UserError(f"media are {_describe(media)}: give {medium.dtype} [..., {', '.join(medium.axes)}]")
    _check_not_empty(media)


def check_latents(latents: Any, modality: str) -> None:
    """Checks that latents are an array [..., *axes] with the axes of their modality, and not empty.

    Raises:
      UserError: if they are not.
    """
    axes = medium_of(modality).latent_axes
    if not isinstance(latents, np.ndarray) or latents.ndim < len(axes):
        raise UserError(f"latents are {_describe(latents)}: give [..., {', '.join(axes)}]")
    _check_not_empty(latents)


def _describe(x: Any) -> str:
    return f"{x.dtype} of shape {x.shape}" if isinstance(x, np.ndarray) else f"a {type(x).__name__}"


def _check_not_empty(x: np.ndarray) -> None:
    if not x.size:
        raise UserError(f"the array has shape {x.shape} and no elements: give at least one clip")
