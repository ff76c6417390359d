"""The joint transformer: any set of modalities in one sequence.

Double-stream blocks, in which the text and media streams have separate weights and attend jointly, are followed by
single-stream blocks over both. Modulation is shared by all blocks of a kind, and its gates are 0 at initialisation
(adaLN-Zero, arXiv 2212.09748). The architecture follows FLUX.2, as do the multimodal models of arXiv 2603.06507. The
text stream holds the condition: one learned token for the label, or for none, and the caption's embeddings.

Every token is conditioned on its own tau_i. A sample has few distinct levels, so that modulation is computed for its K
levels, [B, K, D], and selected per token: the same numbers as from [B, N, D] for a fraction of the operations.

Shapes: B samples, N media tokens of all modalities (or of one), L text tokens, K levels, D channels, A heads of H.
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
from selfflow.models.execution import Attend, Segments, last_block, stack
from selfflow.models.joint_config import JointConfig
from selfflow.models.layers import Dense, rotary_angles, select, set_gates, sinusoids, to_float32
from selfflow.models.separation import Groups, Order, separated_attention


class Caption(NamedTuple):
    """Caption embeddings of a batch; the mask is empty for samples whose caption is missing or dropped."""

    embedding: Float[Array, "B L C"]
    mask: Bool[Array, "B L"]


class Output(NamedTuple):
    """The result of a model's forward pass.

    Attributes:
      velocity: eps - x0, per modality; None after `stop_at`.
      taps: the residual stream after the blocks that were requested, {block: {modality: ...}}.
      attention: attention weights of the blocks that were requested, of all heads A, by the modality of the queries and
        of the keys: `attention[4]["audio"]["video"]`. Over "text" and all modalities they sum to 1.
    """

    velocity: dict[str, Float[Array, "B N P"]] | None
    taps: dict[int, dict[str, Float[Array, "B N D"]]]
    attention: dict[int, dict[str, dict[str, Float[Array, "B A N M"]]]] = {}


class _Sequence(NamedTuple):
    """The embedded tokens of a batch, and the other inputs of the blocks.

    Attributes:
      text, media: the two streams.
      counts: number of tokens of each modality, in the order of the media tokens.
      media_level_BN: index of each media token's level among the levels of its sample.
      angles: rotary angles of all tokens, text first; per sample where the order differs by sample.
      attend: attention over all tokens, text first.
      seen_BN: tokens of text and media, in the order of the input, that are attended to; None for all.
      order: the order of the media tokens, if it is not that of the input.
    """

    text: Float[Array, "B L D"]
    media: Float[Array, "B N D"]
    counts: dict[str, int]
    media_level_BN: Int[Array, "B N"]
    angles: Float[Array, "*B L+N H/2"]
    attend: Attend
    seen_BN: Bool[Array, "B L+N"] | None
    order: Order | None

    def by_modality(self, media_BND: Float[Array, "B N D"]) -> dict[str, Float[Array, "B N D"]]:
        """Media tokens in the order of the input, by modality."""
        if self.order is not None:
            media_BND = self.order.undo(media_BND)
        return _split(media_BND, self.counts, axis=1)

    def attention_weights(
        self, q_BNAH: Float[Array, "B L+N A H"], k_BNAH: Float[Array, "B L+N A H"]
    ) -> dict[str, dict[str, Float[Array, "B A N M"]]]:
        """Attention weights by the modality of the queries, then of the keys; text is one of them."""
        counts = {"text": self.text.shape[1], **self.counts}
        weights = {}
        for m, rows in _split(attention_weights(q_BNAH, k_BNAH, self.seen_BN), counts, axis=2).items():
            weights[m] = _split(rows, counts, axis=3)
        return weights


class JointTransformer(nnx.Module):
    """Noisy tokens of any set of modalities and their levels -> velocity and taps.

    Args:
      config: the shape.
      modalities: input streams. Streams of one modality, such as `image` and `image:reference`, share their
        projections, and differ in the offset of their coordinates.
      rngs: random keys of the initialisation.
    """

    def __init__(self, config: JointConfig, modalities: dict[str, Modality], *, rngs: nnx.Rngs):
        self.config = config
        self.modalities = nnx.static(dict(modalities))
        width = config.width
        options = {"rngs": rngs, "dtype": config.dtype}
        sizes = _token_sizes(modalities)

        def dense(inputs: int, outputs: int, zero: bool = False) -> Dense:
            return Dense(inputs, outputs, ("embed", None), zero=zero, **options)

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
        open_gates: bool | Bool[Array, ""] = False,
        caption: Caption | None = None,
        scalars: dict[str, Float[Array, "B"]] | None = None,
        valid: dict[str, Bool[Array, "B N"]] | None = None,
        groups: Groups | None = None,
        attention_of: tuple[int, ...] = (),
    ) -> Output:
        """Predicts the velocity of every token.

        Args:
          tokens: noisy tokens of the modalities of the component.
          levels, assignment: their noise, as in `noise.Corruption`.
          label_B: class labels; `config.labels` means no label.
          taps: blocks after which the residual stream of the media tokens is returned.
          stop_at: return after this block, without a velocity; later weights are not read.
          open_gates: set every gate to 1, so that the blocks of an untrained network have an effect. If it is an array
            argument, one compiled program serves both values.
          caption: caption of each sample, beside its label; a dropped condition is the null label and an empty mask.
          scalars: values of the given `config.scalars`, of order 1 like tau.
          valid: tokens that are not padding; no token attends to padding. Modalities that are not named have none.
          groups: two groups of tokens that do not see each other.
          attention_of: blocks whose attention weights are returned too.

        Returns:
          An `Output`, in the order of the input tokens even with groups.

        Raises:
          ValueError: if a tap or `attention_of` is not a block of the model, or lies above `stop_at`; `attention_of` is
            combined with groups; or the model does not take captions or these scalars.
        """
        last = last_block(self.config.depth, stop_at, taps=taps, attention_of=attention_of)
        if attention_of and groups is not None:
            raise ValueError(f"attention_of {attention_of}: groups have no single matrix of weights; leave groups out")
        # Sorted by name, so that the order of the tokens does not depend on the order of a dict.
        counts = {m: tokens[m].shape[1] for m in sorted(tokens)}

        # All tokens in one sequence, and the noise levels of a sample in one row.
        seen_BN = _seen(caption, valid or {}, {m: tokens[m].shape[:2] for m in counts})
        level_BK, media_level_BN = self._levels(counts, levels, assignment, seen_BN)
        sequence = self._sequence(tokens, counts, media_level_BN, label_B, caption, seen_BN, groups)

        # The blocks, which return taps and attention weights.
        condition_BKD = self._condition(level_BK, scalars or {})
        segments = Segments(
            self.config.execution, sequence.attend, taps, sequence.by_modality, attention_of, sequence.attention_weights
        )
        media_BND = self._run_blocks(segments, sequence, condition_BKD, last, open_gates)
        if stop_at is not None:
            return Output(None, segments.features, segments.weights)
        velocity = self._velocity(media_BND, sequence, condition_BKD)
        return Output(velocity, segments.features, segments.weights)

    def _sequence(
        self,
        tokens: dict[str, jax.Array],
        counts: dict[str, int],
        media_level_BN: jax.Array,
        label_B: jax.Array,
        caption: Caption | None,
        seen_BN: jax.Array | None,
        groups: Groups | None,
    ) -> _Sequence:
        """Embeds all tokens; with groups, the media tokens are sorted by group."""
        text = self._text(label_B, caption)
        media = jnp.concatenate([self.embed[modality_of(m)](tokens[m]) for m in counts], axis=1)
        text_count, implementation = text.shape[1], self.config.execution.attention
        angles = self._angles(counts, text_count)
        if groups is None:
            attend = partial(attention, seen_BM=seen_BN, implementation=implementation)
            return _Sequence(text, media, counts, media_level_BN, angles, attend, seen_BN, None)
        # Each sample has its own order, and therefore its own angles.
        order = Order(groups, list(counts))
        angles_BNH = jnp.broadcast_to(angles, (len(label_B), *angles.shape))
        attend = partial(
            separated_attention,
            seen_BN=None if seen_BN is None else order.apply(seen_BN, after=text_count),
            groups=groups,
            text=text_count,
            implementation=implementation,
        )
        media, media_level_BN = order.apply(media), order.apply(media_level_BN)
        angles_BNH = order.apply(angles_BNH, after=text_count)
        return _Sequence(text, media, counts, media_level_BN, angles_BNH, attend, seen_BN, order)

    def _run_blocks(
        self, segments: Segments, sequence: _Sequence, condition_BKD: jax.Array, last: int, open_gates: bool | jax.Array
    ) -> Float[Array, "B N D"]:
        """Returns the media tokens after block `last`."""
        text, media, text_count = sequence.text, sequence.media, sequence.text.shape[1]

        # Double-stream blocks: text and media have separate weights and modulations. Level 0 is the text's.
        stream_modulation = (
            _modulation(self.double_text, condition_BKD[:, :1], None, 6, open_gates),
            _modulation(self.double_media, condition_BKD, sequence.media_level_BN, 6, open_gates),
        )

        def double(block: DoubleBlock, streams: tuple[jax.Array, jax.Array], attend: Attend) -> tuple:
            return block(*streams, stream_modulation, sequence.angles, attend)

        doubles = min(self.config.double_blocks, last)
        text, media = segments.run(self.double, 0, doubles, (text, media), double, lambda streams: streams[1])
        if last == doubles:
            return media

        # Single-stream blocks over the one sequence [B, L + N, D].
        text_level_BN = jnp.zeros((text.shape[0], text_count), jnp.int32)
        level_BN = jnp.concatenate([text_level_BN, sequence.media_level_BN], axis=1)
        modulation = _modulation(self.single_modulation, condition_BKD, level_BN, 3, open_gates)

        def single(block: SingleBlock, x_BND: jax.Array, attend: Attend) -> jax.Array:
            return block(x_BND, modulation, sequence.angles, attend)

        x_BND = jnp.concatenate([text, media], axis=1)
        x_BND = segments.run(self.single, doubles, last, x_BND, single, lambda x_BND: x_BND[:, text_count:])
        return x_BND[:, text_count:]

    def _velocity(
        self, media_BND: jax.Array, sequence: _Sequence, condition_BKD: jax.Array
    ) -> dict[str, Float[Array, "B N P"]]:
        """Computes the velocity of every token from the media tokens after the last block."""
        # Scale first, as in the head of FLUX.2; the modulations of blocks have shift, scale, gate.
        scale, shift = _modulation(self.final_modulation, condition_BKD, sequence.media_level_BN, 2, open_gates=False)
        velocity = {}
        for m, x_BND in sequence.by_modality(modulate(media_BND, shift, scale)).items():
            velocity[m] = to_float32(self.readout[modality_of(m)](x_BND))
        return velocity

    def _text(self, label_B: jax.Array, caption: Caption | None) -> Float[Array, "B L D"]:
        """Returns the text stream: the label's token, then the caption's tokens."""
        text = self.label_embedding[...].astype(jnp.dtype(self.config.dtype))[label_B][:, None]
        if caption is None:
            return text
        if not self.config.text:
            raise ValueError("caption is present, but model.text is 0: leave the caption out, or set model.text")
        return jnp.concatenate([text, self.text_embed(caption.embedding)], axis=1)

    def _levels(
        self,
        counts: dict[str, int],
        levels: dict[str, jax.Array],
        assignment: dict[str, jax.Array],
        seen_BN: jax.Array | None,
    ) -> tuple[Float[Array, "B K"], Int[Array, "B N"]]:
        """All levels of a sample in one row, the text's first, and the index in it of each media token's level."""
        names = list(counts)
        tau_BN = jnp.concatenate([jnp.take_along_axis(levels[m], assignment[m], axis=1) for m in names], axis=1)
        valid_BN = jnp.ones_like(tau_BN) if seen_BN is None else seen_BN[:, -tau_BN.shape[1] :]
        # An unreadable sample may consist of padding alone: its mean is 0, not 0 / 0.
        mean_tau_B1 = (tau_BN * valid_BN).sum(1, keepdims=True) / jnp.maximum(valid_BN.sum(1, keepdims=True), 1)
        text_tau_B1 = mean_tau_B1 * (self.config.text_tau == "mean")
        # Index 0 is the text's level; the levels of the modalities follow each other.
        starts = accumulate((levels[m].shape[1] for m in names[:-1]), initial=1)
        media_level = jnp.concatenate([assignment[m] + start for m, start in zip(names, starts)], axis=1)
        return jnp.concatenate([text_tau_B1] + [levels[m] for m in names], axis=1), media_level

    def _condition(self, level_BK: jax.Array, scalars: dict[str, jax.Array]) -> Float[Array, "B K D"]:
        """The embedding of each level, plus those of the scalars, which are the same for all levels of a sample."""
        unknown = sorted(set(scalars) - set(self.config.scalars))
        if unknown:
            raise ValueError(f"scalars {unknown} are unknown: model.scalars is {self.config.scalars}")
        time_BKD = self.time_out(jax.nn.silu(self.time_in(sinusoids(level_BK))))
        # `scalar_out` is initialised to zero, so that a model with scalars can start from weights without them.
        for name, value_B in scalars.items():
            hidden_BD = jax.nn.silu(self.scalar_in[name](sinusoids(value_B)))
            time_BKD = time_BKD + self.scalar_out[name](hidden_BD)[:, None]
        return jax.nn.silu(time_BKD)

    def _angles(self, counts: dict[str, int], text_count: int) -> Float[Array, "L+N H/2"]:
        # Coordinates (t, h, w, l): text tokens are at (0, 0, 0, index), media tokens have l = 0.
        text = jnp.zeros((text_count, 4)).at[:, 3].set(jnp.arange(text_count))
        media = [jnp.asarray(self.modalities[m].of_tokens(count).coordinates()) for m, count in counts.items()]
        return rotary_angles(jnp.concatenate([text, *media]), self.config.rotary, self.config.rotary_theta)


def _modulation(
    layer: Dense, x_BKD: jax.Array, level_BN: jax.Array | None, count: int, open_gates: bool | jax.Array
) -> tuple[Float[Array, "B N D"], ...]:
    """The `count` parts of a modulation, for each token; every third is a gate, which `open_gates` sets to 1."""
    parts = set_gates(jnp.split(layer(x_BKD), count, axis=-1), open_gates)
    return tuple(select(part, level_BN) for part in parts)


def _split(x: jax.Array, counts: dict[str, int], axis: int) -> dict[str, jax.Array]:
    """Splits x along an axis into consecutive parts of the given sizes, by name."""
    return dict(zip(counts, jnp.split(x, list(accumulate(counts.values()))[:-1], axis=axis)))


def _token_sizes(modalities: dict[str, Modality]) -> dict[str, int]:
    """Returns P of each modality, which must be equal for all of its streams."""
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
    # The label's token is always visible, since a softmax over no token is NaN.
    parts = [jnp.ones((batch, 1), bool)]
    if caption is not None:
        parts.append(caption.mask)
    for m, shape in shapes.items():
        parts.append(valid.get(m, jnp.ones(shape, bool)))
    return jnp.concatenate(parts, axis=1)
