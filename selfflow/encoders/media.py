"""Inputs of frozen networks: checks of raw media, and the resizing of TensorFlow 1."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from selfflow.errors import UserError
from selfflow.media import MEDIA


def check_media(media: np.ndarray, name: str, medium: str) -> None:
    """Raises `UserError` unless media are a batch [B, *axes] of a medium, with at least one clip."""
    expected = MEDIA[medium]
    if not expected.matches(media) or media.ndim != len(expected.axes) + 1 or 0 in media.shape:
        raise UserError(
            f"{name} takes {expected.dtype} [B, {', '.join(expected.axes)}], and got {media.dtype} "
            f"{list(media.shape)}: check the samples"
        )


@partial(jax.jit, static_argnames="size")
def resize_like_tensorflow_1(x_BHWC: UInt8[Array, "B H W C"], size: int) -> Float[Array, "B size size C"]:
    """Bilinear resizing without antialiasing, with output pixel i at input position i * H / size.

    It is tf.image.resize_bilinear of TensorFlow 1, with which FID and FVD are computed; newer functions shift by half a
    pixel.
    """
    height, width = (_interpolation(n, size) for n in x_BHWC.shape[1:3])
    with jax.default_matmul_precision("highest"):
        return jnp.einsum("ih,bhwc,jw->bijc", height, x_BHWC.astype(jnp.float32), width)


def _interpolation(n: int, size: int) -> np.ndarray:
    position = np.arange(size) * (n / size)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, n - 1)
    matrix = np.zeros((size, n))
    np.add.at(matrix, (np.arange(size), low), 1 - (position - low))
    np.add.at(matrix, (np.arange(size), high), position - low)
    return matrix.astype(np.float32)
