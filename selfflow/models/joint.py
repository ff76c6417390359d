"""The joint transformer: any set of modalities in one sequence.

Double-stream blocks, in which the text stream and the media stream have weights of their own and
attend together, then single-stream blocks over both; modulation is shared by all blocks of a kind
and has no gate open at the start (adaLN-Zero, arXiv 2212.09748). The form is that of FLUX.2, which
arXiv 2603.06507 uses for its multimodal models. The text stream holds the condition: one learned
token for the label, or for none, and the caption's embeddings where there are any.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from selfflow.errors import UserError
from selfflow.modality import Modality
from selfflow.models.blocks import DoubleBlock, SingleBlock, modulate, run_blocks, stack
from selfflow.models.layers import (
    Dense,
    rotary_angles,
    select,
    sinusoids,
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
    text: int = 0
    """Channels of a caption's embeddings; 0 for a model without captions."""
    text_tau: Literal["mean", "clean"] = "mean"
    """Noise level that modulates the text stream: the mean over the media tokens, or 0."""
    scan: bool = False
    """Run equal blocks as a loop: compilation time no longer grows with depth."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of computation; parameters are float32."""

    def __post_init__(self):
        for name, least in (("width", 1), ("heads", 1), ("labels", 0), ("text", 0), ("mlp_ratio", 0.1)):
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


class Caption(NamedTuple):
    """Embeddings of the captions of a batch; a sample whose mask is empty has none, or had it dropped."""

    embedding: Float[Array, "B L C"]
    mask: Bool[Array, "B L"]


class Output(NamedTuple):
    """What a model returns: the velocity eps - x0 per modality (None after `stop_at`) and the taps."""

    velocity: dict[str, Float[Array, "B N P"]] | None
    taps: dict[int, dict[str, Float[Array, "B N D"]]]


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
        if config.text:
            self.text_embed = Dense(config.text, width, (None, "embed"), **options)
        self.time_in, self.time_out = dense(256, width), dense(width, width)
        self.double_text, self.double_media = dense(width, 6 * width, zero=True), dense(width, 6 * width, zero=True)
        self.single_modulation = dense(width, 3 * width, zero=True)
        self.final_modulation = dense(width, 2 * width, zero=True)
        self.double = stack(DoubleBlock, config, config.double_blocks, rngs)
        self.single = stack(SingleBlock, config, config.single_blocks, rngs)
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
        caption: Caption | None = None,
        valid: dict[str, Bool[Array, "B N"]] | None = None,
    ) -> Output:
        """Predicts the velocity of every token.

        Args:
          tokens: noisy tokens of the modalities of this set.
          levels, assignment: their noise, as in `noise.Corruption`.
          label_B: class labels; `config.labels` stands for no label.
          taps: blocks after which the residual stream of the media tokens is returned.
          stop_at: return after this block, without a velocity; later weights are never touched.
          open_gates: take every gate as 1, which makes an untrained network more than its embedding.
          caption: of each sample, beside its label; a dropped condition is the null label and an empty mask.
          valid: tokens that are not padding; no token attends to padding. Modalities that are not named have none.

        Returns:
          An `Output`.

        Raises:
          ValueError: if a tap is no block of the model, or lies above `stop_at`, or the model takes no captions.
        """
        config, names = self.config, sorted(tokens)
        dtype = jnp.dtype(config.dtype)
        last = stop_at or config.depth
        if not all(1 <= block <= last for block in (*taps, last)) or last > config.depth:
            raise ValueError(f"taps {taps} and stop_at {stop_at}: this model has blocks 1 to {config.depth}")
        media = jnp.concatenate([self.embed[m](tokens[m]) for m in names], axis=1)
        text = self.label_embedding[...].astype(dtype)[label_B][:, None]
        if caption is not None:
            if not config.text:
                raise ValueError("a caption was given, but model.text is 0: this model takes none")
            text = jnp.concatenate([text, self.text_embed(caption.embedding)], axis=1)
        text_count = text.shape[1]
        seen_BN = _seen(caption, valid or {}, {m: tokens[m].shape[:2] for m in names})

        # All levels of a sample in one row: the text's first, then those of each modality.
        tau_BN = jnp.concatenate([jnp.take_along_axis(levels[m], assignment[m], axis=1) for m in names], axis=1)
        valid_BN = jnp.ones_like(tau_BN) if seen_BN is None else seen_BN[:, text_count:]
        # A sample that could not be read may be nothing but padding: its mean is 0, not 0 / 0.
        mean_tau_B1 = (tau_BN * valid_BN).sum(1, keepdims=True) / jnp.maximum(valid_BN.sum(1, keepdims=True), 1)
        text_tau_B1 = mean_tau_B1 * (config.text_tau == "mean")
        level_BK = jnp.concatenate([text_tau_B1] + [levels[m] for m in names], axis=1)
        offset, parts = 1, []
        for m in names:
            parts.append(assignment[m] + offset)
            offset += levels[m].shape[1]
        media_level = jnp.concatenate(parts, axis=1)
        level = jnp.concatenate([jnp.zeros((len(label_B), text_count), jnp.int32), media_level], axis=1)

        time_BKD = jax.nn.silu(self.time_out(jax.nn.silu(self.time_in(sinusoids(level_BK)))))
        angles = self._angles({m: tokens[m].shape[1] for m in names}, text_count)

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
            call = lambda layer, carry: layer(*carry, streams, angles, seen_BN)
            text, media = run_blocks(self.double, block, stop, (text, media), call, config.scan)
            block = stop
            tap(block, media)
        if last > config.double_blocks:
            x = jnp.concatenate([text, media], axis=1)
            shared = modulation(self.single_modulation, time_BKD, level, 3)
            for stop in (s for s in stops if s > config.double_blocks):
                first = config.double_blocks
                call = lambda layer, x: layer(x, shared, angles, seen_BN)
                x = run_blocks(self.single, block - first, stop - first, x, call, config.scan)
                block = stop
                tap(block, x[:, text_count:])
            media = x[:, text_count:]
        if stop_at is not None:
            return Output(None, found)

        scale, shift = modulation(self.final_modulation, time_BKD, media_level, 2)
        media = modulate(media, shift, scale)
        velocity = {m: self.readout[m](part).astype(jnp.float32) for m, part in by_modality(media).items()}
        return Output(velocity, found)

    def _angles(self, counts: dict[str, int], text_count: int) -> jax.Array:
        text = jnp.zeros((text_count, 4)).at[:, 3].set(jnp.arange(text_count))
        media = [jnp.asarray(self.modalities[m].of_tokens(count).coordinates()) for m, count in counts.items()]
        return rotary_angles(jnp.concatenate([text, *media]), self.config.rotary, self.config.rotary_theta)


def _seen(caption: Caption | None, valid: dict[str, jax.Array], shapes: dict[str, tuple]) -> jax.Array | None:
    """Which tokens of text and media may be attended to, [B, N]; None for all."""
    if caption is None and not valid:
        return None
    batch = next(iter(shapes.values()))[0]
    # The label's token is always there: attention over nothing would be no number.
    text = [jnp.ones((batch, 1), bool)] + ([] if caption is None else [caption.mask])
    return jnp.concatenate(text + [valid.get(m, jnp.ones(shape, bool)) for m, shape in shapes.items()], axis=1)
