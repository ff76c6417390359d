"""The blocks of the joint transformer.

A modulation holds shift, scale and gate for each use, [B, N, D] or [B, 1, D]: a block adds
gate f(layer_norm(x) (1 + scale) + shift) to the residual stream, f attention or the MLP (arXiv 2212.09748).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from selfflow.models.execution import Attend
from selfflow.models.joint_config import JointConfig
from selfflow.models.layers import Dense, RMSNorm, layer_norm, rotate, swiglu


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """layer_norm(x) (1 + scale) + shift."""
    return layer_norm(x) * (1 + scale) + shift


class _Stream(nnx.Module):
    """The weights of one stream in a double-stream block."""

    def __init__(self, config: JointConfig, *, rngs: nnx.Rngs):
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        self.heads = config.heads
        options = {"rngs": rngs, "dtype": config.dtype}
        self.qkv = Dense(width, 3 * width, ("embed", "heads"), **options)
        self.query_norm = RMSNorm(width // config.heads, rngs=rngs)
        self.key_norm = RMSNorm(width // config.heads, rngs=rngs)
        self.project = Dense(width, width, ("heads", "embed"), **options)
        self.mlp_in = Dense(width, 2 * hidden, ("embed", "mlp"), **options)
        self.mlp_out = Dense(hidden, width, ("mlp", "embed"), **options)

    def attention_inputs(self, x_BND: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return _heads(self.qkv(x_BND), self.heads, self.query_norm, self.key_norm)


def _heads(qkv: jax.Array, heads: int, query_norm: RMSNorm, key_norm: RMSNorm) -> tuple[jax.Array, ...]:
    """Splits one product [B, N, 3 A H] into RMS-normalised queries and keys, and values, all [B, N, A, H]."""
    q, k, v = jnp.split(qkv.reshape(*qkv.shape[:2], 3 * heads, -1), 3, axis=2)
    return query_norm(q), key_norm(k), v


class DoubleBlock(nnx.Module):
    """A double-stream block: text and media have separate weights and attend jointly."""

    def __init__(self, config: JointConfig, *, rngs: nnx.Rngs):
        self.text, self.media = _Stream(config, rngs=rngs), _Stream(config, rngs=rngs)

    def __call__(self, text: jax.Array, media: jax.Array, modulation: tuple, angles: jax.Array, attend: Attend):
        # A stream's modulation m: shift, scale, gate of attention (0 to 2), then of the MLP (3 to 5).
        streams, xs = (self.text, self.media), (text, media)
        qkv = [s.attention_inputs(modulate(x, m[0], m[1])) for s, x, m in zip(streams, xs, modulation)]
        q, k, v = (jnp.concatenate(parts, axis=1) for parts in zip(*qkv))
        # One attention over [B, L + N], text first.
        joined = attend(rotate(q, angles), rotate(k, angles), v)
        attended = jnp.split(joined, [text.shape[1]], axis=1)
        out = []
        for stream, x, a, m in zip(streams, xs, attended, modulation):
            x = x + m[2] * stream.project(a)
            out.append(x + m[5] * stream.mlp_out(swiglu(stream.mlp_in(modulate(x, m[3], m[4])))))
        return tuple(out)


class SingleBlock(nnx.Module):
    """A single-stream block: text and media share weights; attention and MLP run in parallel."""

    def __init__(self, config: JointConfig, *, rngs: nnx.Rngs):
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        self.heads, self.width = config.heads, width
        options = {"rngs": rngs, "dtype": config.dtype}
        # Attention and MLP share their input, and their outputs are summed, so each side is one product.
        self.inputs = Dense(width, 3 * width + 2 * hidden, ("embed", "mlp"), **options)
        self.query_norm = RMSNorm(width // config.heads, rngs=rngs)
        self.key_norm = RMSNorm(width // config.heads, rngs=rngs)
        self.outputs = Dense(width + hidden, width, ("mlp", "embed"), **options)

    def __call__(self, x_BND: jax.Array, modulation: tuple, angles: jax.Array, attend: Attend):
        shift, scale, gate = modulation
        qkv, mlp = jnp.split(self.inputs(modulate(x_BND, shift, scale)), [3 * self.width], axis=-1)
        q, k, v = _heads(qkv, self.heads, self.query_norm, self.key_norm)
        attended = attend(rotate(q, angles), rotate(k, angles), v)
        return x_BND + gate * self.outputs(jnp.concatenate([attended, swiglu(mlp)], axis=-1))
