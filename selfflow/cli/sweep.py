"""`selfflow sweep`: trains or resumes the runs of a sweep."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from selfflow.cli.parse import parse
from selfflow.errors import UserError, check_at_least
from selfflow.storage.paths import bucket_url
from selfflow.sweep.folder import check_sweep, describe, enter_sweep
from selfflow.sweep.load import SweepRun, budget_of, load_sweep
from selfflow.sweep.members import Budget
from selfflow.training.distributed import Processes, is_primary, run_on_all

_EXAMPLE = "selfflow sweep experiments/sight_and_sound.py --jobs 2 --budget.steps 500"


@dataclass(frozen=True)
class Options:
    """Flags of `selfflow sweep` that are not fields of the experiment."""

    workdir: Path
    """Folder of the sweep, with a subfolder for each run. With --index it may be in a bucket."""
    index: int | None = None
    """Train only the run with this index, counted from 0, as in Slurm job arrays."""
    jobs: int = 1
    """Number of runs trained at once on this machine, each on a share of the cores and of any NVIDIA GPUs. TPUs are not
    divided: use --index on each host."""
    list: bool = False
    """Print the runs with their steps, model FLOPs and status, without training."""
    budget: Budget = Budget()
    """Length of each run; by default `BUDGET` of the file, or `steps`."""
    processes: Annotated[Processes, tyro.conf.arg(name="")] = Processes()

    def __post_init__(self):
        check_at_least(self, "--", jobs=1)
        if self.processes.coordinator and self.index is None:
            raise UserError("--coordinator is for one run on several processes: name it with --index")


def main(arguments: list[str]) -> None:
    """Parses `EXPERIMENT [--index I] [--jobs N] [--workdir DIR] [--FIELD VALUE ...]` and trains the runs."""

    def make_options(file: Path) -> Options:
        return Options(Path("runs") / file.stem, budget=budget_of(file))

    parsed = parse("sweep", arguments, _EXAMPLE, make_options)
    if parsed is None:
        return
    base, options, data_dir = parsed
    folder, budget = options.workdir, options.budget
    if budget and any(argument.partition("=")[0] == "--steps" for argument in arguments):
        raise UserError("--steps and a budget contradict each other: give --budget.steps alone, or --budget.flops")
    if options.index is None and bucket_url(folder):
        raise UserError(
            f"--workdir {bucket_url(folder)}: train runs into a bucket one by one with --index, or name a local folder"
        )
    if options.index is None:
        # Accelerators are used by the child processes, which train the runs.
        jax.config.update("jax_platforms", "cpu")
    else:
        options.processes.connect()

    sweep = load_sweep(arguments[0], base, budget)
    description = describe(sweep, arguments)
    if options.index is not None:
        if not 0 <= options.index < len(sweep.runs):
            raise UserError(f"--index {options.index}: {arguments[0]} has runs 0 to {len(sweep.runs) - 1}")
        # One process writes the description; if that fails, the error is raised in all processes.
        run_on_all(lambda: enter_sweep(folder, description) if is_primary() else None)
        name = list(sweep.runs)[options.index]
        _train_one(sweep.runs[name], folder / name, data_dir)
    elif options.list:
        check_sweep(folder, description)
        _print_list(sweep.runs, folder)
    else:
        _train_all(sweep.runs, description, arguments, options)


def _train_one(sweep_run: SweepRun, run: Path, data_dir: Path) -> None:
    from selfflow.sweep.launch import run_status
    from selfflow.tasks.train import train

    if not bucket_url(run) and run_status(run, sweep_run.experiment) == "done":
        print(f"{run}: done")
    else:
        train(sweep_run.experiment, run, data_dir)


def _train_all(
    runs: Mapping[str, SweepRun], description: dict[str, Any], arguments: list[str], options: Options
) -> None:
    from selfflow.run.folder import run_lock
    from selfflow.sweep.launch import launch, visible_gpus

    gpus = len(visible_gpus())
    if 0 < gpus < options.jobs:
        raise UserError(f"--jobs is {options.jobs}, but there are {gpus} GPUs: give at most one job per GPU")
    # Checked before `run_lock` creates the folder, so that no folder remains after an error.
    check_sweep(options.workdir, description)
    with run_lock(options.workdir):
        enter_sweep(options.workdir, description)
        launch(runs, options.workdir, arguments, options.jobs)


def _print_list(runs: Mapping[str, SweepRun], folder: Path) -> None:
    from selfflow.sweep.launch import run_status

    for number, (name, sweep_run) in enumerate(runs.items()):
        length = f"{sweep_run.experiment.steps:>9,} steps {sweep_run.flops:>9.3g} FLOPs"
        print(f"{number:>4}  {name:<24} {length}  {run_status(folder / name, sweep_run.experiment)}")
