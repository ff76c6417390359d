"""The joint transformer: any set of modalities in one sequence.

Double-stream blocks, in which the text stream and the media stream have weights of their own and
attend together, then single-stream blocks over both; modulation is shared by all blocks of a kind
and has no gate open at the start (adaLN-Zero, arXiv 2212.09748). The form is that of FLUX.2, which
arXiv 2603.06507 uses for its multimodal models. The text stream holds the condition: one learned
token for the label, or for none, and the caption's embeddings where there are any.
"""

from functools import partial
from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from selfflow.errors import UserError
from selfflow.modality import Modality, modality_of
from selfflow.models.attention import attention, attention_weights
from selfflow.models.blocks import DoubleBlock, SingleBlock, modulate
from selfflow.models.execution import run_apart, run_blocks, stack
from selfflow.models.joint_config import JointConfig
from selfflow.models.layers import Dense, rotary_angles, select, sinusoids, to_float32
from selfflow.models.separation import Groups, Order, separated_attention


class Caption(NamedTuple):
    """Embeddings of the captions of a batch; a sample whose mask is empty has none, or had it dropped."""

    embedding: Float[Array, "B L C"]
    mask: Bool[Array, "B L"]


class Output(NamedTuple):
    """What a model returns: the velocity eps - x0 per modality (None after `stop_at`) and the taps.

    Where they were asked for, also the attention weights of blocks, of all heads A, by whose tokens attend and whose
    are attended to: `attention[4]["audio"]["video"]`. Over "text" and all modalities they sum to 1.
    """

    velocity: dict[str, Float[Array, "B N P"]] | None
    taps: dict[int, dict[str, Float[Array, "B N D"]]]
    attention: dict[int, dict[str, dict[str, Float[Array, "B A N M"]]]] = {}


class JointTransformer(nnx.Module):
    """Noisy tokens of any set of modalities and their levels -> velocity and taps.

    Args:
      config: the shape.
      modalities: those that it has projections for. Streams of one modality, such as `image` and `image:reference`,
        share them, and differ in the offset of their coordinates.
      rngs: keys of the initialisation.
    """

    def __init__(self, config: JointConfig, modalities: dict[str, Modality], *, rngs: nnx.Rngs):
        self.config = config
        self.modalities = nnx.static(dict(modalities))
        width = config.width
        options = {"rngs": rngs, "dtype": config.dtype}
        dense = lambda inputs, outputs, **more: Dense(inputs, outputs, ("embed", None), **options, **more)
        sizes = _token_sizes(modalities)
        self.embed = nnx.Dict({m: Dense(size, width, (None, "embed"), **options) for m, size in sizes.items()})
        self.label_embedding = nnx.Param(
            nnx.initializers.normal(0.02)(rngs.params(), (config.labels + 1, width)), out_sharding=(None, None)
        )
        if config.text:
            self.text_embed = Dense(config.text, width, (None, "embed"), **options)
        self.time_in, self.time_out = dense(256, width), dense(width, width)
        if config.scalars:
            self.scalar_in = nnx.Dict({name: dense(256, width) for name in config.scalars})
            self.scalar_out = nnx.Dict({name: dense(width, width, zero=True) for name in config.scalars})
        self.double_text, self.double_media = dense(width, 6 * width, zero=True), dense(width, 6 * width, zero=True)
        self.single_modulation = dense(width, 3 * width, zero=True)
        self.final_modulation = dense(width, 2 * width, zero=True)
        self.double = stack(DoubleBlock, config, config.double_blocks, rngs)
        self.single = stack(SingleBlock, config, config.single_blocks, rngs)
        self.readout = nnx.Dict({m: dense(width, size, zero=True) for m, size in sizes.items()})

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
        scalars: dict[str, Float[Array, "B"]] | None = None,
        valid: dict[str, Bool[Array, "B N"]] | None = None,
        groups: Groups | None = None,
        attention_of: tuple[int, ...] = (),
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
          scalars: values of those of `config.scalars` that the samples have; of the size of 1, as tau is.
          valid: tokens that are not padding; no token attends to padding. Modalities that are not named have none.
          groups: two groups of tokens that do not see each other.
          attention_of: blocks whose attention weights are returned too.

        Returns:
          An `Output`, with groups too in the order of the tokens.

        Raises:
          ValueError: if a tap or `attention_of` is no block of the model, or lies above `stop_at`; weights are asked
            for with groups; the model takes no captions, or not these scalars.
        """
        config, names = self.config, sorted(tokens)
        last = config.depth if stop_at is None else stop_at
        if not all(1 <= block <= last for block in (*taps, *attention_of, last)) or last > config.depth:
            asked = f"taps {taps}, attention_of {attention_of} and stop_at {stop_at}"
            raise ValueError(f"{asked}: this model has blocks 1 to {config.depth}")
        if attention_of and groups is not None:
            raise ValueError(f"attention_of {attention_of}: groups have no one matrix of weights; ask without them")
        counts = {m: tokens[m].shape[1] for m in names}
        media = jnp.concatenate([self.embed[modality_of(m)](tokens[m]) for m in names], axis=1)
        text = self._text(label_B, caption)
        text_count = text.shape[1]
        seen_BN = _seen(caption, valid or {}, {m: tokens[m].shape[:2] for m in names})
        angles = self._angles(counts, text_count)
        level_BK, media_level = self._levels(names, levels, assignment, seen_BN)
        attend = partial(attention, seen_BM=seen_BN, implementation=config.execution.attention)
        order = None
        if groups is not None:
            order = Order(groups, names)
            media, media_level = order.apply(media), order.apply(media_level)
            angles = order.apply(jnp.broadcast_to(angles, (len(label_B), *angles.shape)), after=text_count)
            attend = partial(
                separated_attention,
                seen_BN=None if seen_BN is None else order.apply(seen_BN, after=text_count),
                groups=groups,
                text=text_count,
                implementation=config.execution.attention,
            )
        level = jnp.concatenate([jnp.zeros((len(label_B), text_count), jnp.int32), media_level], axis=1)
        time_BKD = self._condition(level_BK, scalars or {})

        def modulation(layer: Dense, x_BKD: jax.Array, level_BN: jax.Array | None, count: int) -> tuple:
            parts = jnp.split(layer(x_BKD), count, axis=-1)
            if open_gates and count > 2:
                parts = [jnp.ones_like(p) if i % 3 == 2 else p for i, p in enumerate(parts)]
            return tuple(select(part, level_BN) for part in parts)

        def by_modality(media: jax.Array) -> dict[str, jax.Array]:
            media = media if order is None else order.undo(media)
            return dict(zip(names, jnp.split(media, list(accumulate(counts.values()))[:-1], axis=1)))

        weights: dict[int, dict[str, dict[str, jax.Array]]] = {}

        def run(blocks: nnx.Module, before: int, start: int, stop: int, carry, call):
            """Blocks `start` to `stop` of the model, of a stack that has `before` blocks before it."""
            if stop not in attention_of:
                whole = partial(call, attend=attend)
                return run_blocks(blocks, start - before, stop - before, carry, whole, config.execution)

            def attend_and_keep(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
                weights[stop] = _by_range(attention_weights(q, k, seen_BN), {"text": text_count, **counts})
                return attend(q, k, v)

            return run_apart(blocks, stop - 1 - before, carry, partial(call, attend=attend_and_keep))

        found: dict[int, dict[str, jax.Array]] = {}
        alone = {stop for block in attention_of for stop in (block - 1, block) if stop}
        stops = sorted({*taps} | alone | {min(config.double_blocks, last), last})
        streams = (
            modulation(self.double_text, time_BKD[:, :1], None, 6),
            modulation(self.double_media, time_BKD, media_level, 6),
        )
        block = 0
        for stop in (s for s in stops if s <= config.double_blocks):
            call = lambda layer, carry, attend: layer(*carry, streams, angles, attend)
            text, media = run(self.double, 0, block, stop, (text, media), call)
            block = stop
            if block in taps:
                found[block] = by_modality(media)
        if last > config.double_blocks:
            x = jnp.concatenate([text, media], axis=1)
            shared = modulation(self.single_modulation, time_BKD, level, 3)
            for stop in (s for s in stops if s > config.double_blocks):
                call = lambda layer, x, attend: layer(x, shared, angles, attend)
                x = run(self.single, config.double_blocks, block, stop, x, call)
                block = stop
                if block in taps:
                    found[block] = by_modality(x[:, text_count:])
            media = x[:, text_count:]
        if stop_at is not None:
            return Output(None, found, weights)

        scale, shift = modulation(self.final_modulation, time_BKD, media_level, 2)
        parts = by_modality(modulate(media, shift, scale))
        return Output({m: to_float32(self.readout[modality_of(m)](x)) for m, x in parts.items()}, found, weights)

    def _text(self, label_B: jax.Array, caption: Caption | None) -> Float[Array, "B L D"]:
        """The text stream: the label's token, then the caption's."""
        text = self.label_embedding[...].astype(jnp.dtype(self.config.dtype))[label_B][:, None]
        if caption is None:
            return text
        if not self.config.text:
            raise ValueError("a caption was given, but model.text is 0: this model takes none")
        return jnp.concatenate([text, self.text_embed(caption.embedding)], axis=1)

    def _levels(
        self, names: list[str], levels: dict[str, jax.Array], assignment: dict[str, jax.Array], seen_BN
    ) -> tuple[Float[Array, "B K"], Int[Array, "B N"]]:
        """All levels of a sample in one row, the text's first, and which of them each media token has."""
        tau_BN = jnp.concatenate([jnp.take_along_axis(levels[m], assignment[m], axis=1) for m in names], axis=1)
        valid_BN = jnp.ones_like(tau_BN) if seen_BN is None else seen_BN[:, -tau_BN.shape[1] :]
        # A sample that could not be read may be nothing but padding: its mean is 0, not 0 / 0.
        mean_tau_B1 = (tau_BN * valid_BN).sum(1, keepdims=True) / jnp.maximum(valid_BN.sum(1, keepdims=True), 1)
        text_tau_B1 = mean_tau_B1 * (self.config.text_tau == "mean")
        starts = accumulate((levels[m].shape[1] for m in names[:-1]), initial=1)
        media_level = jnp.concatenate([assignment[m] + start for m, start in zip(names, starts)], axis=1)
        return jnp.concatenate([text_tau_B1] + [levels[m] for m in names], axis=1), media_level

    def _condition(self, level_BK: jax.Array, scalars: dict[str, jax.Array]) -> Float[Array, "B K D"]:
        """The embedding of each level, and of the scalars, which are those of the whole sample."""
        if unknown := sorted(set(scalars) - set(self.config.scalars)):
            raise ValueError(f"scalars {unknown} were given, but model.scalars is {self.config.scalars}")
        time_BKD = self.time_out(jax.nn.silu(self.time_in(sinusoids(level_BK))))
        for name, value_B in scalars.items():
            hidden_BD = jax.nn.silu(self.scalar_in[name](sinusoids(value_B)))
            time_BKD = time_BKD + self.scalar_out[name](hidden_BD)[:, None]
        return jax.nn.silu(time_BKD)

    def _angles(self, counts: dict[str, int], text_count: int) -> jax.Array:
        text = jnp.zeros((text_count, 4)).at[:, 3].set(jnp.arange(text_count))
        media = [jnp.asarray(self.modalities[m].of_tokens(count).coordinates()) for m, count in counts.items()]
        return rotary_angles(jnp.concatenate([text, *media]), self.config.rotary, self.config.rotary_theta)


def _by_range(weight_BANN: Float[Array, "B A N N"], counts: dict[str, int]) -> dict[str, dict[str, jax.Array]]:
    """Attention weights by whose tokens attend and whose are attended to."""
    split = lambda x, axis: zip(counts, jnp.split(x, list(accumulate(counts.values()))[:-1], axis=axis))
    return {m: dict(split(rows, 3)) for m, rows in split(weight_BANN, 2)}


def _token_sizes(modalities: dict[str, Modality]) -> dict[str, int]:
    """Size of a token of each modality, whose streams all have it."""
    sizes: dict[str, int] = {}
    for stream, modality in modalities.items():
        if sizes.setdefault(modality_of(stream), modality.token_size) != modality.token_size:
            raise UserError(
                f"{stream} has tokens of {modality.token_size} elements, and another stream of its modality "
                f"{sizes[modality_of(stream)]}: give both the same channels and patch"
            )
    return sizes


def _seen(caption: Caption | None, valid: dict[str, jax.Array], shapes: dict[str, tuple]) -> jax.Array | None:
    """Which tokens of text and media may be attended to, [B, N]; None for all."""
    if caption is None and not valid:
        return None
    batch = next(iter(shapes.values()))[0]
    # The label's token is always there: attention over nothing would be no number.
    text = [jnp.ones((batch, 1), bool)] + ([] if caption is None else [caption.mask])
    return jnp.concatenate(text + [valid.get(m, jnp.ones(shape, bool)) for m, shape in shapes.items()], axis=1)
