"""`selfflow sweep`: trains the members of a comparison, and goes on where it was stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from selfflow.cli.parse import parse
from selfflow.config.experiment import Experiment
from selfflow.errors import Interrupted, UserError
from selfflow.storage.paths import url
from selfflow.sweep.folder import check_sweep, describe, enter_sweep
from selfflow.sweep.load import Planned, budget_of, load_sweep
from selfflow.sweep.members import Budget
from selfflow.training.distributed import Processes, is_primary, run_on_all

_EXAMPLE = "selfflow sweep experiments/sight_and_sound.py --jobs 2 --budget.steps 500"
_WAIT_S = 0.2


@dataclass(frozen=True)
class Options:
    """Flags of `selfflow sweep` that are no fields of the experiment."""

    workdir: Path
    """The folder of the sweep; each member trains into a run folder of its name in it. With --index it may lie in a
    bucket."""
    index: int | None = None
    """Train this member alone, counted from 0, as in arrays of Slurm jobs."""
    jobs: int = 1
    """Members that are trained at once on this machine, each on its share of the cores, and of the NVIDIA GPUs where
    there are any. TPUs are not shared out: there take --index on each host."""
    list: bool = False
    """Print the members, their steps and model FLOPs, and what is done of them, and train nothing."""
    budget: Budget = Budget()
    """How long each member is trained; by default the file's `BUDGET`, or `steps`."""
    processes: Annotated[Processes, tyro.conf.arg(name="")] = Processes()

    def __post_init__(self):
        if self.jobs < 1:
            raise UserError(f"--jobs is {self.jobs}: it must be at least 1")
        if self.processes.coordinator and self.index is None:
            raise UserError("--coordinator is for one member on several processes: name it with --index")


def main(arguments: list[str]) -> None:
    """Parses `EXPERIMENT [--index I] [--jobs N] [--workdir DIR] [--FIELD VALUE ...]` and trains the members."""
    make_options = lambda file: Options(Path("runs") / file.stem, budget=budget_of(file))
    parsed = parse("sweep", arguments, _EXAMPLE, make_options)
    if parsed is None:
        return
    base, options, data_dir = parsed
    folder, budget = options.workdir, options.budget
    if budget and any(argument.partition("=")[0] == "--steps" for argument in arguments):
        raise UserError("--steps and a budget contradict: give --budget.steps alone, or --budget.flops")
    if options.index is None and (where := url(folder)):
        raise UserError(
            f"--workdir {where}: members are trained into a bucket one by one, with --index; name a local folder"
        )
    if options.index is None:
        jax.config.update("jax_platforms", "cpu")  # the devices are for the members
    else:
        options.processes.join()
    sweep = load_sweep(arguments[0], base, budget)
    described, members = describe(sweep, arguments), sweep.members
    if options.index is not None:
        if not 0 <= options.index < len(members):
            raise UserError(f"--index {options.index}: {arguments[0]} has members 0 to {len(members) - 1}")
        from selfflow.tasks.train import train

        run_on_all(lambda: enter_sweep(folder, described) if is_primary() else None)
        name, planned = list(members.items())[options.index]
        if not url(folder) and _state(folder / name, planned.experiment) == "done":
            print(f"{folder / name}: done")
            return
        train(planned.experiment, folder / name, data_dir)
    elif options.list:
        check_sweep(folder, described)
        _list(members, folder)
    else:
        from selfflow.run.folder import run_lock

        if 0 < len(_gpus()) < options.jobs:
            raise UserError(
                f"--jobs is {options.jobs}, and there are {len(_gpus())} GPUs: give no more than one to each"
            )
        check_sweep(folder, described)  # before the folder is made
        with run_lock(folder):
            enter_sweep(folder, described)
            _train(members, arguments, options)


def _list(members: dict[str, Planned], folder: Path) -> None:
    for number, (name, planned) in enumerate(members.items()):
        length = f"{planned.experiment.steps:>9,} steps {planned.flops:>9.3g} FLOPs"
        print(f"{number:>4}  {name:<24} {length}  {_state(folder / name, planned.experiment)}")


def _train(members: dict[str, Planned], arguments: list[str], options: Options) -> None:
    from selfflow.run.folder import is_training

    folder = options.workdir
    state = lambda name: _state(folder / name, members[name].experiment)
    indices = {name: index for index, name in enumerate(members)}
    left = [name for name in members if state(name) != "done"]
    print(f"{folder}: {len(members)} members, {len(members) - len(left)} of them done")
    # A sweep that was killed leaves processes that train on: a member must not be trained twice at once.
    elsewhere = [name for name in left if is_training(folder / name)]
    if elsewhere:
        print(f"waiting for other processes, which train {', '.join(elsewhere)}", flush=True)
    failed: list[str] = []
    running: dict[int, tuple[str, subprocess.Popen, float]] = {}
    with _children(running):
        while left or running:
            for name in [name for name in elsewhere if not is_training(folder / name)]:
                elsewhere.remove(name)
                if state(name) == "done":
                    left.remove(name)
                    print(f"{name}: done by another process", flush=True)
            for slot in range(options.jobs - len(elsewhere)):
                name = next((name for name in left if name not in elsewhere), None)
                if slot not in running and name:
                    left.remove(name)
                    running[slot] = name, _start(indices[name], name, arguments, options, slot), time.monotonic()
            time.sleep(_WAIT_S)
            for slot, (name, process, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                told = f"{name}: {(time.monotonic() - began) / 60:.1f} min"
                if process.returncode or state(name) != "done":  # the file may have changed meanwhile, and its order
                    failed.append(name)
                    print(f"{told}, FAILED with status {process.returncode}: {_last_words(folder, name)}", flush=True)
                else:
                    print(f"{told}, done; {len(left)} to begin, {len(running)} at work", flush=True)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(members)} members failed ({', '.join(failed)}): see {folder}/NAME.log; the same "
            "command takes them up again"
        )
    print(f"{folder}: all {len(members)} members are done")


def _start(index: int, name: str, arguments: list[str], options: Options, slot: int) -> subprocess.Popen:
    """A process of its own for each member: what one takes or breaks, the next does not meet."""
    print(f"{name}: begins", flush=True)
    command = [sys.executable, "-m", "selfflow", "sweep", *arguments, "--index", str(index)]
    gpus = _gpus()
    mine = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[slot :: options.jobs])} if gpus and options.jobs > 1 else {}
    with (options.workdir / f"{name}.log").open("ab") as log, _share_of_cores(slot, options.jobs):
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | mine)


def _gpus() -> list[str]:
    """The NVIDIA GPUs that processes started here would see, as CUDA_VISIBLE_DEVICES names them."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name]
    return [str(i) for i in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))]


@contextmanager
def _share_of_cores(slot: int, jobs: int) -> Iterator[None]:
    """Processes that are started here stay on every `jobs`-th core."""
    if jobs == 1 or not hasattr(os, "sched_getaffinity"):
        yield
        return
    available = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(available)[slot::jobs] or available)
    try:
        yield
    finally:
        os.sched_setaffinity(0, available)


@contextmanager
def _children(running: dict[int, tuple[str, subprocess.Popen, float]]) -> Iterator[None]:
    """Asked to stop, it has the members stop, and waits until they have saved what they did."""
    asked = []

    def stop(number: int, frame: Any) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nstopping {', '.join(name for name, *_ in running.values())}, which save what they did", flush=True)
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.wait()
        raise Interrupted("stopped; the same command goes on", 128 + asked[0]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _state(run: Path, experiment: Experiment) -> str:
    """What is done of a member; an error if it was done with other settings, as beside them the rest tells nothing."""
    from selfflow.run.folder import check_run

    try:
        steps = json.loads((run / "summary.json").read_text())["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return "begun" if (run / "experiment.json").exists() else "to do"
    if steps < experiment.steps:
        return f"{steps} of {experiment.steps} steps"
    check_run(run, experiment)
    return "done"


def _last_words(folder: Path, name: str) -> str:
    lines = [line for line in (folder / f"{name}.log").read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
