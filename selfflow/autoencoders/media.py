"""Checks of the media and latents of autoencoders, and the blocks of audio that some autoencoders share."""

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


def check_block(config: Any) -> None:
    """Checks that the temporal stride of an autoencoder of overlapping audio blocks is even.

    Raises:
      UserError: if it is not, or below 2.
    """
    stride = config.temporal_stride
    if stride < 2 or stride % 2:
        raise UserError(f"autoencoder temporal_stride {stride}: give an even number of samples")


def block_shape(config: Any, media: tuple[int, ...], channels: int) -> tuple[int, ...]:
    """Shape of the latents of audio [..., samples]: a latent frame for each block of `temporal_stride` samples.

    Raises:
      UserError: if the temporal stride does not divide the samples.
    """
    *lead, samples = media
    if samples % config.temporal_stride:
        raise UserError(
            f"autoencoder temporal_stride {config.temporal_stride} does not divide clips of {samples} samples: give "
            "another stride"
        )
    return (*lead, samples // config.temporal_stride, channels)


def whole_blocks(config: Any, media: np.ndarray) -> np.ndarray:
    """Audio [..., samples] without the samples after the last whole block."""
    return media[..., : media.shape[-1] // config.temporal_stride * config.temporal_stride]


def _describe(x: Any) -> str:
    return f"{x.dtype} of shape {x.shape}" if isinstance(x, np.ndarray) else f"a {type(x).__name__}"


def _check_not_empty(x: np.ndarray) -> None:
    if not x.size:
        raise UserError(f"the array has shape {x.shape} and no elements: give at least one clip")
