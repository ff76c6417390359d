"""The convolutional KL autoencoder of latent diffusion (arXiv 2112.10752), AutoencoderKL of diffusers.

SD-VAE is one, and so is FLUX.2's autoencoder, whose latents are packed, 2 x 2 positions into one, and normalised by the
running statistics of a batch normalisation.

Parameters are a tree of arrays as `kl_weights.read_kl` reads it; all sizes follow from the arrays.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from selfflow.encoders.convolution import convolve

_EPS = 1e-6
_LOG_VARIANCE = (-30.0, 20.0)  # clipped to, as in the code of latent diffusion
_PACK = 2


class Norm(NamedTuple):
    """Group normalisation: scale and shift [C]. The number of groups is the same in the whole network."""

    scale: Array
    shift: Array


def encode(params: dict[str, Any], x_BHWC: Float[Array, "B H W 3"], groups: int) -> tuple[Array, Array]:
    """Mean and standard deviation of the latents, [B, H / s, W / s, C] each, before any normalisation.

    Args:
      params: as `read_kl` returns them; their dtype is that of the arithmetic.
      x_BHWC: images in [-1, 1]; height and width are multiples of the stride s.
      groups: number of groups of the group normalisations.
    """
    p, resnet = params["encoder"], partial(_resnet, groups=groups)
    h = convolve(x_BHWC.astype(p["conv_in"].kernel.dtype), p["conv_in"])
    for block in p["blocks"]:
        for layer in block["resnets"]:
            h = resnet(h, layer)
        if "sample" in block:
            # Padded at the bottom and right alone, which "SAME" does not do for even sizes.
            h = convolve(jnp.pad(h, ((0, 0), (0, 1), (0, 1), (0, 0))), block["sample"], 2, "VALID")
    h = _middle(h, p["middle"], groups)
    h = convolve(jax.nn.silu(_norm(h, p["norm_out"], groups)), p["conv_out"])
    if "quant" in params:
        h = convolve(h, params["quant"])
    mean, log_variance = jnp.split(h.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.exp(0.5 * jnp.clip(log_variance, *_LOG_VARIANCE))


def decode(params: dict[str, Any], z_BHWC: Float[Array, "B H W C"], groups: int) -> Float[Array, "B H W 3"]:
    """Images, about in [-1, 1], of latents without normalisation."""
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
    """Packs 2 x 2 positions into one, with channels in the order (channel, row, column) of FLUX.2."""
    batch, height, width, channels = z_BHWC.shape
    split = z_BHWC.reshape(batch, height // _PACK, _PACK, width // _PACK, _PACK, channels)
    packed = split.transpose(0, 1, 3, 5, 2, 4)
    return packed.reshape(batch, height // _PACK, width // _PACK, channels * _PACK**2)


def unpack(z_BHWC: Float[Array, "B h w 4*C"]) -> Float[Array, "B H W C"]:
    """Returns the inverse of `pack`."""
    batch, height, width, channels = z_BHWC.shape
    split = z_BHWC.reshape(batch, height, width, channels // _PACK**2, _PACK, _PACK).transpose(0, 1, 4, 2, 5, 3)
    return split.reshape(batch, height * _PACK, width * _PACK, channels // _PACK**2)


def _norm(x: Float[Array, "B H W C"], norm: Norm, groups: int) -> Float[Array, "B H W C"]:
    batch, height, width, channels = x.shape
    # In float32 for every dtype: a sum over an image exceeds half precision.
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
    first, second = p["resnets"]
    x = _resnet(x, first, groups)
    if "attention" in p:
        x = x + _attention(_norm(x, p["attention"]["norm"], groups), p["attention"])
    return _resnet(x, second, groups)


def _attention(x: Float[Array, "B H W C"], p: dict[str, Any]) -> Float[Array, "B H W C"]:
    """Self-attention of one head over all positions."""
    batch, height, width, channels = x.shape
    tokens = x.reshape(batch, height * width, channels)
    q, k, v = (jnp.einsum("bnc,cd->bnd", tokens, p[name][0], precision="highest") + p[name][1] for name in "qkv")
    score = jnp.einsum("bnd,bmd->bnm", q, k, precision="highest").astype(jnp.float32) * channels**-0.5
    values = jnp.einsum("bnm,bmd->bnd", jax.nn.softmax(score).astype(v.dtype), v, precision="highest")
    return (jnp.einsum("bnc,cd->bnd", values, p["out"][0], precision="highest") + p["out"][1]).reshape(x.shape)
