"""FID's Inception v3: the network of inception-2015-12-05, with the weights of pytorch-fid and torch-fidelity."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from selfflow.encoders.batching import in_batches
from selfflow.encoders.config import FID
from selfflow.encoders.convolution import Convolution, Weights, average_pool, convolve, max_pool
from selfflow.encoders.media import check_media, resize_like_tensorflow_1
from selfflow.weights.read import read_weights, sha256_of

# pt_inception-2015-12-05-6726825d.pth of pytorch-fid, weights-inception-2015-12-05-6726825d.pth of torch-fidelity.
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_EPS = 1e-3
_BATCH = 32

Params = dict[str, Convolution]


class Inception:
    """Images -> 2 048 channels of the last pool, on which FID and KID are defined (arXiv 1706.08500, 1801.01401).

    Images are resized to 299 x 299 as in TensorFlow 1 and scaled to (x - 128) / 128, as in torch-fidelity and the
    evaluator of ADM. A distance is called FID only with the published file, known by its hash; with other weights of
    this layout it is FD-Inception.

    Args:
      path: path of a state dict, `.pth` or `.safetensors`, which is read without executing code.

    Raises:
      UserError: if the file is missing or damaged, or holds other weights.
    """

    medium = "image"
    width = 2048

    def __init__(self, path: Path):
        weights = Weights(path, read_weights(path), "FID's Inception")
        self.params: Params = {}
        for name, shape in layout().items():
            self.params[name] = weights.convolution(f"{name}.conv", f"{name}.bn", *shape, eps=_EPS)
        digest = sha256_of(path)
        self.name = "Inception"
        self.distance = FID if digest == SHA256 else "FD-Inception"
        self.identity = f"{self.name}-{digest[:12]}"

    def __call__(self, media: np.ndarray, rate: float = 0) -> Float[np.ndarray, "B 2048"]:
        """Features of uint8 images [B, H, W, 3]."""
        check_media(media, self.name, "image")
        return in_batches(self._features, media, _BATCH)

    def _features(self, x_BHWC: UInt8[np.ndarray, "B H W 3"]) -> Array:
        return forward(self.params, resize_like_tensorflow_1(x_BHWC, 299))


@jax.jit
def forward(params: Params, x_BHWC: Float[Array, "B 299 299 3"]) -> Float[Array, "B 2048"]:
    """Returns the last pool of images in 0..255."""
    x = (x_BHWC - 128) / 128
    # Stem: [B, 299, 299, 3] -> [B, 35, 35, 192].
    x = _unit(params, "Conv2d_1a_3x3", x, 2, "VALID")
    x = _unit(params, "Conv2d_2a_3x3", x, padding="VALID")
    x = _downsample(_unit(params, "Conv2d_2b_3x3", x))
    x = _unit(params, "Conv2d_3b_1x1", x, padding="VALID")
    x = _downsample(_unit(params, "Conv2d_4a_3x3", x, padding="VALID"))
    # [B, 35, 35, 288], then [B, 17, 17, 768], then [B, 8, 8, 2048].
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = _mixed_5(params, name, x)
    x = _mixed_6a(params, x)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = _mixed_6(params, name, x)
    x = _mixed_7a(params, x)
    x = _mixed_7(params, "Mixed_7b", x, average_pool(x, (3, 3), "SAME"))
    # The published graph has a maximum here, where the paper on Inception v3 has a mean.
    x = _mixed_7(params, "Mixed_7c", x, max_pool(x, (3, 3), (1, 1), "SAME"))
    return x.mean(axis=(1, 2))


def _unit(params: Params, name: str, x: jax.Array, stride: int = 1, padding: str = "SAME") -> jax.Array:
    """Returns a convolution, its folded batch normalisation, and ReLU."""
    return jax.nn.relu(convolve(x, params[name], stride, padding))


def _row(params: Params, name: str, x: jax.Array, *units: str) -> jax.Array:
    """Units of a block in sequence."""
    for unit in units:
        x = _unit(params, f"{name}.{unit}", x)
    return x


def _downsample(x: jax.Array) -> jax.Array:
    return max_pool(x, (3, 3), (2, 2), "VALID")


# Blocks: parallel branches, concatenated over the channels.


def _mixed_5(params: Params, name: str, x: jax.Array) -> jax.Array:
    pooled = average_pool(x, (3, 3), "SAME")
    branches = [
        _row(params, name, x, "branch1x1"),
        _row(params, name, x, "branch5x5_1", "branch5x5_2"),
        _row(params, name, x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
        _row(params, name, pooled, "branch_pool"),
    ]
    return jnp.concatenate(branches, axis=-1)


def _mixed_6a(params: Params, x: jax.Array) -> jax.Array:
    double = _row(params, "Mixed_6a", x, "branch3x3dbl_1", "branch3x3dbl_2")
    branches = [
        _unit(params, "Mixed_6a.branch3x3", x, 2, "VALID"),
        _unit(params, "Mixed_6a.branch3x3dbl_3", double, 2, "VALID"),
        _downsample(x),
    ]
    return jnp.concatenate(branches, axis=-1)


def _mixed_6(params: Params, name: str, x: jax.Array) -> jax.Array:
    pooled = average_pool(x, (3, 3), "SAME")
    branches = [
        _row(params, name, x, "branch1x1"),
        _row(params, name, x, "branch7x7_1", "branch7x7_2", "branch7x7_3"),
        _row(
            params,
            name,
            x,
            "branch7x7dbl_1",
            "branch7x7dbl_2",
            "branch7x7dbl_3",
            "branch7x7dbl_4",
            "branch7x7dbl_5",
        ),
        _row(params, name, pooled, "branch_pool"),
    ]
    return jnp.concatenate(branches, axis=-1)


def _mixed_7a(params: Params, x: jax.Array) -> jax.Array:
    single = _row(params, "Mixed_7a", x, "branch3x3_1")
    sevens = _row(params, "Mixed_7a", x, "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3")
    branches = [
        _unit(params, "Mixed_7a.branch3x3_2", single, 2, "VALID"),
        _unit(params, "Mixed_7a.branch7x7x3_4", sevens, 2, "VALID"),
        _downsample(x),
    ]
    return jnp.concatenate(branches, axis=-1)


def _mixed_7(params: Params, name: str, x: jax.Array, pooled: jax.Array) -> jax.Array:
    single = _row(params, name, x, "branch3x3_1")
    double = _row(params, name, x, "branch3x3dbl_1", "branch3x3dbl_2")
    branches = [
        _row(params, name, x, "branch1x1"),
        _row(params, name, single, "branch3x3_2a"),
        _row(params, name, single, "branch3x3_2b"),
        _row(params, name, double, "branch3x3dbl_3a"),
        _row(params, name, double, "branch3x3dbl_3b"),
        _row(params, name, pooled, "branch_pool"),
    ]
    return jnp.concatenate(branches, axis=-1)


def layout() -> dict[str, tuple[int, ...]]:
    """Shapes [O, I, height, width] in torch of all convolutions, by name."""
    shapes = {
        "Conv2d_1a_3x3": (32, 3, 3, 3),
        "Conv2d_2a_3x3": (32, 32, 3, 3),
        "Conv2d_2b_3x3": (64, 32, 3, 3),
        "Conv2d_3b_1x1": (80, 64, 1, 1),
        "Conv2d_4a_3x3": (192, 80, 3, 3),
    }

    def add(name: str, **units: tuple[int, ...]) -> None:
        shapes.update({f"{name}.{unit}": shape for unit, shape in units.items()})

    for name, inputs, pooled in (("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)):
        add(name, branch1x1=(64, inputs, 1, 1), branch5x5_1=(48, inputs, 1, 1), branch5x5_2=(64, 48, 5, 5))
        add(name, branch3x3dbl_1=(64, inputs, 1, 1), branch3x3dbl_2=(96, 64, 3, 3), branch3x3dbl_3=(96, 96, 3, 3))
        add(name, branch_pool=(pooled, inputs, 1, 1))
    add("Mixed_6a", branch3x3=(384, 288, 3, 3), branch3x3dbl_1=(64, 288, 1, 1))
    add("Mixed_6a", branch3x3dbl_2=(96, 64, 3, 3), branch3x3dbl_3=(96, 96, 3, 3))
    for name, c in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        add(name, branch1x1=(192, 768, 1, 1), branch_pool=(192, 768, 1, 1))
        add(name, branch7x7_1=(c, 768, 1, 1), branch7x7_2=(c, c, 1, 7), branch7x7_3=(192, c, 7, 1))
        add(name, branch7x7dbl_1=(c, 768, 1, 1), branch7x7dbl_2=(c, c, 7, 1), branch7x7dbl_3=(c, c, 1, 7))
        add(name, branch7x7dbl_4=(c, c, 7, 1), branch7x7dbl_5=(192, c, 1, 7))
    add("Mixed_7a", branch3x3_1=(192, 768, 1, 1), branch3x3_2=(320, 192, 3, 3), branch7x7x3_1=(192, 768, 1, 1))
    add("Mixed_7a", branch7x7x3_2=(192, 192, 1, 7), branch7x7x3_3=(192, 192, 7, 1), branch7x7x3_4=(192, 192, 3, 3))
    for name, inputs in (("Mixed_7b", 1280), ("Mixed_7c", 2048)):
        add(name, branch1x1=(320, inputs, 1, 1), branch_pool=(192, inputs, 1, 1), branch3x3_1=(384, inputs, 1, 1))
        add(name, branch3x3_2a=(384, 384, 1, 3), branch3x3_2b=(384, 384, 3, 1))
        add(name, branch3x3dbl_1=(448, inputs, 1, 1), branch3x3dbl_2=(384, 448, 3, 3))
        add(name, branch3x3dbl_3a=(384, 384, 1, 3), branch3x3dbl_3b=(384, 384, 3, 1))
    return shapes
