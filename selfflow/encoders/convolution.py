"""Convolutions and pools of image and video networks, channels last, with weights in torch's layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from selfflow.errors import UserError


class Convolution(NamedTuple):
    """A convolution: kernel [*window, I, O] (depthwise: I = 1) and bias [O]."""

    kernel: Array
    bias: Array


class Weights:
    """Weights of a file by their keys.

    Args:
      path: path of the file, for messages.
      weights: arrays by key.
      network: name of the expected network.
    """

    def __init__(self, path: Path, weights: Mapping[str, np.ndarray], network: str):
        self.path, self.weights, self.network = path, weights, network

    def take(self, key: str, *shape: int) -> np.ndarray:
        """Returns a tensor as float64.

        Raises:
          UserError: if the file has no tensor of this key and shape.
        """
        if key not in self.weights:
            raise UserError(f"{self.path} lacks {key}: it holds no weights of {self.network}; give another file")
        tensor = self.weights[key]
        if tensor.shape != shape:
            raise UserError(
                f"{self.path}: {key} has shape {list(tensor.shape)}, and {self.network} has {list(shape)}; give "
                "another file"
            )
        return tensor.astype(np.float64)

    def convolution(self, key: str, norm: str, *shape: int, eps: float) -> Convolution:
        """Returns a convolution of torch's shape [O, I, *window] without bias, with the batch normalisation after it
        folded in.

        Raises:
          UserError: if a tensor is missing or of another shape, or a variance is below 0.
        """
        kernel = self.take(f"{key}.weight", *shape)
        scale, shift = self.take(f"{norm}.weight", shape[0]), self.take(f"{norm}.bias", shape[0])
        mean, variance = self.take(f"{norm}.running_mean", shape[0]), self.take(f"{norm}.running_var", shape[0])
        if variance.min() < 0:
            raise UserError(f"{self.path}: {norm}.running_var is below 0; copy the file again")
        scale = scale / np.sqrt(variance + eps)
        return self.plain(kernel * scale.reshape(-1, *[1] * (len(shape) - 1)), shift - mean * scale)

    @staticmethod
    def plain(kernel: np.ndarray, bias: np.ndarray) -> Convolution:
        """Returns a convolution of torch's shape [O, I, *window] and its bias."""
        last = np.moveaxis(kernel, (0, 1), (-1, -2))
        return Convolution(jnp.asarray(last, jnp.float32), jnp.asarray(bias, jnp.float32))


def convolve(x: Float[Array, "B ..."], weights: Convolution, stride: int = 1, padding: str = "SAME"):
    """Convolves x [B, *space, I] into [B, *space, O]. Padding "SAME" is TensorFlow's, which may be uneven."""
    space = "DHW"[-(x.ndim - 2) :]
    y = jax.lax.conv_general_dilated(
        x,
        weights.kernel,
        (stride,) * (x.ndim - 2),
        padding,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        precision="highest",
    )
    return y + weights.bias


def depthwise(x_BHWC: Float[Array, "B H W C"], weights: Convolution, stride: int):
    """Convolves each channel separately, padded as TensorFlow's "SAME"."""
    # A sum of shifted maps, which XLA fuses: on CPUs about six times faster than its grouped convolution.
    batch, *sides, channels = x_BHWC.shape
    window = weights.kernel.shape[0]
    outputs = [-(-side // stride) for side in sides]
    padded = [max((n - 1) * stride + window - side, 0) for n, side in zip(outputs, sides)]
    x_BHWC = jnp.pad(x_BHWC, [(0, 0), *((n // 2, n - n // 2) for n in padded), (0, 0)])
    total = weights.bias
    for i in range(window):
        for j in range(window):
            end = (batch, i + (outputs[0] - 1) * stride + 1, j + (outputs[1] - 1) * stride + 1, channels)
            shifted = jax.lax.slice(x_BHWC, (0, i, j, 0), end, (1, stride, stride, 1))
            total = total + shifted * weights.kernel[i, j, 0]
    return total


def max_pool(x: Float[Array, "B ..."], window: tuple[int, ...], stride: tuple[int, ...], padding: str):
    """The largest value in each window, padding excluded."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *stride, 1), padding)


def average_pool(x: Float[Array, "B ..."], window: tuple[int, ...], padding: str):
    """The mean of each window at stride 1, padding excluded."""

    def window_sum(values):
        return jax.lax.reduce_window(values, 0.0, jax.lax.add, (1, *window, 1), (1,) * x.ndim, padding)

    return window_sum(x) / window_sum(jnp.ones((1, *x.shape[1:-1], 1), x.dtype))
