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
from selfflow.models.execution import Attend, Segments, last_block, stack
from selfflow.models.joint_config import JointConfig
from selfflow.models.layers import Dense, rotary_angles, select, sinusoids, to_float32
from selfflow.models.separation import Groups, Order, separated_attention


class Caption(NamedTuple):
    """Embeddings of the captions of a batch; a sample whose mask is empty has none, or had it dropped."""

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
    """The embedded tokens of a batch, and what blocks need beside them.

    Attributes:
      text, media: the two streams.
      media_level_BN: which of its sample's noise levels each media token has.
      angles: rotary angles of all tokens, text first; of each sample if the order is its own.
      attend: attention over all tokens, text first.
      order: the order of the media tokens, if it is not that of the input.
    """

    text: Float[Array, "B L D"]
    media: Float[Array, "B N D"]
    media_level_BN: Int[Array, "B N"]
    angles: Float[Array, "*B L+N H/2"]
    attend: Attend
    order: Order | None


class JointTransformer(nnx.Module):
    """Noisy tokens of any set of modalities and their levels -> velocity and taps.

    Args:
      config: the shape.
      modalities: the streams that it takes. Streams of one modality, such as `image` and `image:reference`, share their
        projections, and differ in the offset of their coordinates.
      rngs: keys of the initialisation.
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
          ValueError: if a tap or `attention_of` is not a block of the model, or lies above `stop_at`; `attention_of` is
            combined with groups; the model takes no captions, or not these scalars.
        """
        last = last_block(self.config.depth, stop_at, taps=taps, attention_of=attention_of)
        if attention_of and groups is not None:
            raise ValueError(f"attention_of {attention_of}: groups have no one matrix of weights; leave groups out")
        counts = {m: tokens[m].shape[1] for m in sorted(tokens)}

        # All tokens in one sequence, and the noise levels of a sample in one row.
        seen_BN = _seen(caption, valid or {}, {m: tokens[m].shape[:2] for m in counts})
        level_BK, media_level_BN = self._levels(counts, levels, assignment, seen_BN)
        sequence = self._sequence(tokens, counts, media_level_BN, label_B, caption, seen_BN, groups)
        text_count = sequence.text.shape[1]

        def by_modality(media: jax.Array) -> dict[str, jax.Array]:
            media = media if sequence.order is None else sequence.order.undo(media)
            return _split(media, counts, axis=1)

        def weights_of(q: jax.Array, k: jax.Array) -> dict[str, dict[str, jax.Array]]:
            ranges = {"text": text_count, **counts}
            rows = _split(attention_weights(q, k, seen_BN), ranges, axis=2)
            return {m: _split(row, ranges, axis=3) for m, row in rows.items()}

        # The blocks, with taps and attention weights on the way.
        condition_BKD = self._condition(level_BK, scalars or {})
        segments = Segments(self.config.execution, sequence.attend, taps, by_modality, attention_of, weights_of)
        media = self._run_blocks(segments, sequence, condition_BKD, last, open_gates)
        if stop_at is not None:
            return Output(None, segments.features, segments.weights)

        # The velocity of each modality.
        scale, shift = _modulation(self.final_modulation, condition_BKD, sequence.media_level_BN, 2, open_gates=False)
        velocity = {}
        for m, x_BND in by_modality(modulate(media, shift, scale)).items():
            velocity[m] = to_float32(self.readout[modality_of(m)](x_BND))
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
        """Embeds all tokens; with groups, each group is one run of the media tokens."""
        text = self._text(label_B, caption)
        media = jnp.concatenate([self.embed[modality_of(m)](tokens[m]) for m in counts], axis=1)
        text_count, implementation = text.shape[1], self.config.execution.attention
        angles = self._angles(counts, text_count)
        if groups is None:
            attend = partial(attention, seen_BM=seen_BN, implementation=implementation)
            return _Sequence(text, media, media_level_BN, angles, attend, None)
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
        return _Sequence(text, media, media_level_BN, order.apply(angles_BNH, after=text_count), attend, order)

    def _run_blocks(
        self, segments: Segments, sequence: _Sequence, condition_BKD: jax.Array, last: int, open_gates: bool
    ) -> Float[Array, "B N D"]:
        """The media tokens after block `last`."""
        text, media, text_count = sequence.text, sequence.media, sequence.text.shape[1]

        # Double-stream blocks: text and media have weights, and so modulations, of their own.
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

        # Single-stream blocks: both in one stream.
        text_level_BN = jnp.zeros((text.shape[0], text_count), jnp.int32)
        level_BN = jnp.concatenate([text_level_BN, sequence.media_level_BN], axis=1)
        modulation = _modulation(self.single_modulation, condition_BKD, level_BN, 3, open_gates)

        def single(block: SingleBlock, x_BND: jax.Array, attend: Attend) -> jax.Array:
            return block(x_BND, modulation, sequence.angles, attend)

        x_BND = jnp.concatenate([text, media], axis=1)
        x_BND = segments.run(self.single, doubles, last, x_BND, single, lambda x_BND: x_BND[:, text_count:])
        return x_BND[:, text_count:]

    def _text(self, label_B: jax.Array, caption: Caption | None) -> Float[Array, "B L D"]:
        """The text stream: the label's token, then the caption's."""
        text = self.label_embedding[...].astype(jnp.dtype(self.config.dtype))[label_B][:, None]
        if caption is None:
            return text
        if not self.config.text:
            raise ValueError("caption is present, but model.text is 0: this model takes none")
        return jnp.concatenate([text, self.text_embed(caption.embedding)], axis=1)

    def _levels(
        self,
        counts: dict[str, int],
        levels: dict[str, jax.Array],
        assignment: dict[str, jax.Array],
        seen_BN: jax.Array | None,
    ) -> tuple[Float[Array, "B K"], Int[Array, "B N"]]:
        """All levels of a sample in one row, the text's first, and which of them each media token has."""
        names = list(counts)
        tau_BN = jnp.concatenate([jnp.take_along_axis(levels[m], assignment[m], axis=1) for m in names], axis=1)
        valid_BN = jnp.ones_like(tau_BN) if seen_BN is None else seen_BN[:, -tau_BN.shape[1] :]
        # An unreadable sample may be nothing but padding: its mean is 0, not 0 / 0.
        mean_tau_B1 = (tau_BN * valid_BN).sum(1, keepdims=True) / jnp.maximum(valid_BN.sum(1, keepdims=True), 1)
        text_tau_B1 = mean_tau_B1 * (self.config.text_tau == "mean")
        starts = accumulate((levels[m].shape[1] for m in names[:-1]), initial=1)
        media_level = jnp.concatenate([assignment[m] + start for m, start in zip(names, starts)], axis=1)
        return jnp.concatenate([text_tau_B1] + [levels[m] for m in names], axis=1), media_level

    def _condition(self, level_BK: jax.Array, scalars: dict[str, jax.Array]) -> Float[Array, "B K D"]:
        """The embedding of each level, plus those of the scalars, which are the same for all levels of a sample."""
        unknown = sorted(set(scalars) - set(self.config.scalars))
        if unknown:
            raise ValueError(f"scalars {unknown} are unknown: model.scalars is {self.config.scalars}")
        time_BKD = self.time_out(jax.nn.silu(self.time_in(sinusoids(level_BK))))
        for name, value_B in scalars.items():
            hidden_BD = jax.nn.silu(self.scalar_in[name](sinusoids(value_B)))
            time_BKD = time_BKD + self.scalar_out[name](hidden_BD)[:, None]
        return jax.nn.silu(time_BKD)

    def _angles(self, counts: dict[str, int], text_count: int) -> jax.Array:
        text = jnp.zeros((text_count, 4)).at[:, 3].set(jnp.arange(text_count))
        media = [jnp.asarray(self.modalities[m].of_tokens(count).coordinates()) for m, count in counts.items()]
        return rotary_angles(jnp.concatenate([text, *media]), self.config.rotary, self.config.rotary_theta)


def _modulation(
    layer: Dense, x_BKD: jax.Array, level_BN: jax.Array | None, count: int, open_gates: bool
) -> tuple[Float[Array, "B N D"], ...]:
    """The `count` parts of a modulation, for each token; every third is a gate, which `open_gates` sets to 1."""
    parts = jnp.split(layer(x_BKD), count, axis=-1)
    if open_gates:
        parts = [jnp.ones_like(part) if i % 3 == 2 else part for i, part in enumerate(parts)]
    return tuple(select(part, level_BN) for part in parts)


def _split(x: jax.Array, counts: dict[str, int], axis: int) -> dict[str, jax.Array]:
    """x cut along an axis into runs of so many, by name."""
    return dict(zip(counts, jnp.split(x, list(accumulate(counts.values()))[:-1], axis=axis)))


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
    # The label's token is always seen: attention over no token at all would be NaN.
    parts = [jnp.ones((batch, 1), bool)]
    if caption is not None:
        parts.append(caption.mask)
    for m, shape in shapes.items():
        parts.append(valid.get(m, jnp.ones(shape, bool)))
    return jnp.concatenate(parts, axis=1)
