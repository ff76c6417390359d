"""SiT: the class-conditional image transformer of arXiv 2401.08740, with a noise level for every token.

The architecture and the weights are, bit for bit, those released with arXiv 2603.06507: adaLN-Zero blocks (arXiv
2212.09748), fixed sine-cosine positions, no normalisation of queries and keys. The released network takes 1 - tau and
returns x0 - eps. `SiT.__call__` converts both: its inputs and outputs follow this project's convention (tau 0 is data,
1 is noise, the velocity is eps - x0), and the weights are the released ones, unchanged.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from selfflow.errors import UserError, check_at_least
from selfflow.modality import Modality
from selfflow.models.attention import attention
from selfflow.models.blocks import modulate
from selfflow.models.execution import Attend, Execution, Segments, last_block, stack
from selfflow.models.joint import Caption, Output
from selfflow.models.layers import Dense, select, set_gates, sinusoids, to_float32
from selfflow.models.projector import Projector
from selfflow.models.separation import Groups, Order, separated_attention

PATCH_SIZES = (1, 2, 4, 8)
# depth, width, heads
SHAPES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}


@dataclass(frozen=True)
class SiTConfig:
    """The shape of a SiT over square latents; blocks are counted from 1. The default is SiT-XL/2 on ImageNet 256."""

    kind: Literal["sit"] = "sit"
    width: int = 1152
    """D, channels of the residual stream; a multiple of 4 and of heads."""
    heads: int = 16
    """Number of attention heads, which divides the width."""
    depth: int = 28
    """Number of blocks."""
    mlp_ratio: float = 4.0
    """Ratio of the MLP's hidden channels to the width."""
    patch_size: int = 2
    """Latent positions that a token spans along each axis: 1, 2, 4 or 8."""
    input_size: int = 32
    """Height and width of a latent."""
    channels: int = 4
    """C, channels of a latent."""
    labels: int = 1000
    """Number of class labels; one more learned row means no label."""
    learn_sigma: bool = False
    """Whether the head has 2C output channels, of which the second C are unused, as in the released weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype of the computation; parameters are float32."""
    execution: Execution = Execution()
    """Execution on the hardware."""

    def __post_init__(self):
        check_at_least(self, "model.", width=4, heads=1, depth=1, input_size=1, channels=1, labels=0, mlp_ratio=0.1)
        if self.width % self.heads or self.width % 4:
            raise UserError(f"model.width {self.width} is not a multiple of 4 and of model.heads {self.heads}")
        if self.patch_size not in PATCH_SIZES:
            raise UserError(f"model.patch_size is {self.patch_size}: it must be one of {PATCH_SIZES}")
        if self.input_size % self.patch_size:
            raise UserError(
                f"model.input_size {self.input_size} is not a multiple of model.patch_size {self.patch_size}"
            )

    @classmethod
    def named(cls, name: str, **fields) -> "SiTConfig":
        """Returns a published shape, such as `SiTConfig.named("XL/2", input_size=32, channels=4, labels=1000)`.

        Args:
          name: S, B, L or XL, a slash, and the patch size.
          fields: other fields of the config.

        Raises:
          UserError: if there is no such shape.
        """
        size, _, patch = name.partition("/")
        if size not in SHAPES or patch not in map(str, PATCH_SIZES):
            raise UserError(f"there is no SiT {name!r}; give one of {', '.join(SHAPES)}, a slash, and 1, 2, 4 or 8")
        depth, width, heads = SHAPES[size]
        return cls(depth=depth, width=width, heads=heads, patch_size=int(patch), **fields)

    def check(self, modalities: dict[str, Modality], where: str) -> None:
        """Raises `UserError` unless there is one modality, with the latents and patches of this shape."""
        latent, patch = (self.input_size, self.input_size, self.channels), (self.patch_size, self.patch_size)
        if [(m.latent, m.patch) for m in modalities.values()] != [(latent, patch)]:
            others = ", ".join(f"{name} {m.latent} in patches {m.patch}" for name, m in modalities.items())
            raise UserError(
                f"{where}: a SiT of this model takes one modality {latent} in patches {patch}, not {others}"
            )

    @property
    def text(self) -> int:
        """Channels of captions, which this model does not take."""
        return 0

    @property
    def tokens(self) -> int:
        """N, the number of tokens of one latent."""
        return (self.input_size // self.patch_size) ** 2

    @property
    def token_size(self) -> int:
        """P, the number of latent elements in one token."""
        return self.channels * self.patch_size**2


class Block(nnx.Module):
    """x + gate attention(...), then x + gate mlp(...), each of the modulated norm of x (arXiv 2212.09748)."""

    def __init__(self, config: SiTConfig, *, rngs: nnx.Rngs):
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        self.heads = config.heads
        options = {"rngs": rngs, "dtype": config.dtype, "bias": True}
        self.modulation = Dense(width, 6 * width, ("embed", None), zero=True, **options)
        self.qkv = Dense(width, 3 * width, ("embed", "heads"), **options)
        self.project = Dense(width, width, ("heads", "embed"), **options)
        self.mlp_in = Dense(width, hidden, ("embed", "mlp"), **options)
        self.mlp_out = Dense(hidden, width, ("mlp", "embed"), **options)

    def __call__(
        self,
        x_BND: Float[Array, "B N D"],
        condition_BKD: Float[Array, "B K D"],
        assignment_BN: Int[Array, "B N"] | None,
        attend: Attend,
        open_gates: bool | Bool[Array, ""],
    ) -> Float[Array, "B N D"]:
        # Computed per level and selected part by part: one [B, N, D] for each use, never [B, N, 6D].
        parts = set_gates(jnp.split(self.modulation(condition_BKD), 6, axis=-1), open_gates)
        shift1, scale1, gate1, shift2, scale2, gate2 = (select(part, assignment_BN) for part in parts)
        qkv = self.qkv(modulate(x_BND, shift1, scale1))
        q, k, v = jnp.split(qkv.reshape(*qkv.shape[:2], 3 * self.heads, -1), 3, axis=2)
        x_BND = x_BND + gate1 * self.project(attend(q, k, v))
        hidden_BNF = jax.nn.gelu(self.mlp_in(modulate(x_BND, shift2, scale2)), approximate=True)
        return x_BND + gate2 * self.mlp_out(hidden_BNF)


class _Sequence(NamedTuple):
    """The embedded tokens of a batch, and the other inputs of the blocks.

    Attributes:
      x_BND: tokens.
      condition_BKD: embedding of noise level and label, per level.
      assignment_BN: the index of each token's level; None for one level, or one for each token in its place.
      attend: attention over all tokens.
      order: the order of the tokens, if it is not that of the input.
    """

    x_BND: Float[Array, "B N D"]
    condition_BKD: Float[Array, "B K D"]
    assignment_BN: Int[Array, "B N"] | None
    attend: Attend
    order: Order | None


class SiT(nnx.Module):
    """Noisy tokens of a latent, their noise levels and a label -> velocity and taps.

    Attributes:
      config: the shape.
      projector: the student's projector, which the model itself never calls; None by default.

    Args:
      config: the shape.
      projector: whether to create one.
      rngs: random keys of SiT's initialisation: Xavier uniform, embeddings with std 0.02, gates and head at 0.
    """

    def __init__(self, config: SiTConfig, *, projector: bool = False, rngs: nnx.Rngs):
        self.config = config
        width = config.width
        options = {"rngs": rngs, "dtype": config.dtype, "bias": True}
        small = nnx.initializers.normal(0.02)
        self.embed = Dense(config.token_size, width, (None, "embed"), **options)
        self.label_embedding = nnx.Param(
            small(rngs.params(), (config.labels + 1, width), jnp.float32), out_sharding=(None, None)
        )
        self.time_in = Dense(256, width, ("embed", None), init=small, **options)
        self.time_out = Dense(width, width, ("embed", None), init=small, **options)
        self.blocks = stack(Block, config, config.depth, rngs)
        self.final_modulation = Dense(width, 2 * width, ("embed", None), zero=True, **options)
        outputs = config.token_size * (2 if config.learn_sigma else 1)
        self.readout = Dense(width, outputs, ("embed", None), zero=True, **options)
        self.projector = Projector(width, rngs=rngs) if projector else None

    def __call__(
        self,
        tokens: dict[str, Float[Array, "B N P"]],
        levels: dict[str, Float[Array, "B"] | Float[Array, "B K"]],
        label_B: Int[Array, "B"],
        assignment: dict[str, Int[Array, "B N"]] | None = None,
        taps: tuple[int, ...] = (),
        stop_at: int | None = None,
        open_gates: bool | Bool[Array, ""] = False,
        caption: Caption | None = None,
        valid: dict[str, Bool[Array, "B N"]] | None = None,
        groups: Groups | None = None,
    ) -> Output:
        """Predicts the velocity of every token.

        The signature is that of `JointTransformer`, for one modality without captions or padding.

        In float32 on a CPU the output agrees with the released network to about 1e-5. Accelerators multiply float32
        matrices in fewer bits unless `jax.default_matmul_precision("highest")` is set around the call.

        Args:
          tokens: noisy tokens of the modality in row-major order, flattened as (channel, row, column);
            `Modality.to_tokens`.
          levels: noise levels, 0 = data and 1 = noise: with an assignment the levels of each sample [B, K]; without,
            one for each sample [B] or for each token [B, N].
          label_B: class labels; `config.labels` means no label.
          assignment: the index of each token's level among the K of its sample.
          taps: blocks after which the residual stream is returned.
          stop_at: return after this block, without a velocity; later weights are not read.
          open_gates: set every gate of a block to 1, so that the blocks of an untrained network have an effect.
          caption, valid: must be absent or empty.
          groups: two groups of tokens that do not see each other.

        Returns:
          An `Output`; the velocity is eps - x0, float32. Tokens keep their order even with groups.

        Raises:
          ValueError: if there are several modalities, captions or padding; tokens or levels have another shape; a tap
            is not a block of the model, or lies above `stop_at`.
        """
        if len(tokens) != 1 or caption is not None or valid:
            raise ValueError(f"a SiT takes one modality without captions or padding, not {sorted(tokens)}")
        last = last_block(self.config.depth, stop_at, taps=taps)
        (modality,) = tokens
        tokens_BNP, assignment_BN = tokens[modality], None if assignment is None else assignment[modality]
        level_BK = self._levels(tokens_BNP, levels[modality], assignment_BN)
        sequence = self._sequence(tokens_BNP, level_BK, label_B, assignment_BN, groups)

        def by_modality(x_BND: jax.Array) -> dict[str, jax.Array]:
            return {modality: x_BND if sequence.order is None else sequence.order.undo(x_BND)}

        def call(block: Block, x_BND: jax.Array, attend: Attend) -> jax.Array:
            return block(x_BND, sequence.condition_BKD, sequence.assignment_BN, attend, open_gates)

        segments = Segments(self.config.execution, sequence.attend, taps, by_modality)
        x_BND = segments.run(self.blocks, 0, last, sequence.x_BND, call)
        if stop_at is not None:
            return Output(None, segments.features)
        out_BNP = by_modality(self._head(x_BND, sequence))[modality]
        return Output({modality: self._velocity(out_BNP)}, segments.features)

    def _sequence(
        self,
        tokens_BNP: jax.Array,
        level_BK: jax.Array,
        label_B: jax.Array,
        assignment_BN: jax.Array | None,
        groups: Groups | None,
    ) -> _Sequence:
        """Embeds tokens and condition; with groups, the tokens are sorted by group."""
        config = self.config
        # The released network has time 0 at noise and 1 at data, so it takes 1 - tau, and does not scale it by 1000.
        time_BKD = self.time_out(jax.nn.silu(self.time_in(sinusoids(1 - level_BK, scale=1.0))))
        label_BD = self.label_embedding[...].astype(time_BKD.dtype)[label_B]
        condition_BKD = jax.nn.silu(time_BKD + label_BD[:, None])

        position_ND = position_embedding(config.input_size // config.patch_size, config.width)
        x_BND = self.embed(tokens_BNP)
        x_BND = x_BND + jnp.asarray(position_ND, x_BND.dtype)
        if groups is None:
            attend = partial(attention, implementation=config.execution.attention)
            return _Sequence(x_BND, condition_BKD, assignment_BN, attend, None)

        order = Order(groups, list(groups.group))
        x_BND = order.apply(x_BND)
        if assignment_BN is not None:
            assignment_BN = order.apply(assignment_BN)
        elif condition_BKD.shape[1] > 1:
            # With one level per token the conditions are sorted with the tokens.
            condition_BKD = order.apply(condition_BKD)
        attend = partial(
            separated_attention, seen_BN=None, groups=groups, text=0, implementation=config.execution.attention
        )
        return _Sequence(x_BND, condition_BKD, assignment_BN, attend, order)

    def _head(self, x_BND: jax.Array, sequence: _Sequence) -> Float[Array, "B N O"]:
        """Computes the output of the network, float32, with the tokens in the order of the blocks."""
        parts = jnp.split(self.final_modulation(sequence.condition_BKD), 2, axis=-1)
        shift, scale = (select(part, sequence.assignment_BN) for part in parts)
        return to_float32(self.readout(modulate(x_BND, shift, scale)))

    def _levels(self, tokens_BNP: jax.Array, level: jax.Array, assignment_BN: jax.Array | None) -> Float[Array, "B K"]:
        """Returns the levels as [B, K] after checking all shapes."""
        batch, count = tokens_BNP.shape[:2]
        if tokens_BNP.shape[1:] != (self.config.tokens, self.config.token_size):
            raise ValueError(
                f"tokens of shape {tokens_BNP.shape}: this model takes "
                f"[B, {self.config.tokens}, {self.config.token_size}]"
            )
        level_BK = level[:, None] if level.ndim == 1 else level
        if assignment_BN is None and level_BK.shape not in ((batch, 1), (batch, count)):
            raise ValueError(
                f"levels of shape {level.shape} without an assignment: give [{batch}], or one level for each token"
            )
        if assignment_BN is not None and assignment_BN.shape != (batch, count):
            raise ValueError(f"assignment of shape {assignment_BN.shape}: give [{batch}, {count}]")
        return level_BK

    def _velocity(self, out: jax.Array) -> Float[Array, "B N P"]:
        """Converts the output of the network, x0 - eps, to the velocity eps - x0.

        The elements of a token are (row, column, channel) in the output, and (channel, row, column) in the velocity.
        The second C channels of the output, if any, are unused.
        """
        patch = self.config.patch_size
        split = out.reshape(*out.shape[:2], patch, patch, -1)[..., : self.config.channels]
        return -split.transpose(0, 1, 4, 2, 3).reshape(*out.shape[:2], self.config.token_size)


def position_embedding(grid: int, width: int) -> Float[np.ndarray, "N D"]:
    """Computes the fixed position embedding, float32: half of the channels encode the column, the other half the row.

    Each half is [sin, cos] of position / 10000^(i / (D / 4)), i = 0 .. D / 4 - 1, in float64 (arXiv 2212.09748).

    Args:
      grid: tokens along each axis.
      width: D, a multiple of 4.
    """
    frequency = 1 / 10000.0 ** (np.arange(width // 4) / (width / 4))
    angle = np.arange(grid)[:, None] * frequency
    place_GE = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
    column = np.broadcast_to(place_GE[None], (grid, grid, width // 2))
    row = np.broadcast_to(place_GE[:, None], (grid, grid, width // 2))
    return np.concatenate([column, row], axis=-1).reshape(grid * grid, width).astype(np.float32)
