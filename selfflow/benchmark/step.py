"""How fast a training step is on the hardware at hand, and what share of it is arithmetic.

Batches are random numbers of the right shapes: no data set is needed.
"""

import dataclasses
import statistics
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selfflow.config.setup import FlowSetup
from selfflow.errors import UserError
from selfflow.models.sit import SiTConfig
from selfflow.objectives.alignment import NoAlignment
from selfflow.objectives.selfflow import SelfFlowObjective
from selfflow.planning.compile import batch_shapes
from selfflow.planning.flops import matmul_flops
from selfflow.planning.model_flops import model_flops

_PEAK_SIZE = {"cpu": 2048}  # side of the square matrices whose product is timed; 8192 on accelerators
_PEAK_ROUNDS = 8


@dataclass(frozen=True)
class StepRate:
    """One component's step.

    Attributes:
      component: its name in the mixture.
      step_seconds: median over the rounds.
      spread_seconds: distance between the quartiles.
      tokens_per_second: media tokens of the batch over the median.
      model_flops: operations that the shapes demand, forward, backward and teacher.
      flops: operations of all matrix products of the program, from its jaxpr; more where it computes things again.
      mfu: model_flops over what the measured matmul peak would do in the median.
      alignment_ratio: median of the ratios to the same step without alignment, round by round; None without alignment.
      per_token_ratio: likewise of the same step with modulation for every token to this one, where it was asked for.
      peak_memory_bytes: arguments, results and temporaries of the compiled step.
      compile_seconds: of the step as the experiment has it.
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
    """The same numbers by the released code's arithmetic: a SiT's modulation is computed for every token."""

    def apply(self, model_params, tokens, levels, label_B, assignment, **more):
        tau = {m: jnp.take_along_axis(levels[m], assignment[m], axis=1) for m in levels}
        return super().apply(model_params, tokens, tau, label_B, dict.fromkeys(tau), **more)


def step_rates(setup: FlowSetup, rounds: int, peak: float, per_token: bool = False) -> list[StepRate]:
    """Times the compiled step of every component of the mixture.

    Steps of each kind alternate, so that all meet the same moments of a shared machine.

    Args:
      setup: of the experiment.
      rounds: timed steps of each kind.
      peak: floating-point operations a second, as `matmul_peak` measures them.
      per_token: also time the step with a SiT's modulation computed for every token.

    Raises:
      UserError: if `per_token` is asked of a joint transformer, whose modulation is shared by all blocks.
    """
    if per_token and not isinstance(setup.experiment.model, SiTConfig):
        raise UserError("per-token is about a SiT; a joint transformer computes its modulation once for all blocks")
    return [_rate(setup, name, rounds, peak, per_token) for name in setup.experiment.mixture]


def _rate(setup: FlowSetup, name: str, rounds: int, peak: float, per_token: bool) -> StepRate:
    batch = random_batch(setup, name)
    objective = setup.objective
    arms = {"this": _Arm(setup, batch)}
    if not isinstance(objective.alignment, NoAlignment):
        vanilla = dataclasses.replace(objective, alignment=NoAlignment())
        arms["vanilla"] = _Arm(dataclasses.replace(setup, objective=vanilla), batch)
    if per_token:
        arms["per_token"] = _Arm(dataclasses.replace(setup, objective=PerToken(**vars(objective))), batch)
    rows = [{arm: made.seconds() for arm, made in arms.items()} for _ in range(rounds)]
    times = {arm: np.array([row[arm] for row in rows]) for arm in arms}
    median = float(np.median(times["this"]))
    quartiles = np.quantile(times["this"], [0.25, 0.75])
    ratio = lambda above, below: float(np.median(times[above] / times[below]))
    demanded = model_flops(setup, name)
    # Kernels hide their products from the count: it is taken of the program that has none.
    plain = dataclasses.replace(objective.model.execution, attention="xla")
    plain = dataclasses.replace(objective, model=dataclasses.replace(objective.model, execution=plain))
    state = jax.eval_shape(setup.init, jax.random.key(0))
    tokens = setup.experiment.mixture[name].batch_size * sum(m.tokens for m in setup.modalities[name].values())
    return StepRate(
        component=name,
        step_seconds=median,
        spread_seconds=float(quartiles[1] - quartiles[0]),
        tokens_per_second=tokens / median,
        model_flops=demanded,
        flops=matmul_flops(dataclasses.replace(setup, objective=plain).step(), state, batch),
        mfu=demanded / median / peak,
        alignment_ratio=ratio("this", "vanilla") if "vanilla" in arms else None,
        per_token_ratio=ratio("per_token", "this") if per_token else None,
        peak_memory_bytes=arms["this"].peak_memory,
        compile_seconds=arms["this"].compile_seconds,
    )


class _Arm:
    """A compiled step with a state of its own."""

    def __init__(self, setup: FlowSetup, batch: dict[str, Any]):
        self._batch = jax.device_put(batch)
        self._state = jax.jit(setup.init)(jax.random.key(setup.experiment.seed.init))
        began = time.perf_counter()
        self._step = jax.jit(setup.step(), donate_argnums=0).lower(self._state, self._batch).compile()
        self.compile_seconds = time.perf_counter() - began
        memory = self._step.memory_analysis()
        self.peak_memory = int(
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
        self.seconds()  # the first call is not like the others

    def seconds(self) -> float:
        began = time.perf_counter()
        self._state, _ = jax.block_until_ready(self._step(self._state, self._batch))
        return time.perf_counter() - began


def random_batch(setup: FlowSetup, name: str) -> dict[str, Any]:
    """A batch of a component, as `Feed` makes them, of standard normal numbers."""
    random = np.random.default_rng(0)
    made = jax.tree.map(
        lambda x: np.ones(x.shape, bool) if x.dtype == bool else random.standard_normal(x.shape).astype(x.dtype),
        batch_shapes(setup, name),
    )
    labels = setup.experiment.model.labels
    made["weight"][:] = 1
    made["label"][:] = random.integers(0, labels, len(made["label"])) if labels else -1
    return made


def matmul_peak(dtype: str) -> float:
    """Operations a second of a large plain matrix product, the best of some rounds."""
    size = _PEAK_SIZE.get(jax.default_backend(), 8192)
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    times = []
    for _ in range(_PEAK_ROUNDS):
        began = time.perf_counter()
        product(a, a).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def mixture_mean(setup: FlowSetup, rates: list[StepRate]) -> dict[str, float | int | None]:
    """Mean cost of a step of the mixture: seconds weighted by the components' shares, rates from their sums."""
    weights = {rate.component: setup.experiment.mixture[rate.component].weight for rate in rates}
    seconds = sum(weights[r.component] * r.step_seconds for r in rates)
    ratios = [r.alignment_ratio for r in rates]
    without = None
    if None not in ratios:
        without = sum(weights[r.component] * r.step_seconds / r.alignment_ratio for r in rates)
    return {
        "step_seconds": seconds,
        "tokens_per_second": sum(weights[r.component] * r.tokens_per_second * r.step_seconds for r in rates) / seconds,
        "model_flops": sum(weights[r.component] * r.model_flops for r in rates),
        "flops": sum(weights[r.component] * r.flops for r in rates),
        "mfu": sum(weights[r.component] * r.mfu * r.step_seconds for r in rates) / seconds,
        "alignment_ratio": None if without is None else seconds / without,
        "peak_memory_bytes": max(r.peak_memory_bytes for r in rates),
        "compile_seconds": statistics.fsum(r.compile_seconds for r in rates),
    }
