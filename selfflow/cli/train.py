"""`selfflow train`: trains an experiment, or resumes its run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from selfflow.cli.parse import parse
from selfflow.training.distributed import Processes

_EXAMPLE = "selfflow train experiments/quickstart.py --steps 100 --optimizer.learning-rate 1e-3"


@dataclass(frozen=True)
class Options:
    """Flags of `selfflow train` that are not fields of the experiment."""

    workdir: Path
    """The run folder, on a disk or in a bucket (gs://, s3://)."""
    processes: Annotated[Processes, tyro.conf.arg(name="")] = Processes()


def main(arguments: list[str]) -> None:
    """Parses `EXPERIMENT [--workdir DIR] [--data-dir DIR] [--FIELD VALUE ...]` and trains the experiment."""

    def make_options(file: Path) -> Options:
        return Options(Path("runs") / file.stem)

    parsed = parse("train", arguments, _EXAMPLE, make_options, autoencoders=True)
    if parsed is None:
        return
    from selfflow.tasks.train import train

    experiment, options, data_dir = parsed
    options.processes.connect()
    train(experiment, options.workdir, data_dir)
