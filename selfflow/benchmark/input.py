"""How fast the input is: batches alone, and what a training step waits for them."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from selfflow.config.setup import FlowSetup
from selfflow.input.batches import BatchSource


class InputRate(NamedTuple):
    """What the input pipeline alone delivers, in the mixture of the experiment."""

    workers: int
    start_seconds: float
    samples_per_second: float
    tokens_per_second: float


class Waiting(NamedTuple):
    """How long steps wait for their batch."""

    steps: int
    step_seconds: float
    waiting_share: float


def input_rate(feed: BatchSource, workers: int, seconds: float, start: int = 0) -> InputRate:
    """Reads batches and does nothing with them, for about `seconds`.

    Args:
      feed: what is read.
      workers: processes that read; 0 reads in threads.
      seconds: how long to measure, after the first batch.
      start: step to begin at.
    """
    feed = replace(feed, loader=replace(feed.loader, workers=workers))
    began = time.perf_counter()
    stream = iter(feed.batches(start, start + 1_000_000))
    next(stream)
    first = time.perf_counter()
    samples = tokens = 0
    # What was read ahead before the clock started must not count: pass over it.
    for _ in range(feed.loader.prefetch * max(1, workers)):
        next(stream)
    clock = time.perf_counter()
    while (now := time.perf_counter()) - clock < seconds:
        batch, facts = next(stream)
        samples += len(batch["label"])
        tokens += facts["tokens"]
    stream.close()
    return InputRate(workers, first - began, samples / (now - clock), tokens / (now - clock))


def waiting(setup: FlowSetup, feed: BatchSource, steps: int) -> Waiting:
    """Trains for some steps, as a run does, and tells the share of their time that went by before the batch was there.

    Args:
      setup: of the experiment.
      feed: what it reads.
      steps: how many to time, after every component was compiled.
    """
    experiment = setup.experiment
    step = jax.jit(setup.step(), donate_argnums=0)
    state = jax.jit(setup.init)(jax.random.key(experiment.seed.init))
    stream = iter(feed.batches(0, 1_000_000))
    state = _compile(
        step, state, stream, {name for name, component in experiment.mixture.items() if component.weight > 0}
    )
    waited = 0.0
    pending: Any = None
    clock = time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch, _ = next(stream)
        waited += time.perf_counter() - asked
        state, metrics = step(state, batch)
        jax.block_until_ready(pending)  # one step late, as the loop fetches metrics
        pending = metrics
    jax.block_until_ready(state)
    total = time.perf_counter() - clock
    stream.close()
    return Waiting(steps, total / steps, waited / total)


def _compile(step: Any, state: Any, stream: Iterator, components: set[str]) -> Any:
    """Runs steps until every component was seen: each has a program of its own."""
    while components:
        batch, facts = next(stream)
        if facts["component"] in components:
            state, _ = step(state, batch)
            components = components - {facts["component"]}
    return jax.block_until_ready(state)


def frames_per_second_of_collisions(settings: Any, clips: int = 48) -> float:
    """How many frames with their sound the Collisions data set simulates and draws a second, in this process alone."""
    from selfflow.data.collisions.generate import records

    records(settings, "train", 0, 2)  # imports and first calls
    began = time.perf_counter()
    records(settings, "train", 2, 2 + clips)
    return clips * settings.frames / (time.perf_counter() - began)
