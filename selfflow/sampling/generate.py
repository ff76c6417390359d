"""Samples of any set of modalities from a trained model, with any part of them as context."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selfflow.errors import UserError, check_above_zero, check_at_least
from selfflow.modality import Modality, to_tokens
from selfflow.models.joint import Caption, Output
from selfflow.models.placement import split_samples
from selfflow.noise import Corruption, keys_for
from selfflow.sampling.solvers import LAST_TAU, euler, euler_maruyama, guided, heun, time_grid


@dataclass(frozen=True)
class Sampler:
    """Settings of the sampler."""

    solver: Literal["euler", "heun", "euler_maruyama"] = "euler"
    """Euler and Heun integrate the ODE, Euler-Maruyama the SDE with the same marginals."""
    steps: int = 50
    """Steps of the solver. Heun evaluates the model 2 steps - 1 times, the others once per step."""
    shift: float = 1.0
    """sigma in tau' = sigma tau / (1 + (sigma - 1) tau), which maps a uniform grid of taus; above 1 steps are short
    near noise."""
    guidance: float = 1.0
    """Scale of classifier-free guidance towards label and caption; 1 disables it. Both velocities keep the context."""
    guidance_low: float = 0.0
    """Lowest tau at which guidance acts."""
    guidance_high: float = 1.0
    """Highest tau at which guidance acts."""

    def __post_init__(self):
        least = 2 if self.solver == "euler_maruyama" else 1
        if self.steps < least:
            raise UserError(f"sampler.steps is {self.steps}: {self.solver} needs at least {least}")
        check_above_zero(self, "sampler.", "shift")
        check_at_least(self, "sampler.", guidance=0)
        if not 0 <= self.guidance_low <= self.guidance_high <= 1:
            raise UserError(
                f"sampler.guidance_low is {self.guidance_low} and guidance_high {self.guidance_high}: give an interval "
                "within 0 to 1"
            )

    @property
    def evaluations(self) -> int:
        """Evaluations of the model per sample, not counting guidance."""
        return 2 * self.steps - 1 if self.solver == "heun" else self.steps

    def taus(self, start: float = 1.0) -> np.ndarray:
        """Returns the grid of taus from `start` to 0, [steps + 1]."""
        return time_grid(self.steps, self.shift, start, LAST_TAU if self.solver == "euler_maruyama" else None)


class Condition(NamedTuple):
    """Condition of samples; every array has a leading axis of samples.

    Attributes:
      label: class labels, [B]; the number of classes means no label.
      caption: embeddings and their mask, for models with captions.
      clean: latents {modality: [B, ...]} that hold the context, or from which sampling starts.
      context: mask of tokens that stay at tau = 0, {modality: [B, N]}.
    """

    label: np.ndarray
    caption: Caption | None = None
    clean: dict[str, np.ndarray] = {}
    context: dict[str, np.ndarray] = {}


@dataclass(frozen=True)
class Generator:
    """Draws samples; compiles once for each number of samples.

    Attributes:
      apply: model as (params, tokens, levels, label, assignment, caption=) -> `Output`.
      modalities: modalities to generate together, by name.
      sampler: settings of the solver.
      null_label: label for no class.
      start: tau at which the solver starts. Below 1 samples start from `Condition.clean` with that much noise (SDEdit,
        arXiv 2108.01073).
      mesh: devices over which samples are sharded; by default the first device only.
    """

    apply: Callable[..., Output]
    modalities: dict[str, Modality]
    sampler: Sampler
    null_label: int
    start: float = 1.0
    mesh: Mesh | None = None
    _compiled: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __call__(
        self, params: Any, condition: Condition, seed: int, numbers: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Generates as many samples as `condition` has labels.

        The noise of sample i depends only on the seed and i, bit for bit.

        Args:
          params: parameters of the model, on the devices of the mesh.
          condition: condition of each sample.
          seed: seed of the noise.
          numbers: numbers of the samples; by default 0, 1, 2, ...

        Returns:
          {modality: latents [B, ...]} as float32.
        """
        count = len(condition.label)
        if not count:
            return {m: np.zeros((0, *x.latent), np.float32) for m, x in self.modalities.items()}
        numbers = np.arange(count) if numbers is None else numbers
        eps = {}
        for m, modality in self.modalities.items():
            eps[m] = sample_noise(seed, numbers, m, (modality.tokens, modality.token_size))
        seeds_B2 = np.stack([_seed_of(seed, number) for number in numbers])
        inputs = (eps, seeds_B2, condition)
        if self.mesh is None:
            out = self._run()(params, *inputs)
        else:
            # Pad to a multiple of the devices with copies of the first sample, which are cut off below.
            missing = -count % (self.mesh.shape["data"] * self.mesh.shape["fsdp"])
            padded = jax.tree.map(lambda x: np.concatenate([x] + [x[:1]] * missing), inputs)
            with jax.set_mesh(self.mesh):
                out = self._run()(params, *jax.tree.map(partial(split_samples, mesh=self.mesh), padded))
        return jax.tree.map(lambda x: np.asarray(jax.device_get(x))[:count], out)

    def _run(self) -> Callable[..., dict[str, jax.Array]]:
        if "run" not in self._compiled:
            # Replicated, so that every process can read all samples.
            out = None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())
            self._compiled["run"] = jax.jit(self._solve, out_shardings=out)
        return self._compiled["run"]

    def _solve(self, params: Any, eps: dict[str, jax.Array], seeds_B2: jax.Array, condition: Condition):
        sampler, taus = self.sampler, self.sampler.taus(self.start)
        # clean {m: [B, N, P]} and context {m: [B, N]}, of the modalities that have any.
        clean = to_tokens(self.modalities, condition.clean)
        context = {m: jnp.asarray(mask) for m, mask in condition.context.items()}
        label_B, caption = jnp.asarray(condition.label), condition.caption
        no_caption = None if caption is None else caption._replace(mask=jnp.zeros_like(caption.mask))
        null = (jnp.full_like(label_B, self.null_label), no_caption)

        def with_context(x: dict[str, jax.Array]) -> dict[str, jax.Array]:
            # Solvers update all tokens alike; those of the context are set back here.
            return x | {m: jnp.where(mask_BN[..., None], clean[m], x[m]) for m, mask_BN in context.items()}

        def velocity(x, tau, labels):
            label_B, caption = labels
            # All tokens at one level, those of the context at tau = 0.
            levels = {m: jnp.full((x[m].shape[0], 1), tau) for m in x}
            assignment = {m: jnp.zeros(x[m].shape[:2], jnp.int32) for m in x}
            corruption = Corruption(levels, assignment, {}).with_context(context)
            captions = {} if caption is None else {"caption": caption}
            x = with_context(x)
            return self.apply(params, x, corruption.levels, label_B, corruption.assignment, **captions).velocity

        if sampler.guidance == 1:
            solved = partial(velocity, labels=(label_B, caption))
        else:
            solved = guided(
                velocity, (label_B, caption), null, sampler.guidance, sampler.guidance_low, sampler.guidance_high
            )
        x = eps
        if self.start < 1:
            # x_tau = (1 - tau) x0 + tau eps at the first tau, of the modalities that sampling starts from.
            x = eps | {m: (1 - self.start) * clean[m] + self.start * eps[m] for m in clean}
        if sampler.solver == "euler_maruyama":
            keys_B = keys_for(jax.vmap(_sample_key)(seeds_B2), "solver")
            x = euler_maruyama(solved, x, taus, keys_B=keys_B)
        else:
            x = {"euler": euler, "heun": heun}[sampler.solver](solved, x, taus)
        return {m: self.modalities[m].from_tokens(tokens_BNP) for m, tokens_BNP in with_context(x).items()}


def sample_noise(seed: int, numbers: np.ndarray, modality: str, shape: tuple[int, int]) -> np.ndarray:
    """Draws the initial noise of samples, float32 [B, N, P]; the noise of sample i depends only on `seed` and i.

    Each sample's noise is drawn separately by one program, so that no bit of it depends on the batch or the devices.
    """
    return np.stack([np.asarray(_noise(_seed_of(seed, number), modality, shape)) for number in numbers])


def check_finite(latents: dict[str, np.ndarray], numbers: np.ndarray) -> None:
    """Raises `UserError`, naming a sample, if latents [B, ...] of samples `numbers` hold NaN or infinity."""
    for m, x in latents.items():
        bad_B = ~np.isfinite(x.reshape(len(x), -1)).all(axis=1)
        if bad_B.any():
            raise UserError(
                f"{m} of sample {numbers[np.argmax(bad_B)]} holds NaN or infinity, and {bad_B.sum()} of {len(x)} do: "
                "look at the metrics of the run, and take an earlier checkpoint"
            )


@partial(jax.jit, static_argnums=(1, 2))
def _noise(seed_2: jax.Array, modality: str, shape: tuple[int, int]) -> jax.Array:
    return jax.random.normal(keys_for(_sample_key(seed_2)[None], f"eps {modality}")[0], shape)


def _seed_of(seed: int, number: int) -> np.ndarray:
    return np.array([int(seed) % 2**32, int(number)], np.uint32)


def _sample_key(seed_2: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.key(seed_2[0]), seed_2[1])
