"""The convolutional KL autoencoder of latent diffusion (arXiv 2112.10752), with weights as diffusers keeps them.

SD-VAE is one, and FLUX.2's autoencoder is one whose latents are packed, 2 x 2 positions to one, and normalised by the
running statistics of a batch normalisation: noise is added there.

A network is a tree of arrays, and all its sizes are those of the arrays.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from selfflow.encoders.convolution import Convolution, Weights, convolve
from selfflow.errors import UserError

_EPS = 1e-6
_LOG_VARIANCE = (-30.0, 20.0)  # clipped to, as in the code of latent diffusion
_PACK = 2
_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Norm(NamedTuple):
    """Group normalisation: scale and shift [C]; the groups are those of `groups`, the same in the whole network."""

    scale: Array
    shift: Array


def encode(params: dict[str, Any], x_BHWC: Float[Array, "B H W 3"], groups: int) -> tuple[Array, Array]:
    """Mean and standard deviation of the latents, [B, H / s, W / s, C] each, before any normalisation.

    Args:
      params: the network, as `read_kl` gives it; its type is that of the arithmetic.
      x_BHWC: pictures in [-1, 1], of sides that are multiples of the stride s.
      groups: of the normalisations.
    """
    p, resnet = params["encoder"], partial(_resnet, groups=groups)
    h = convolve(x_BHWC.astype(p["conv_in"].kernel.dtype), p["conv_in"])
    for block in p["blocks"]:
        for layer in block["resnets"]:
            h = resnet(h, layer)
        if "sample" in block:
            # Padded on one side alone, which no "SAME" does for even sides.
            h = convolve(jnp.pad(h, ((0, 0), (0, 1), (0, 1), (0, 0))), block["sample"], 2, "VALID")
    h = _middle(h, p["middle"], groups)
    h = convolve(jax.nn.silu(_norm(h, p["norm_out"], groups)), p["conv_out"])
    if "quant" in params:
        h = convolve(h, params["quant"])
    mean, log_variance = jnp.split(h.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.exp(0.5 * jnp.clip(log_variance, *_LOG_VARIANCE))


def decode(params: dict[str, Any], z_BHWC: Float[Array, "B H W C"], groups: int) -> Float[Array, "B H W 3"]:
    """Pictures, about in [-1, 1], of latents without normalisation."""
    p, resnet = params["decoder"], partial(_resnet, groups=groups)
    h = z_BHWC.astype(p["conv_in"].kernel.dtype)
    if "post_quant" in params:
        h = convolve(h, params["post_quant"])
    h = _middle(convolve(h, p["conv_in"]), p["middle"], groups)
    for block in p["blocks"]:
        for layer in block["resnets"]:
            h = resnet(h, layer)
        if "sample" in block:
            h = convolve(h.repeat(2, axis=1).repeat(2, axis=2), block["sample"])
    h = convolve(jax.nn.silu(_norm(h, p["norm_out"], groups)), p["conv_out"])
    return h.astype(jnp.float32)


def pack(z_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B h w 4*C"]:
    """2 x 2 positions to one, whose channels are (channel, row, column), as FLUX.2 has them."""
    batch, height, width, channels = z_BHWC.shape
    split = z_BHWC.reshape(batch, height // _PACK, _PACK, width // _PACK, _PACK, channels)
    packed = split.transpose(0, 1, 3, 5, 2, 4)
    return packed.reshape(batch, height // _PACK, width // _PACK, channels * _PACK**2)


def unpack(z_BHWC: Float[Array, "B h w 4*C"]) -> Float[Array, "B H W C"]:
    """The inverse of `pack`."""
    batch, height, width, channels = z_BHWC.shape
    split = z_BHWC.reshape(batch, height, width, channels // _PACK**2, _PACK, _PACK).transpose(0, 1, 4, 2, 5, 3)
    return split.reshape(batch, height * _PACK, width * _PACK, channels // _PACK**2)


def _norm(x: Float[Array, "B H W C"], norm: Norm, groups: int) -> Float[Array, "B H W C"]:
    batch, height, width, channels = x.shape
    # In float32, whatever the type: a sum over a picture is beyond half precision.
    grouped = x.reshape(batch, height * width, groups, channels // groups).astype(jnp.float32)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    variance = grouped.var(axis=(1, 3), keepdims=True)
    normed = ((grouped - mean) * jax.lax.rsqrt(variance + _EPS)).reshape(x.shape)
    return (normed * norm.scale + norm.shift).astype(x.dtype)


def _resnet(x: Float[Array, "B H W C"], p: dict[str, Any], groups: int) -> Float[Array, "B H W D"]:
    h = convolve(jax.nn.silu(_norm(x, p["norm1"], groups)), p["conv1"])
    h = convolve(jax.nn.silu(_norm(h, p["norm2"], groups)), p["conv2"])
    return h + (convolve(x, p["shortcut"]) if "shortcut" in p else x)


def _middle(x: Float[Array, "B H W C"], p: dict[str, Any], groups: int) -> Float[Array, "B H W C"]:
    before, after = p["resnets"]
    x = _resnet(x, before, groups)
    if "attention" in p:
        x = x + _attention(_norm(x, p["attention"]["norm"], groups), p["attention"])
    return _resnet(x, after, groups)


def _attention(x: Float[Array, "B H W C"], p: dict[str, Any]) -> Float[Array, "B H W C"]:
    """Attention of one head over all positions."""
    batch, height, width, channels = x.shape
    tokens = x.reshape(batch, height * width, channels)
    q, k, v = (jnp.einsum("bnc,cd->bnd", tokens, p[name][0], precision="highest") + p[name][1] for name in "qkv")
    score = jnp.einsum("bnd,bmd->bnm", q, k, precision="highest").astype(jnp.float32) * channels**-0.5
    seen = jnp.einsum("bnm,bmd->bnd", jax.nn.softmax(score).astype(v.dtype), v, precision="highest")
    return (jnp.einsum("bnc,cd->bnd", seen, p["out"][0], precision="highest") + p["out"][1]).reshape(x.shape)


def read_kl(weights: Weights) -> dict[str, Any]:
    """The network of some weights: {"encoder", "decoder"}, "quant" and "post_quant" where it has them.

    Args:
      weights: as diffusers names them.

    Raises:
      UserError: naming a key that is missing, of another shape, or none of such a network.
    """
    taken: set[str] = set()
    weights = Weights(weights.path, dict(_renamed(weights.weights)), weights.network)
    reader = _Reader(weights, taken)
    inputs = reader.inputs("decoder.conv_in")  # latent channels
    found = {"encoder": _encoder(reader), "decoder": _decoder(reader)}
    if reader.has("quant_conv"):
        found["quant"] = reader.convolution("quant_conv", 2 * inputs, 2 * inputs, 1)
    if reader.has("post_quant_conv"):
        found["post_quant"] = reader.convolution("post_quant_conv", inputs, inputs, 1)
    known = taken | {"bn.running_mean", "bn.running_var"}
    if strange := sorted(set(weights.weights) - known):
        raise UserError(f"{weights.path} has {strange[0]}, which {weights.network} does not have: give another file")
    return found


def _renamed(weights: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Attention as diffusers names it now; published files are older, and some keep its matrices as kernels."""
    for key, tensor in weights.items():
        match key.split("."):
            case [*parents, "attentions", number, layer, last] if layer in _ATTENTION:
                key = ".".join([*parents, "attentions", number, _ATTENTION[layer], last])
        if ".attentions." in key and tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0]
        yield key, tensor


class _Reader:
    """Layers by their keys, their sizes read from the arrays where nothing else tells them."""

    def __init__(self, weights: Weights, taken: set[str]):
        self.weights, self._taken = weights, taken

    def has(self, key: str) -> bool:
        return f"{key}.weight" in self.weights.weights

    def count(self, pattern: str) -> int:
        """How many of a list there are: `pattern` with N for the number."""
        search = re.compile(re.escape(pattern).replace("N", r"(\d+)", 1))
        return 1 + max((int(m[1]) for key in self.weights.weights if (m := search.match(key))), default=-1)

    def outputs(self, key: str) -> int:
        return self._size(key, 0)

    def inputs(self, key: str) -> int:
        return self._size(key, 1)

    def _size(self, key: str, axis: int) -> int:
        tensor = self.weights.weights.get(f"{key}.weight")
        if tensor is None or tensor.ndim != 4:
            path, network = self.weights.path, self.weights.network
            raise UserError(f"{path} lacks {key}.weight: it holds no weights of {network}; give another file")
        return tensor.shape[axis]

    def take(self, key: str, *shape: int) -> np.ndarray:
        self._taken.add(key)
        return self.weights.take(key, *shape)

    def convolution(self, key: str, outputs: int, inputs: int, window: int) -> Convolution:
        kernel = self.take(f"{key}.weight", outputs, inputs, window, window)
        return Weights.plain(kernel, self.take(f"{key}.bias", outputs))

    def norm(self, key: str, channels: int) -> Norm:
        scale, shift = (self.take(f"{key}.{name}", channels) for name in ("weight", "bias"))
        return Norm(jnp.asarray(scale, jnp.float32), jnp.asarray(shift, jnp.float32))

    def linear(self, key: str, channels: int) -> tuple[Array, Array]:
        weight = self.take(f"{key}.weight", channels, channels)
        bias = self.take(f"{key}.bias", channels)
        return jnp.asarray(weight.T, jnp.float32), jnp.asarray(bias, jnp.float32)

    def resnet(self, key: str, inputs: int, outputs: int) -> dict[str, Any]:
        layer = {
            "norm1": self.norm(f"{key}.norm1", inputs),
            "conv1": self.convolution(f"{key}.conv1", outputs, inputs, 3),
            "norm2": self.norm(f"{key}.norm2", outputs),
            "conv2": self.convolution(f"{key}.conv2", outputs, outputs, 3),
        }
        if inputs != outputs:
            layer["shortcut"] = self.convolution(f"{key}.conv_shortcut", outputs, inputs, 1)
        return layer

    def middle(self, key: str, channels: int) -> dict[str, Any]:
        found: dict[str, Any] = {"resnets": [self.resnet(f"{key}.resnets.{i}", channels, channels) for i in range(2)]}
        at = f"{key}.attentions.0"
        if self.has(f"{at}.to_q"):
            found["attention"] = {"norm": self.norm(f"{at}.group_norm", channels)} | {
                name: self.linear(f"{at}.{theirs}", channels)
                for name, theirs in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("out", "to_out.0"))
            }
        return found

    def blocks(self, side: str, name: str, sampler: str, channels: int) -> tuple[list[dict[str, Any]], int]:
        """The blocks of one side, and how many channels come out of the last."""
        found = []
        for i in range(self.count(f"{side}.{name}.N.")):
            at, resnets = f"{side}.{name}.{i}", []
            for j in range(self.count(f"{at}.resnets.N.")):
                outputs = self.outputs(f"{at}.resnets.{j}.conv1")
                resnets.append(self.resnet(f"{at}.resnets.{j}", channels, outputs))
                channels = outputs
            block: dict[str, Any] = {"resnets": resnets}
            if self.has(f"{at}.{sampler}.0.conv"):
                block["sample"] = self.convolution(f"{at}.{sampler}.0.conv", channels, channels, 3)
            found.append(block)
        return found, channels


def _encoder(reader: _Reader) -> dict[str, Any]:
    channels = reader.outputs("encoder.conv_in")
    found: dict[str, Any] = {"conv_in": reader.convolution("encoder.conv_in", channels, 3, 3)}
    found["blocks"], channels = reader.blocks("encoder", "down_blocks", "downsamplers", channels)
    latent = reader.inputs("decoder.conv_in")
    return found | {
        "middle": reader.middle("encoder.mid_block", channels),
        "norm_out": reader.norm("encoder.conv_norm_out", channels),
        "conv_out": reader.convolution("encoder.conv_out", 2 * latent, channels, 3),
    }


def _decoder(reader: _Reader) -> dict[str, Any]:
    channels, latent = reader.outputs("decoder.conv_in"), reader.inputs("decoder.conv_in")
    found: dict[str, Any] = {
        "conv_in": reader.convolution("decoder.conv_in", channels, latent, 3),
        "middle": reader.middle("decoder.mid_block", channels),
    }
    found["blocks"], channels = reader.blocks("decoder", "up_blocks", "upsamplers", channels)
    return found | {
        "norm_out": reader.norm("decoder.conv_norm_out", channels),
        "conv_out": reader.convolution("decoder.conv_out", 3, channels, 3),
    }
