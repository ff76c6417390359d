"""I3D (arXiv 1705.07750), trained on Kinetics-400, from a state dict in the layout of pytorch-i3d."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from selfflow.encoders.batching import in_batches
from selfflow.encoders.convolution import Convolution, Weights, average_pool, convolve, max_pool
from selfflow.encoders.media import check_media, resize_like_tensorflow_1
from selfflow.errors import UserError
from selfflow.weights.read import read_weights, sha256_of

CLASSES = 400
MIN_FRAMES = 9  # two of them remain before the last pool, which averages two
_EPS = 1e-3
_BATCH = 4
# Inputs, and outputs of the branches: 1x1, 1x1 -> 3x3, 1x1 -> 3x3, pool -> 1x1.
_MIXED = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}


class I3d:
    """Videos -> 400 logits, their mean over time, on which FVD is defined (arXiv 1812.01717).

    Frames are resized to 224 x 224 as in TensorFlow 1 and scaled to 2 x / 255 - 1, as in the reference implementation
    of FVD, and used at any rate. Published state dicts hold weights other than FVD's (those of the first
    release), or conversions without a known hash: the distance is called FD-I3D.

    Args:
      path: path of a state dict, `.pt`, `.pth` or `.safetensors`, which is read without executing code.

    Raises:
      UserError: if the file is missing or damaged, or holds other weights.
    """

    medium = "video"
    width = CLASSES
    name = "I3D"
    distance = "FD-I3D"

    def __init__(self, path: Path):
        weights = Weights(path, read_weights(path), "I3D on Kinetics-400")
        self.params: dict[str, Convolution] = {}
        for name, shape in layout().items():
            self.params[name] = weights.convolution(f"{name}.conv3d", f"{name}.bn", *shape, eps=_EPS)
        kernel = weights.take("logits.conv3d.weight", CLASSES, 1024, 1, 1, 1)
        self.params["logits"] = weights.plain(kernel, weights.take("logits.conv3d.bias", CLASSES))
        self.identity = f"{self.name}-{sha256_of(path)[:12]}"

    def __call__(self, media: np.ndarray, rate: float = 0) -> Float[np.ndarray, "B 400"]:
        """Features of uint8 videos [B, T, H, W, 3].

        Raises:
          UserError: if videos have fewer than 9 frames.
        """
        check_media(media, self.name, "video")
        if media.shape[1] < MIN_FRAMES:
            raise UserError(f"{self.name} takes videos of at least {MIN_FRAMES} frames, and got {media.shape[1]}")
        return in_batches(self._features, media, _BATCH)

    def _features(self, x_BTHWC: UInt8[np.ndarray, "B T H W 3"]) -> Array:
        frames = resize_like_tensorflow_1(x_BTHWC.reshape(-1, *x_BTHWC.shape[2:]), 224)
        return forward(self.params, frames.reshape(*x_BTHWC.shape[:2], 224, 224, 3))


@jax.jit
def forward(params: dict[str, Convolution], x_BTHWC: Float[Array, "B T 224 224 3"]) -> Float[Array, "B 400"]:
    """Logits of videos in 0..255, their mean over time."""

    def unit(name: str, x, stride: int = 1):
        return jax.nn.relu(convolve(x, params[name], stride))

    def pool(x, window: tuple[int, int, int], stride: tuple[int, int, int]):
        return max_pool(x, window, stride, "SAME")

    def mixed(name: str, x):
        branches = [
            unit(f"{name}.b0", x),
            unit(f"{name}.b1b", unit(f"{name}.b1a", x)),
            unit(f"{name}.b2b", unit(f"{name}.b2a", x)),
            unit(f"{name}.b3b", pool(x, (3, 3, 3), (1, 1, 1))),
        ]
        return jnp.concatenate(branches, axis=-1)

    x = 2 * x_BTHWC / 255 - 1
    x = pool(unit("Conv3d_1a_7x7", x, 2), (1, 3, 3), (1, 2, 2))
    x = unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", x))
    x = pool(x, (1, 3, 3), (1, 2, 2))
    for name in _MIXED:
        if name == "Mixed_4b":
            x = pool(x, (3, 3, 3), (2, 2, 2))
        elif name == "Mixed_5b":
            x = pool(x, (2, 2, 2), (2, 2, 2))
        x = mixed(name, x)
    x = convolve(average_pool(x, (2, 7, 7), "VALID"), params["logits"])
    return x.mean(axis=(1, 2, 3))


def layout() -> dict[str, tuple[int, ...]]:
    """Shapes [O, I, time, height, width] in torch of all normalised convolutions, by name."""
    shapes = {
        "Conv3d_1a_7x7": (64, 3, 7, 7, 7),
        "Conv3d_2b_1x1": (64, 64, 1, 1, 1),
        "Conv3d_2c_3x3": (192, 64, 3, 3, 3),
    }
    for name, (inputs, b0, b1a, b1b, b2a, b2b, b3b) in _MIXED.items():
        for branch, outputs in (("b0", b0), ("b1a", b1a), ("b2a", b2a), ("b3b", b3b)):
            shapes[f"{name}.{branch}"] = (outputs, inputs, 1, 1, 1)
        shapes[f"{name}.b1b"] = (b1b, b1a, 3, 3, 3)
        shapes[f"{name}.b2b"] = (b2b, b2a, 3, 3, 3)
    return shapes
