"""Benchmark of sampling: speed of each solver, and its overhead over the network."""

import dataclasses
import time
from dataclasses import dataclass
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from selfflow.config.setup import FlowSetup
from selfflow.sampling.generate import Condition, Generator, Sampler

SOLVERS: tuple[str, ...] = get_args(Sampler.__annotations__["solver"])


@dataclass(frozen=True)
class SamplingRate:
    """Measurements of one solver on one component.

    Attributes:
      component: name of the component in the mixture.
      solver: name of the solver.
      samples: batch size.
      evaluations: network evaluations per sample.
      samples_per_second: samples per second in the median round, from a seed to latents on the host.
      evaluations_per_second: samples per second times network evaluations per sample.
      overhead: time of a round divided by the time of the same number of separate network evaluations, minus 1; median
        over rounds.
    """

    component: str
    solver: str
    samples: int
    evaluations: int
    samples_per_second: float
    evaluations_per_second: float
    overhead: float


def sampling_rates(setup: FlowSetup, rounds: int, samples: int | None = None) -> list[SamplingRate]:
    """Times every solver on every component of the mixture, alternating with separate network evaluations.

    Args:
      setup: setup of the experiment, whose sampler defines the number of steps.
      rounds: number of timed repetitions.
      samples: batch size; by default that of the component.
    """
    experiment = setup.experiment
    params = jax.jit(setup.objective.init)(jax.random.key(experiment.seed.init))["model"]
    rates = []
    for name, component in experiment.mixture.items():
        rates += _rates(setup, params, name, rounds, samples or component.batch_size)
    return rates


def _rates(setup: FlowSetup, params: Any, name: str, rounds: int, count: int) -> list[SamplingRate]:
    experiment, modalities, objective = setup.experiment, setup.modalities[name], setup.objective
    null = experiment.model.labels
    condition = Condition(np.full(count, null))
    steps = max(experiment.sampler.steps, 2)  # the minimum of Euler-Maruyama
    samplers, generators = {}, {}
    for solver in SOLVERS:
        # Without guidance, which would evaluate the network twice.
        sampler = dataclasses.replace(experiment.sampler, solver=solver, steps=steps, guidance=1.0)
        samplers[solver] = sampler
        generators[solver] = Generator(objective.apply, modalities, sampler, null)
    # Inputs of the network: one noise level for all tokens, as in a solver.
    tokens = {m: jnp.zeros((count, x.tokens, x.token_size)) for m, x in modalities.items()}
    levels = {m: jnp.full((count, 1), 0.5) for m in modalities}
    assignment = {m: jnp.zeros((count, x.tokens), jnp.int32) for m, x in modalities.items()}
    label_B = jnp.full(count, null)

    @jax.jit
    def network(params, x):
        return objective.apply(params, x, levels, label_B, assignment).velocity

    def evaluate(times: int) -> float:
        start_time, x = time.perf_counter(), tokens
        for _ in range(times):
            x = network(params, x)  # each call depends on the previous one, as in a solver
        jax.block_until_ready(x)
        return time.perf_counter() - start_time

    def draw(solver: str, seed: int) -> float:
        start_time = time.perf_counter()
        generators[solver](params, condition, seed)
        return time.perf_counter() - start_time

    evaluate(1)
    for solver in SOLVERS:
        draw(solver, 0)  # compiles
    drawing = {solver: np.empty(rounds) for solver in SOLVERS}  # seconds
    evaluating = {solver: np.empty(rounds) for solver in SOLVERS}
    for i in range(rounds):
        for solver, sampler in samplers.items():
            drawing[solver][i], evaluating[solver][i] = draw(solver, i + 1), evaluate(sampler.evaluations)
    rates = []
    for solver, sampler in samplers.items():
        samples_per_second = count / float(np.median(drawing[solver]))
        rates.append(
            SamplingRate(
                component=name,
                solver=solver,
                samples=count,
                evaluations=sampler.evaluations,
                samples_per_second=samples_per_second,
                evaluations_per_second=samples_per_second * sampler.evaluations,
                overhead=float(np.median(drawing[solver] / evaluating[solver])) - 1,
            )
        )
    return rates
