"""Benchmark of feature extraction to files, in comparison with only the forward pass."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from selfflow.config.setup import FlowSetup
from selfflow.input.batches import BatchSource
from selfflow.progress import Progress
from selfflow.representation.features.extract import batches, extract
from selfflow.representation.features.forward import Forward
from selfflow.run.data import Clips
from selfflow.run.prepare_data import RunData

_BATCHES = 16  # number of batches in a round


@dataclass(frozen=True)
class FeaturesRate:
    """Measurements of feature extraction on one component.

    Attributes:
      component: name of the component in the mixture.
      clips: number of clips in a round.
      batch_size: number of clips in a batch.
      clips_per_second: rate of the extraction in the median round, from latents on disk to files of all layers.
      bare_per_second: rate of only the compiled forward pass, on the same batches in memory.
      ratio: time of only the forward passes divided by the time of the extraction, median over rounds.
    """

    component: str
    clips: int
    batch_size: int
    clips_per_second: float
    bare_per_second: float
    ratio: float


def features_rates(setup: FlowSetup, feed: BatchSource, rounds: int, tau: float = 0.1) -> list[FeaturesRate]:
    """Times the extraction of mean features of all layers, alternating with only the forward passes.

    Args:
      setup: setup of the experiment.
      feed: data of the experiment; training clips of every component are used.
      rounds: number of timed repetitions.
      tau: noise level of the latents.
    """
    experiment, objective = setup.experiment, setup.objective
    config = experiment.model
    params = jax.jit(objective.init)(jax.random.key(experiment.seed.init))["model"]
    layers = tuple(range(1, config.depth + 1))
    rates = []
    with Progress("features", rounds * len(experiment.mixture), unit="round") as shown:
        for name, component in experiment.mixture.items():
            forward = Forward(objective.apply, feed.modalities[name], layers, tau, config.labels)
            clips = Clips(RunData(feed, built={}), "train", name)
            rates.append(_rate(forward, params, clips, component.batch_size, rounds, shown))
    return rates


def _rate(forward: Forward, params: Any, clips: Clips, size: int, rounds: int, shown: Progress) -> FeaturesRate:
    # Both measurements use the same clips; for only the forward passes they are loaded into memory beforehand.
    count = min(_BATCHES * size, len(clips))
    prepared = list(batches(clips, count, forward, size, []))

    def bare() -> float:
        start_time = time.perf_counter()
        # All batches are dispatched before waiting for the first, as in the extraction.
        out = [forward.start(params, batch.latents, batch.seeds, batch.frames) for batch in prepared]
        jax.block_until_ready(out)
        return time.perf_counter() - start_time

    def extracted() -> float:
        with tempfile.TemporaryDirectory(prefix="features-") as folder:
            start_time = time.perf_counter()
            extract(forward, params, clips, count, Path(folder), {}, size, lambda done: None)
            return time.perf_counter() - start_time

    bare()  # compiles
    times, bare_times = np.empty(rounds), np.empty(rounds)
    for i in range(rounds):
        times[i], bare_times[i] = extracted(), bare()
        shown.advance()
    return FeaturesRate(
        component=clips.component,
        clips=count,
        batch_size=size,
        clips_per_second=count / float(np.median(times)),
        bare_per_second=count / float(np.median(bare_times)),
        ratio=float(np.median(bare_times / times)),
    )
