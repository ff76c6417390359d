"""The blocks of the joint transformer, and stacks of them."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from selfflow.models.attention import attention
from selfflow.models.layers import Dense, RMSNorm, layer_norm, rotate, swiglu

if TYPE_CHECKING:
    from selfflow.models.joint import JointConfig


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    return layer_norm(x) * (1 + scale) + shift


class _Stream(nnx.Module):
    """The weights of one stream in a double-stream block."""

    def __init__(self, config: "JointConfig", *, rngs: nnx.Rngs):
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
    q, k, v = jnp.split(qkv.reshape(*qkv.shape[:2], 3 * heads, -1), 3, axis=2)
    return query_norm(q), key_norm(k), v


class DoubleBlock(nnx.Module):
    def __init__(self, config: "JointConfig", *, rngs: nnx.Rngs):
        self.text, self.media = _Stream(config, rngs=rngs), _Stream(config, rngs=rngs)

    def __call__(self, text: jax.Array, media: jax.Array, modulation: tuple, angles: jax.Array, seen_BN):
        streams, xs = (self.text, self.media), (text, media)
        qkv = [s.attention_inputs(modulate(x, m[0], m[1])) for s, x, m in zip(streams, xs, modulation)]
        q, k, v = (jnp.concatenate(parts, axis=1) for parts in zip(*qkv))
        joined = attention(rotate(q, angles), rotate(k, angles), v, seen_BN)
        attended = jnp.split(joined, [text.shape[1]], axis=1)
        out = []
        for stream, x, a, m in zip(streams, xs, attended, modulation):
            x = x + m[2] * stream.project(a)
            out.append(x + m[5] * stream.mlp_out(swiglu(stream.mlp_in(modulate(x, m[3], m[4])))))
        return tuple(out)


class SingleBlock(nnx.Module):
    def __init__(self, config: "JointConfig", *, rngs: nnx.Rngs):
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        self.heads, self.width = config.heads, width
        options = {"rngs": rngs, "dtype": config.dtype}
        # Queries, keys, values and the MLP share one product in and one out: they run side by side.
        self.inputs = Dense(width, 3 * width + 2 * hidden, ("embed", "mlp"), **options)
        self.query_norm = RMSNorm(width // config.heads, rngs=rngs)
        self.key_norm = RMSNorm(width // config.heads, rngs=rngs)
        self.outputs = Dense(width + hidden, width, ("mlp", "embed"), **options)

    def __call__(self, x_BND: jax.Array, modulation: tuple, angles: jax.Array, seen_BN):
        shift, scale, gate = modulation
        qkv, mlp = jnp.split(self.inputs(modulate(x_BND, shift, scale)), [3 * self.width], axis=-1)
        q, k, v = _heads(qkv, self.heads, self.query_norm, self.key_norm)
        attended = attention(rotate(q, angles), rotate(k, angles), v, seen_BN)
        return x_BND + gate * self.outputs(jnp.concatenate([attended, swiglu(mlp)], axis=-1))


def stack(block: type, config: "JointConfig", count: int, rngs: nnx.Rngs):
    """`count` blocks whose parameters have a leading axis `layers`."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
    def make(rngs: nnx.Rngs):
        return block(config, rngs=rngs)

    return make(rngs)


def run_blocks(blocks: nnx.Module, start: int, stop: int, carry, call, scan: bool):
    """Applies blocks `start` to `stop` of a stack; `call(block, carry)` returns the next carry."""
    graph, params = nnx.split(blocks)
    params = jax.tree.map(lambda p: p[start:stop], params)
    body = lambda carry, layer: (call(nnx.merge(graph, layer), carry), None)
    return jax.lax.scan(body, carry, params, unroll=1 if scan else stop - start)[0]
