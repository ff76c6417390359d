"""Noise: the noise level of each token, and the corruption of clean tokens.

tau in [0, 1] is the noise level of a token: 0 is data, 1 is noise, everywhere in this package. A corrupted token is
x_tau = (1 - tau) x0 + tau eps with eps ~ N(0, 1), and the velocity to predict is v = eps - x0.

Dual-Timestep Scheduling (arXiv 2603.06507), the default, draws two levels t, s ~ p(tau) for a sample and a random set
M of masked tokens; token i has tau_i = s if i is in M, and t otherwise. The teacher sees all tokens at min(t, s).

Everything random is drawn from one key per sample, so that a sample's noise depends neither on the batch it is in nor
on how the batch is split. Shapes: B samples, K levels, N tokens, P latent elements of a token.
"""

import zlib
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from selfflow.context import check_table, draw_context
from selfflow.errors import UserError
from selfflow.modality import Modality, modality_of


class Corruption(NamedTuple):
    """The noise levels and the context of a batch of tokens, per modality.

    Attributes:
      levels: the distinct taus of a sample, [B, K]. With `context` the last level is 0.
      assignment: the index of each token's level, [B, N]: tau_i = levels[assignment_i].
      context: tokens held at tau = 0 for student and teacher and excluded from every loss, [B, N]; a modality
        without context tokens is absent.
    """

    levels: dict[str, Float[Array, "B K"]]
    assignment: dict[str, Int[Array, "B N"]]
    context: dict[str, Bool[Array, "B N"]]

    def tau(self) -> dict[str, Float[Array, "B N"]]:
        """Returns the noise level of every token."""
        return {m: jnp.take_along_axis(self.levels[m], self.assignment[m], axis=1) for m in self.levels}

    def at_min_level(self) -> "Corruption":
        """Returns all tokens of a modality at the lowest of its levels, min(t, s); context tokens stay at 0.

        This is the teacher's view in arXiv 2603.06507.
        """
        levels, assignment = {}, {}
        for m, level_BK in self.levels.items():
            if m in self.context:
                # The last level is the context's: a minimum over all levels would be 0 for every token.
                lowest_B1 = level_BK[:, :-1].min(axis=1, keepdims=True)
                levels[m] = jnp.concatenate([lowest_B1, jnp.zeros_like(lowest_B1)], axis=1)
                assignment[m] = self.context[m].astype(jnp.int32)
            else:
                levels[m] = level_BK.min(axis=1, keepdims=True)
                assignment[m] = jnp.zeros_like(self.assignment[m])
        return Corruption(levels, assignment, self.context)

    def lowered_by(self, by: dict[str, Float[Array, "B K"]]) -> "Corruption":
        """Returns every level minus `by`, at least 0."""
        levels = {}
        for m, level_BK in self.levels.items():
            levels[m] = jnp.maximum(level_BK - by[m], 0)
        return self._replace(levels=levels)

    def with_context(self, context: dict[str, Bool[Array, "B N"]]) -> "Corruption":
        """Returns the same corruption with the `context` tokens at tau = 0."""
        levels, assignment = dict(self.levels), dict(self.assignment)
        for m, context_BN in context.items():
            count = levels[m].shape[1]
            # One more level, 0, at index K.
            levels[m] = jnp.pad(levels[m], ((0, 0), (0, 1)))
            assignment[m] = jnp.where(context_BN, count, assignment[m])
        return Corruption(levels, assignment, context)


def corrupt(
    x: dict[str, Float[Array, "B N P"]], eps: dict[str, Float[Array, "B N P"]], corruption: Corruption
) -> dict[str, Float[Array, "B N P"]]:
    """x_tau = (1 - tau) x0 + tau eps, token by token (arXiv 2603.06507)."""
    tau = corruption.tau()
    return {m: (1 - tau[m][..., None]) * x[m] + tau[m][..., None] * eps[m] for m in x}


def draw_eps(keys_B: Key[Array, "B"], x: dict[str, Float[Array, "B N P"]]) -> dict[str, Float[Array, "B N P"]]:
    """Standard normal noise of the shape of `x`; that of sample i depends on `keys_B[i]` alone."""
    eps = {}
    for m, x_BNP in x.items():
        draw_sample = partial(jax.random.normal, shape=x_BNP.shape[1:])
        eps[m] = jax.vmap(draw_sample)(keys_for(keys_B, f"eps {m}"))
    return eps


def keys_for(keys_B: Key[Array, "B"], purpose: str) -> Key[Array, "B"]:
    """Keys of one purpose; different purposes are independent."""
    # The name is hashed, not counted: a modality draws the same numbers in every component. Not Python's hash(), which
    # differs between processes.
    number = zlib.crc32(purpose.encode()) & 0x7FFFFFFF
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys_B)


@dataclass(frozen=True)
class UniformTau:
    """p(tau) uniform on [0, 1], shifted; better than logit-normal for text-to-image in arXiv 2603.06507."""

    kind: Literal["uniform"] = "uniform"
    shift: float = 1.0
    """sigma in tau' = sigma tau / (1 + (sigma - 1) tau) (arXiv 2403.03206); above 1 means more noise. For Self-Flow
    the best value is higher than for flow matching alone: for audio 1.0 instead of 0.75 in arXiv 2603.06507."""

    def __post_init__(self):
        _check_shift(self.shift)

    def quantile(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the tau below which a fraction `u` of the distribution lies."""
        return _shifted(u, self.shift)


@dataclass(frozen=True)
class LogitNormalTau:
    """p(tau) whose logit is normal (arXiv 2403.03206), shifted."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    """Mean of the logit of tau."""
    std: float = 1.0
    """Standard deviation of the logit of tau."""
    shift: float = 1.0
    """sigma in tau' = sigma tau / (1 + (sigma - 1) tau); above 1 means more noise."""

    def __post_init__(self):
        _check_shift(self.shift)
        if not 0 < self.std < float("inf"):
            raise UserError(f"tau.std is {self.std}: give a number above 0")

    def quantile(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the tau below which a fraction `u` of the distribution lies."""
        # logit(tau) ~ N(mean, std^2), so that tau = sigmoid(mean + std Phi^-1(u)).
        return _shifted(jax.nn.sigmoid(self.mean + self.std * jax.scipy.special.ndtri(u)), self.shift)


def _check_shift(shift: float) -> None:
    if not 0 < shift < float("inf"):
        raise UserError(f"tau.shift is {shift}: give a number above 0")


def _shifted(tau: Float[Array, "..."], sigma: float) -> Float[Array, "..."]:
    """tau' = sigma tau / (1 + (sigma - 1) tau), which increases with tau and keeps 0 and 1."""
    return sigma * tau / (1 + (sigma - 1) * tau)


@dataclass(frozen=True)
class _Schedule:
    tau: dict[str, UniformTau | LogitNormalTau] = field(default_factory=dict)
    """p(tau) of each modality; uniform where it is not named."""
    draw: Literal["shared", "per_modality"] = "shared"
    """Whether the modalities of a sample map one draw of uniforms through their p(tau), or draw their own; the paper
    does not specify it."""
    context: dict[str, float] = field(default_factory=dict)
    """Probability of each case of context in training, which sampling may then use: modality, first_frame, prefix,
    inpaint_time, inpaint_region. The remaining samples have no context."""

    # Whether modalities may share a draw of uniforms; it has one number per level.
    _may_share: ClassVar[bool] = True

    def __post_init__(self):
        check_table(self.context)

    def with_context(
        self, corruption: Corruption, keys_B: Key[Array, "B"], modalities: dict[str, Modality]
    ) -> Corruption:
        """Adds the context of each sample, drawn by the probabilities of `context`."""
        if not self.context:
            return corruption
        # The purpose selects the random numbers: under another name every run would draw other tokens.
        return corruption.with_context(draw_context(keys_for(keys_B, "given"), self.context, modalities))

    def intervals(self, keys_B: Key[Array, "B"], corruption: Corruption, high: float) -> dict[str, Float[Array, "B K"]]:
        """Returns a uniform number in [0, high) for each level, by modality, which is subtracted from a teacher's
        levels."""
        intervals = {}
        for m, level_BK in corruption.levels.items():
            intervals[m] = high * self._uniforms(keys_B, "interval", m, level_BK.shape[1])
        return intervals

    def _levels(self, keys_B: Key[Array, "B"], counts: dict[str, int]) -> dict[str, Float[Array, "B K"]]:
        """Draws K = `counts[m]` independent levels of each modality m from its p(tau)."""
        levels = {}
        for m, count in counts.items():
            # Inversion: modalities that share u have levels of one rank, each with its own p(tau) and shift.
            u_BK = self._uniforms(keys_B, "tau", m, count)
            levels[m] = self.tau.get(modality_of(m), UniformTau()).quantile(u_BK)
        return levels

    def _uniforms(self, keys_B: Key[Array, "B"], purpose: str, modality: str, count: int) -> Float[Array, "B K"]:
        """Numbers in [0, 1) of one purpose, drawn once for all modalities or for each."""
        shared = self._may_share and self.draw == "shared"
        name = purpose if shared else f"{purpose} {modality}"
        return jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys_for(keys_B, name))


@dataclass(frozen=True)
class UniformTimestep(_Schedule):
    """Vanilla flow matching: one tau for all tokens of a sample."""

    kind: Literal["uniform"] = "uniform"

    def sample(self, keys_B: Key[Array, "B"], layout: dict[str, int]) -> Corruption:
        """Levels [B, 1]; `layout` gives the number of tokens of each modality."""
        levels = self._levels(keys_B, dict.fromkeys(layout, 1))
        assignment = {m: jnp.zeros((len(keys_B), tokens), jnp.int32) for m, tokens in layout.items()}
        return Corruption(levels, assignment, {})


@dataclass(frozen=True)
class _Masked(_Schedule):
    mask_ratio: dict[str, float] = field(default_factory=lambda: {"image": 0.25, "video": 0.1, "audio": 0.5})
    """Fraction of a modality's tokens that are masked, at most 0.5 (arXiv 2603.06507)."""
    mask: Literal["exact", "bernoulli"] = "exact"
    """Whether that fraction is exact in every sample, as in the code of arXiv 2607.02508, or each token is masked
    independently with that probability, as in the port gregoiremrr/self-flow-torch."""

    def __post_init__(self):
        super().__post_init__()
        for m, ratio in self.mask_ratio.items():
            if not 0 <= ratio <= 0.5:
                raise UserError(f"schedule.mask_ratio.{m} is {ratio}: give a number from 0 to 0.5")

    def masked(self, modality: str, tokens: int) -> int:
        """Number of a modality's tokens that are masked: in every sample, or on average for Bernoulli masks."""
        return round(self._ratio(modality) * tokens)

    def _ratio(self, modality: str) -> float:
        name = modality_of(modality)
        if name not in self.mask_ratio:
            raise UserError(f"schedule.mask_ratio has no entry for {name}: add one")
        return self.mask_ratio[name]

    def _masks(self, keys_B: Key[Array, "B"], layout: dict[str, int]) -> dict[str, Int[Array, "B N"]]:
        """Returns the set M of each modality: 1 for masked tokens, 0 for the others, drawn per modality."""
        return {m: self._mask(keys_B, m, tokens) for m, tokens in layout.items()}

    def _mask(self, keys_B: Key[Array, "B"], modality: str, tokens: int) -> Int[Array, "B N"]:
        keys_B = keys_for(keys_B, f"mask {modality}")
        if self.mask == "bernoulli":
            u_BN = jax.vmap(lambda key: jax.random.uniform(key, (tokens,)))(keys_B)
            return (u_BN < self._ratio(modality)).astype(jnp.int32)
        # The first R_M N numbers of a random permutation: as many masked tokens in every sample, in random places.
        permutation_BN = jax.vmap(lambda key: jax.random.permutation(key, tokens))(keys_B)
        return (permutation_BN < self.masked(modality, tokens)).astype(jnp.int32)


@dataclass(frozen=True)
class DualTimestep(_Masked):
    """Dual-Timestep Scheduling (arXiv 2603.06507): t and s ~ p(tau), independent and unsorted.

    tau_i = s for masked tokens, t for the others. Since t and s are not sorted, the marginal of every tau_i is p(tau).
    """

    kind: Literal["dual"] = "dual"
    sorted: bool = False
    """Whether s is the higher of the two, so that masked tokens are the noisier ones, as in MAE. The authors advise
    against it (issue 2 of the released code): p(tau) is then the marginal of no token."""
    band: float | None = None
    """Draws s uniformly from [t - band, t], at least 0: with 0.2 an ablation of arXiv 2603.06507, about as bad there as
    no masking."""

    def __post_init__(self):
        super().__post_init__()
        if self.band is not None and not 0 < self.band <= 1:
            raise UserError(f"schedule.band is {self.band}: give a number above 0, up to 1, or none")
        if self.band is not None and self.sorted:
            raise UserError("schedule.band and schedule.sorted exclude each other: s cannot be below t and above it")

    def sample(self, keys_B: Key[Array, "B"], layout: dict[str, int]) -> Corruption:
        """Levels [B, 2] = (t, s); `layout` gives the number of tokens of each modality."""
        levels = self._levels(keys_B, dict.fromkeys(layout, 2))
        if self.sorted:
            for m in layout:
                levels[m] = jnp.sort(levels[m], axis=1)
        if self.band is not None:
            for m in layout:
                # s = max(t - U(0, band), 0)
                t_B1 = levels[m][:, :1]
                s_B1 = jnp.maximum(t_B1 - self.band * self._uniforms(keys_B, "band", m, 1), 0)
                levels[m] = jnp.concatenate([t_B1, s_B1], axis=1)
        return Corruption(levels, self._masks(keys_B, layout), {})


@dataclass(frozen=True)
class FullMasking(_Masked):
    """An alternative to dual timesteps: masked tokens are pure noise (tau = 1), the others get t ~ p(tau)."""

    kind: Literal["full_masking"] = "full_masking"

    def sample(self, keys_B: Key[Array, "B"], layout: dict[str, int]) -> Corruption:
        """Levels [B, 2] = (t, 1); `layout` gives the number of tokens of each modality."""
        levels = {}
        for m, t_B1 in self._levels(keys_B, dict.fromkeys(layout, 1)).items():
            levels[m] = jnp.pad(t_B1, ((0, 0), (0, 1)), constant_values=1.0)
        return Corruption(levels, self._masks(keys_B, layout), {})


@dataclass(frozen=True)
class DiffusionForcing(_Schedule):
    """Diffusion forcing (arXiv 2407.01392): an independent tau for every token."""

    kind: Literal["diffusion_forcing"] = "diffusion_forcing"

    _may_share: ClassVar[bool] = False  # modalities differ in their number of tokens

    def sample(self, keys_B: Key[Array, "B"], layout: dict[str, int]) -> Corruption:
        """Levels [B, N], one for each token; `layout` gives the number of tokens of each modality."""
        levels = self._levels(keys_B, layout)
        assignment = {}
        for m, tokens in layout.items():
            assignment[m] = jnp.broadcast_to(jnp.arange(tokens), (len(keys_B), tokens))
        return Corruption(levels, assignment, {})


Schedule = UniformTimestep | DualTimestep | FullMasking | DiffusionForcing
