"""Benchmark of the input pipeline: rate of reading, and the time that training steps wait for batches."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from selfflow.config.setup import FlowSetup
from selfflow.data.collisions import Collisions
from selfflow.input.batches import BatchSource


class InputRate(NamedTuple):
    """Rate of reading batches of the mixture, without training.

    Attributes:
      workers: number of reader processes; 0 for threads.
      start_seconds: time until the first batch.
      samples_per_second: samples per second after the first batches.
      tokens_per_second: tokens per second after the first batches.
    """

    workers: int
    start_seconds: float
    samples_per_second: float
    tokens_per_second: float


class Waiting(NamedTuple):
    """Time that training steps wait for batches.

    Attributes:
      steps: number of timed steps.
      step_seconds: mean time of a step.
      waiting_share: share of the time that is spent waiting.
    """

    steps: int
    step_seconds: float
    waiting_share: float


def input_rate(feed: BatchSource, workers: int, seconds: float, start: int = 0) -> InputRate:
    """Measures the rate of reading batches, which are discarded.

    Args:
      feed: source of the batches.
      workers: number of reader processes; 0 reads in threads.
      seconds: duration of the measurement after the first batch.
      start: first step.
    """
    feed = replace(feed, loader=replace(feed.loader, workers=workers))
    start_time = time.perf_counter()
    stream = iter(feed.batches(start, start + 1_000_000))
    next(stream)
    first = time.perf_counter()
    samples = tokens = 0
    # Batches that were prefetched before the start of the clock are not counted.
    for _ in range(feed.loader.prefetch * max(1, workers)):
        next(stream)
    clock = time.perf_counter()
    elapsed = 0.0
    while elapsed < seconds:
        batch, facts = next(stream)
        samples += len(batch["label"])
        tokens += facts["tokens"]
        elapsed = time.perf_counter() - clock
    stream.close()
    return InputRate(workers, first - start_time, samples / elapsed, tokens / elapsed)


def waiting(setup: FlowSetup, feed: BatchSource, steps: int) -> Waiting:
    """Trains for some steps and measures the share of the time that is spent waiting for batches.

    Args:
      setup: setup of the experiment.
      feed: source of the batches.
      steps: number of timed steps, after the steps of all components are compiled.
    """
    experiment = setup.experiment
    step = jax.jit(setup.step(), donate_argnums=0)
    state = jax.jit(setup.init)(jax.random.key(experiment.seed.init))
    stream = iter(feed.batches(0, 1_000_000))
    components = {name for name, component in experiment.mixture.items() if component.weight > 0}
    state = _compile(step, state, stream, components)
    waited = 0.0
    pending: Any = None  # metrics of the previous step
    clock = time.perf_counter()
    for _ in range(steps):
        start_time = time.perf_counter()
        batch, _ = next(stream)
        waited += time.perf_counter() - start_time
        state, metrics = step(state, batch)
        jax.block_until_ready(pending)  # one step late, as in the training loop
        pending = metrics
    jax.block_until_ready(state)
    total = time.perf_counter() - clock
    stream.close()
    return Waiting(steps, total / steps, waited / total)


def _compile(step: Any, state: Any, stream: Iterator, components: set[str]) -> Any:
    """Runs steps until the step of every component is compiled; each component has its own program."""
    while components:
        batch, facts = next(stream)
        if facts["component"] in components:
            state, _ = step(state, batch)
            components = components - {facts["component"]}
    return jax.block_until_ready(state)


def generation_rate(settings: Collisions, clips: int = 48) -> float:
    """Measures the number of frames with audio that Collisions generates per second in one process."""
    from selfflow.data.collisions.generate import records

    records(settings, "train", 0, 2)  # warm-up
    start_time = time.perf_counter()
    records(settings, "train", 2, 2 + clips)
    return clips * settings.frames / (time.perf_counter() - start_time)
