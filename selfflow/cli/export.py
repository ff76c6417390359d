"""`selfflow export`: the weights of a run as a folder that needs the run no longer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from selfflow.storage.new_folder import new_folder

_EXAMPLE = "selfflow export runs/quickstart --out quickstart-weights"


@dataclass(frozen=True)
class Arguments:
    """What `selfflow export` is told."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    out: Path
    """The folder to make; it must not be there yet, or be empty."""
    step: int | None = None
    """Which checkpoint; by default the newest."""
    weights: Literal["ema", "student"] = "ema"
    """The EMA, from which samples are drawn and features taken, or the student."""


def main(arguments: list[str]) -> None:
    """Parses `RUN --out DIR [--step N] [--weights ema|student]` and writes the folder."""
    description = f"Write a run's weights, config and card into a folder of their own.\n\nexample: {_EXAMPLE}"
    given = tyro.cli(Arguments, prog="selfflow export", description=description, args=arguments)
    from selfflow.interop.export import export
    from selfflow.run.run import open_run

    run = open_run(given.run)
    with new_folder(given.out) as folder:
        print(f"reading {given.run}, writing {given.out}", flush=True)
        told = export(run, folder, step=given.step, weights=given.weights)
    print(f"\n{given.out}: {'the EMA' if told.weights == 'ema' else 'the student'} of {given.run} at step {told.step}")
    for path in sorted(given.out.iterdir()):
        print(f"  {path.name:<18} {path.stat().st_size:>13,} bytes")
    print("README.md is a card made from the run: complete it before you pass the folder on, with experiment.json,")
    print("which is copied as it is. To load the model in Python:")
    print(f"  selfflow.interop.load_exported({str(given.out)!r}).model")
