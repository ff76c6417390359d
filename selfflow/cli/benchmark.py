"""`selfflow benchmark`: how fast an experiment's parts are on this machine."""

import os
from dataclasses import dataclass
from typing import Literal

from selfflow.cli.parse import parse

_EXAMPLE = "selfflow benchmark experiments/quickstart.py --only input"


@dataclass(frozen=True)
class Options:
    """Flags of `selfflow benchmark` that are no fields of the experiment."""

    only: Literal["input"] = "input"
    """The part to measure: `input`, from latents on the disk to batches."""
    seconds: float = 5.0
    """How long each row of the table is measured."""
    timed_steps: int = 40
    """Training steps whose waiting is measured."""


def main(arguments: list[str]) -> None:
    """Parses `EXPERIMENT [--only input] [--seconds S] [--FIELD VALUE ...]` and measures."""
    parsed = parse("benchmark", arguments, _EXAMPLE, lambda file: Options())
    if parsed is None:
        return
    experiment, options, data_dir = parsed
    from selfflow.planning.benchmark import frames_per_second_of_collisions, input_rate, waiting
    from selfflow.prepare import prepare

    experiment = experiment.resolved()
    feed, _ = prepare(experiment, data_dir)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"\nReading batches and nothing else, {options.seconds:g} s a row, {cores} cores:")
    print(f"  {'':<22} {'samples/s':>12} {'tokens/s':>14} {'first batch after':>19}")
    for workers in (0, 1, 2):
        rate = input_rate(feed, workers, options.seconds)
        name = (
            f"{feed.reading.threads} threads, no worker"
            if not workers
            else f"{workers} worker process" + "es" * (workers > 1)
        )
        print(
            f"  {name:<22} {rate.samples_per_second:>12,.0f} {rate.tokens_per_second:>14,.0f} "
            f"{rate.start_seconds:>17.2f} s"
        )
    waited = waiting(experiment, feed, options.timed_steps)
    print(
        f"\nTraining, {waited.steps} steps with reading.workers {feed.reading.workers}: {waited.step_seconds:.3f} s a "
        f"step, {waited.waiting_share:.2%} of it spent waiting for data"
    )
    for name, settings in experiment.data.items():
        if settings.kind == "collisions":
            rate = frames_per_second_of_collisions(settings)
            print(
                f"\nGenerating {name}: {rate:,.0f} frames/s with their sound in one process "
                f"({settings.size} x {settings.size} pixels)"
            )
