"""The joint transformer: any set of modalities in one sequence.

Double-stream blocks, in which the text stream and the media stream have weights of their own and
attend together, then single-stream blocks over both; modulation is shared by all blocks of a kind
and has no gate open at the start (adaLN-Zero, arXiv 2212.09748). The form is that of FLUX.2, which
arXiv 2603.06507 uses for its multimodal models. Without a text encoder the text stream holds the
condition: one learned token for the label, or for none.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from selfflow.errors import UserError
from selfflow.modality import Modality
from selfflow.models.layers import (
    Dense,
    RMSNorm,
    attention,
    layer_norm,
    rotary_angles,
    rotate,
    select,
    sinusoids,
    swiglu,
)


@dataclass(frozen=True)
class JointConfig:
    """The shape of a joint transformer; blocks are counted from 1, double-stream blocks first."""

    kind: Literal["joint"] = "joint"
    width: int = 1152
    """D, channels of the residual stream."""
    heads: int = 16
    """Attention heads; they share the width."""
    double_blocks: int = 7
    """Blocks in which text and media have weights of their own."""
    single_blocks: int = 14
    """Blocks that treat text and media alike."""
    mlp_ratio: float = 4.0
    """Hidden channels of the SwiGLU over the width."""
    rotary: tuple[int, int, int, int] = (18, 18, 18, 18)
    """Channels of a head turned by the coordinates t, h, w and l; even numbers that add up to width / heads."""
    rotary_theta: float = 2000.0
    """Base of the rotary frequencies."""
    labels: int = 0
    """Number of class labels; one more learned token stands for no label."""
    text_tau: Literal["mean", "clean"] = "mean"
    """Noise level that modulates the text stream: the mean over the media tokens, or 0."""
    scan: bool = False
    """Run equal blocks as a loop: compilation time no longer grows with depth."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of computation; parameters are float32."""

    def __post_init__(self):
        for name, least in (("width", 1), ("heads", 1), ("labels", 0), ("mlp_ratio", 0.1)):
            if getattr(self, name) < least:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be at least {least}")
        if self.width % self.heads:
            raise UserError(f"model.width {self.width} is not a multiple of model.heads {self.heads}")
        head = self.width // self.heads
        if any(c % 2 or c < 0 for c in self.rotary) or sum(self.rotary) != head:
            raise UserError(
                f"model.rotary {self.rotary}: four even numbers that add up to width / heads = {head} are needed"
            )
        if self.double_blocks < 1 or self.single_blocks < 1:
            raise UserError("model.double_blocks and model.single_blocks must be at least 1")

    @property
    def depth(self) -> int:
        """Number of blocks of both kinds."""
        return self.double_blocks + self.single_blocks


class Output(NamedTuple):
    """What a model returns: the velocity eps - x0 per modality (None after `stop_at`) and the taps."""

    velocity: dict[str, Float[Array, "B N P"]] | None
    taps: dict[int, dict[str, Float[Array, "B N D"]]]


def _modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
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
    q, k, v = jnp.split(qkv.reshape(*qkv.shape[:2], 3 * heads, -1), 3, axis=2)
    return query_norm(q), key_norm(k), v


class _DoubleBlock(nnx.Module):
    def __init__(self, config: JointConfig, *, rngs: nnx.Rngs):
        self.text, self.media = _Stream(config, rngs=rngs), _Stream(config, rngs=rngs)

    def __call__(self, text: jax.Array, media: jax.Array, modulation: tuple, angles: jax.Array):
        streams, xs = (self.text, self.media), (text, media)
        qkv = [s.attention_inputs(_modulate(x, m[0], m[1])) for s, x, m in zip(streams, xs, modulation)]
        q, k, v = (jnp.concatenate(parts, axis=1) for parts in zip(*qkv))
        joined = attention(rotate(q, angles), rotate(k, angles), v)
        attended = jnp.split(joined, [text.shape[1]], axis=1)
        out = []
        for stream, x, a, m in zip(streams, xs, attended, modulation):
            x = x + m[2] * stream.project(a)
            out.append(x + m[5] * stream.mlp_out(swiglu(stream.mlp_in(_modulate(x, m[3], m[4])))))
        return tuple(out)


class _SingleBlock(nnx.Module):
    def __init__(self, config: JointConfig, *, rngs: nnx.Rngs):
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        self.heads, self.width = config.heads, width
        options = {"rngs": rngs, "dtype": config.dtype}
        # Queries, keys, values and the MLP share one product in and one out: they run side by side.
        self.inputs = Dense(width, 3 * width + 2 * hidden, ("embed", "mlp"), **options)
        self.query_norm = RMSNorm(width // config.heads, rngs=rngs)
        self.key_norm = RMSNorm(width // config.heads, rngs=rngs)
        self.outputs = Dense(width + hidden, width, ("mlp", "embed"), **options)

    def __call__(self, x_BND: jax.Array, modulation: tuple, angles: jax.Array):
        shift, scale, gate = modulation
        qkv, mlp = jnp.split(self.inputs(_modulate(x_BND, shift, scale)), [3 * self.width], axis=-1)
        q, k, v = _heads(qkv, self.heads, self.query_norm, self.key_norm)
        attended = attention(rotate(q, angles), rotate(k, angles), v)
        return x_BND + gate * self.outputs(jnp.concatenate([attended, swiglu(mlp)], axis=-1))


def _stack(block: type, config: JointConfig, count: int, rngs: nnx.Rngs):
    """`count` blocks whose parameters have a leading axis `layers`."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
    def make(rngs: nnx.Rngs):
        return block(config, rngs=rngs)

    return make(rngs)


def _run(stack: nnx.Module, start: int, stop: int, carry, call, scan: bool):
    """Applies blocks `start` to `stop` of a stack; `call(block, carry)` returns the next carry."""
    graph, params = nnx.split(stack)
    params = jax.tree.map(lambda p: p[start:stop], params)
    body = lambda carry, layer: (call(nnx.merge(graph, layer), carry), None)
    return jax.lax.scan(body, carry, params, unroll=1 if scan else stop - start)[0]


class JointTransformer(nnx.Module):
    """Noisy tokens of any set of modalities and their levels -> velocity and taps.

    Args:
      config: the shape.
      modalities: those that it has projections for.
      rngs: keys of the initialisation.
    """

    def __init__(self, config: JointConfig, modalities: dict[str, Modality], *, rngs: nnx.Rngs):
        self.config = config
        self.modalities = nnx.static(dict(modalities))
        width = config.width
        options = {"rngs": rngs, "dtype": config.dtype}
        dense = lambda inputs, outputs, **more: Dense(inputs, outputs, ("embed", None), **options, **more)
        self.embed = nnx.Dict(
            {m: Dense(modality.token_size, width, (None, "embed"), **options) for m, modality in modalities.items()}
        )
        self.label_embedding = nnx.Param(
            nnx.initializers.normal(0.02)(rngs.params(), (config.labels + 1, width)), out_sharding=(None, "embed")
        )
        self.time_in, self.time_out = dense(256, width), dense(width, width)
        self.double_text, self.double_media = dense(width, 6 * width, zero=True), dense(width, 6 * width, zero=True)
        self.single_modulation = dense(width, 3 * width, zero=True)
        self.final_modulation = dense(width, 2 * width, zero=True)
        self.double = _stack(_DoubleBlock, config, config.double_blocks, rngs)
        self.single = _stack(_SingleBlock, config, config.single_blocks, rngs)
        self.readout = nnx.Dict({m: dense(width, modality.token_size, zero=True) for m, modality in modalities.items()})

    def __call__(
        self,
        tokens: dict[str, Float[Array, "B N P"]],
        levels: dict[str, Float[Array, "B K"]],
        label_B: Int[Array, "B"],
        assignment: dict[str, Int[Array, "B N"]],
        taps: tuple[int, ...] = (),
        stop_at: int | None = None,
        open_gates: bool = False,
    ) -> Output:
        """Predicts the velocity of every token.

        Args:
          tokens: noisy tokens of the modalities of this set.
          levels, assignment: their noise, as in `noise.Corruption`.
          label_B: class labels; `config.labels` stands for no label.
          taps: blocks after which the residual stream of the media tokens is returned.
          stop_at: return after this block, without a velocity; later weights are never touched.
          open_gates: take every gate as 1, which makes an untrained network more than its embedding.

        Returns:
          An `Output`.

        Raises:
          ValueError: if a tap is no block of the model, or lies above `stop_at`.
        """
        config, names = self.config, sorted(tokens)
        dtype = jnp.dtype(config.dtype)
        last = stop_at or config.depth
        if not all(1 <= block <= last for block in (*taps, last)) or last > config.depth:
            raise ValueError(f"taps {taps} and stop_at {stop_at}: this model has blocks 1 to {config.depth}")
        media = jnp.concatenate([self.embed[m](tokens[m]) for m in names], axis=1)
        text = self.label_embedding[...].astype(dtype)[label_B][:, None]
        text_count = text.shape[1]

        # All levels of a sample in one row: the text's first, then those of each modality.
        tau_BN = jnp.concatenate([jnp.take_along_axis(levels[m], assignment[m], axis=1) for m in names], axis=1)
        text_tau_B1 = tau_BN.mean(axis=1, keepdims=True) * (config.text_tau == "mean")
        level_BK = jnp.concatenate([text_tau_B1] + [levels[m] for m in names], axis=1)
        offset, parts = 1, []
        for m in names:
            parts.append(assignment[m] + offset)
            offset += levels[m].shape[1]
        media_level = jnp.concatenate(parts, axis=1)
        level = jnp.concatenate([jnp.zeros((len(label_B), text_count), jnp.int32), media_level], axis=1)

        time_BKD = jax.nn.silu(self.time_out(jax.nn.silu(self.time_in(sinusoids(level_BK)))))
        angles = self._angles(names, text_count)

        def modulation(layer: Dense, x_BKD: jax.Array, level_BN: jax.Array | None, count: int) -> tuple:
            parts = jnp.split(layer(x_BKD), count, axis=-1)
            if open_gates and count > 2:
                parts = [jnp.ones_like(p) if i % 3 == 2 else p for i, p in enumerate(parts)]
            return tuple(select(part, level_BN) for part in parts)

        found: dict[int, dict[str, jax.Array]] = {}
        sizes = [tokens[m].shape[1] for m in names]

        def by_modality(media: jax.Array) -> dict[str, jax.Array]:
            return dict(zip(names, jnp.split(media, list(accumulate(sizes))[:-1], axis=1)))

        def tap(block: int, media: jax.Array) -> None:
            if block in taps:
                found[block] = by_modality(media)

        stops = sorted({*taps} | {min(config.double_blocks, last), last})
        streams = (
            modulation(self.double_text, time_BKD[:, :1], None, 6),
            modulation(self.double_media, time_BKD, media_level, 6),
        )
        block = 0
        for stop in (s for s in stops if s <= config.double_blocks):
            call = lambda layer, carry: layer(*carry, streams, angles)
            text, media = _run(self.double, block, stop, (text, media), call, config.scan)
            block = stop
            tap(block, media)
        if last > config.double_blocks:
            x = jnp.concatenate([text, media], axis=1)
            shared = modulation(self.single_modulation, time_BKD, level, 3)
            for stop in (s for s in stops if s > config.double_blocks):
                first = config.double_blocks
                call = lambda layer, x: layer(x, shared, angles)
                x = _run(self.single, block - first, stop - first, x, call, config.scan)
                block = stop
                tap(block, x[:, text_count:])
            media = x[:, text_count:]
        if stop_at is not None:
            return Output(None, found)

        scale, shift = modulation(self.final_modulation, time_BKD, media_level, 2)
        media = _modulate(media, shift, scale)
        velocity = {m: self.readout[m](part).astype(jnp.float32) for m, part in by_modality(media).items()}
        return Output(velocity, found)

    def _angles(self, names: list[str], text_count: int) -> jax.Array:
        text = jnp.zeros((text_count, 4)).at[:, 3].set(jnp.arange(text_count))
        coordinates = jnp.concatenate([text] + [jnp.asarray(self.modalities[m].coordinates()) for m in names])
        return rotary_angles(coordinates, self.config.rotary, self.config.rotary_theta)
