"""Benchmark of the training step: speed and model FLOPs utilisation.

Batches are random arrays in the shapes of the experiment, so that no data set is needed.
"""

import dataclasses
import statistics
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selfflow.config.setup import FlowSetup, setup_of
from selfflow.errors import UserError
from selfflow.models.sit import SiTConfig
from selfflow.objectives.alignment import NoAlignment
from selfflow.objectives.self_flow import SelfFlowObjective, require_self_flow
from selfflow.planning.compile import batch_shapes
from selfflow.planning.model_flops import model_flops, program_flops

_PEAK_SIZE = {"cpu": 2048}  # size of the square matrices whose product is timed; 8192 on accelerators
_PEAK_ROUNDS = 8


@dataclass(frozen=True)
class StepRate:
    """Measurements of the step on one component.

    Attributes:
      component: name of the component in the mixture.
      step_seconds: median time of a step.
      spread_seconds: interquartile range of the time of a step.
      tokens_per_second: media tokens of the batch divided by the median time.
      model_flops: operations from the shapes of the model, see `planning.model_flops`.
      flops: operations of all matrix products in the traced program, including recomputation.
      mfu: model FLOPs per second at the median time, divided by the measured matmul peak.
      alignment_ratio: time divided by that of the same step without alignment, median over rounds; None without
        alignment.
      per_token_ratio: time of a step with modulation per token divided by that of this step, median over rounds; None
        if not requested.
      peak_memory_bytes: size of arguments, results and temporaries of the compiled step.
      compile_seconds: compile time of the step.
    """

    component: str
    step_seconds: float
    spread_seconds: float
    tokens_per_second: float
    model_flops: int
    flops: int
    mfu: float
    alignment_ratio: float | None
    per_token_ratio: float | None
    peak_memory_bytes: int
    compile_seconds: float


class PerToken(SelfFlowObjective):
    """Objective with the arithmetic of the released code, which computes a SiT's modulation for every token.

    The results are equal to those of `SelfFlowObjective`.
    """

    def apply(self, model_params, tokens, levels, label_B, assignment, **more):
        # One noise level for each token: levels [B, K], assignment [B, N] -> tau [B, N].
        tau = {m: jnp.take_along_axis(levels[m], assignment[m], axis=1) for m in levels}
        return super().apply(model_params, tokens, tau, label_B, None, **more)


def step_rates(setup: FlowSetup, rounds: int, peak: float, per_token: bool = False) -> list[StepRate]:
    """Times the compiled step of every component of the mixture.

    Steps of all variants alternate, so that load of a shared machine affects all of them.

    Args:
      setup: setup of the experiment.
      rounds: number of timed steps of each variant.
      peak: peak floating-point operations per second, from `matmul_peak`.
      per_token: also time the step with a SiT's modulation computed for every token.

    Raises:
      UserError: if `per_token` is set for a joint transformer, whose blocks share their modulation, or for an objective
        other than flow matching.
    """
    if per_token and not isinstance(setup.experiment.model, SiTConfig):
        raise UserError("per-token applies to a SiT; a joint transformer computes its modulation once for all blocks")
    return [_rate(setup, name, rounds, peak, per_token) for name in setup.experiment.mixture]


def _rate(setup: FlowSetup, name: str, rounds: int, peak: float, per_token: bool) -> StepRate:
    batch = random_batch(setup, name)
    # Variants of the step: as configured, without alignment, with modulation per token.
    arms = {"this": _Arm(setup, batch)}
    if setup.experiment.alignment.student_taps:
        arms["vanilla"] = _Arm(setup_of(dataclasses.replace(setup.experiment, alignment=NoAlignment())), batch)
    if per_token:
        objective = PerToken(**vars(require_self_flow(setup.objective, "per-token")))
        arms["per_token"] = _Arm(dataclasses.replace(setup, objective=objective), batch)
    times = {arm_name: np.empty(rounds) for arm_name in arms}
    for i in range(rounds):
        for arm_name, arm in arms.items():
            times[arm_name][i] = arm.seconds()
    median = float(np.median(times["this"]))
    quartiles = np.quantile(times["this"], [0.25, 0.75])

    def ratio(above: str, below: str) -> float:
        # Ratio of two times of the same round, because the load of the machine changes between rounds.
        return float(np.median(times[above] / times[below]))

    flops = model_flops(setup, name)
    tokens = setup.experiment.mixture[name].batch_size * sum(m.tokens for m in setup.modalities[name].values())
    return StepRate(
        component=name,
        step_seconds=median,
        spread_seconds=float(quartiles[1] - quartiles[0]),
        tokens_per_second=tokens / median,
        model_flops=flops,
        flops=program_flops(setup, name),
        mfu=flops / median / peak,
        alignment_ratio=ratio("this", "vanilla") if "vanilla" in arms else None,
        per_token_ratio=ratio("per_token", "this") if per_token else None,
        peak_memory_bytes=arms["this"].peak_memory,
        compile_seconds=arms["this"].compile_seconds,
    )


class _Arm:
    """Variant of the step: a compiled program with its own state."""

    def __init__(self, setup: FlowSetup, batch: dict[str, Any]):
        self._batch = jax.device_put(batch)
        self._state = jax.jit(setup.init)(jax.random.key(setup.experiment.seed.init))
        start_time = time.perf_counter()
        self._step = jax.jit(setup.step(), donate_argnums=0).lower(self._state, self._batch).compile()
        self.compile_seconds = time.perf_counter() - start_time
        # Results that reuse the memory of donated arguments count once.
        memory = self._step.memory_analysis()
        self.peak_memory = int(
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
        self.seconds()  # warm-up

    def seconds(self) -> float:
        """Runs one step and returns its duration."""
        start_time = time.perf_counter()
        self._state, _ = jax.block_until_ready(self._step(self._state, self._batch))
        return time.perf_counter() - start_time


def random_batch(setup: FlowSetup, name: str) -> dict[str, Any]:
    """Returns a batch of a component with standard normal latents."""
    random = np.random.default_rng(0)

    def draw(x: jax.ShapeDtypeStruct) -> np.ndarray:
        if x.dtype == bool:
            return np.ones(x.shape, bool)  # no token of a caption is padding
        return random.standard_normal(x.shape).astype(x.dtype)

    batch = jax.tree.map(draw, batch_shapes(setup, name))
    labels = setup.experiment.model.labels
    batch["weight"][:] = 1
    batch["label"][:] = random.integers(0, labels, len(batch["label"])) if labels else -1
    return batch


def matmul_peak(dtype: str) -> float:
    """Measures the peak operations per second of a large matrix product, the maximum of several rounds."""
    size = _PEAK_SIZE.get(jax.default_backend(), 8192)
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    times = []
    for _ in range(_PEAK_ROUNDS):
        start_time = time.perf_counter()
        product(a, a).block_until_ready()
        times.append(time.perf_counter() - start_time)
    return 2 * size**3 / min(times)


def mixture_mean(setup: FlowSetup, rates: list[StepRate]) -> dict[str, float | int | None]:
    """Returns the mean cost of a step of the mixture: times weighted by the components' shares, and resulting rates."""
    seconds = tokens = flops_of_shapes = flops_of_program = utilised_seconds = 0
    seconds_without_alignment: float | None = 0
    for rate in rates:
        share = setup.experiment.mixture[rate.component].weight
        seconds += share * rate.step_seconds
        tokens += share * rate.tokens_per_second * rate.step_seconds
        flops_of_shapes += share * rate.model_flops
        flops_of_program += share * rate.flops
        utilised_seconds += share * rate.mfu * rate.step_seconds
        if rate.alignment_ratio is None or seconds_without_alignment is None:
            seconds_without_alignment = None
        else:
            seconds_without_alignment += share * rate.step_seconds / rate.alignment_ratio
    return {
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "model_flops": flops_of_shapes,
        "flops": flops_of_program,
        "mfu": utilised_seconds / seconds,
        "alignment_ratio": None if seconds_without_alignment is None else seconds / seconds_without_alignment,
        "peak_memory_bytes": max(rate.peak_memory_bytes for rate in rates),
        "compile_seconds": statistics.fsum(rate.compile_seconds for rate in rates),
    }
