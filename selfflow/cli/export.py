"""`selfflow export`: writes the weights of a run with their configuration and a model card."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from selfflow.storage.new_folder import new_folder

_EXAMPLE = "selfflow export runs/quickstart --out quickstart-weights"


@dataclass(frozen=True)
class Arguments:
    """Arguments of `selfflow export`."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    out: Path
    """Output folder; it must be empty or not exist."""
    step: int | None = None
    """Checkpoint; by default the newest."""
    weights: Literal["ema", "student"] = "ema"
    """Weights: EMA or student. Samples and features are computed with the EMA by default."""


def main(arguments: list[str]) -> None:
    """Parses `RUN --out DIR [--step N] [--weights ema|student]` and exports the weights."""
    description = f"Write a run's weights, config and model card into a folder.\n\nexample: {_EXAMPLE}"
    options = tyro.cli(Arguments, prog="selfflow export", description=description, args=arguments)
    from selfflow.interop.export import export
    from selfflow.run.run import open_run

    run = open_run(options.run)
    with new_folder(options.out) as folder:
        print(f"reading {options.run}, writing {options.out}", flush=True)
        exported = export(run, folder, step=options.step, weights=options.weights)
    weights = "the EMA" if exported.weights == "ema" else "the student"
    print(f"\n{options.out}: {weights} of {options.run} at step {exported.step}")
    for path in sorted(options.out.iterdir()):
        print(f"  {path.name:<18} {path.stat().st_size:>13,} bytes")
    print("README.md is a card made from the run: complete it before you publish the folder, with experiment.json,")
    print("which is copied unchanged. To load the model in Python:")
    print(f"  selfflow.interop.load_exported({str(options.out)!r}).model")
