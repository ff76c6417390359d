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
from typing import Any

from selfflow.buckets.paths import url
from selfflow.cli.parse import parse
from selfflow.errors import Interrupted, UserError
from selfflow.experiment import Experiment
from selfflow.sweep import load_sweep

_EXAMPLE = "selfflow sweep experiments/sight_and_sound.py --jobs 2"
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
    """Members that are trained at once on this machine, each on its share of the cores."""
    list: bool = False
    """Print the members and what is done of them, and train nothing."""

    def __post_init__(self):
        if self.jobs < 1:
            raise UserError(f"--jobs is {self.jobs}: it must be at least 1")


def main(arguments: list[str]) -> None:
    """Parses `EXPERIMENT [--index I] [--jobs N] [--workdir DIR] [--FIELD VALUE ...]` and trains the members."""
    parsed = parse("sweep", arguments, _EXAMPLE, lambda file: Options(Path("runs") / file.stem))
    if parsed is None:
        return
    base, options, data_dir = parsed
    members = load_sweep(arguments[0], base)
    if options.index is not None:
        if not 0 <= options.index < len(members):
            raise UserError(f"--index {options.index}: {arguments[0]} has members 0 to {len(members) - 1}")
        from selfflow.cli.train import train

        name, experiment = list(members.items())[options.index]
        train(experiment, options.workdir / name, data_dir)
        return
    if where := url(options.workdir):
        raise UserError(
            f"--workdir {where}: members are trained into a bucket one by one, with --index; name a local folder"
        )
    if options.list:
        for number, (name, experiment) in enumerate(members.items()):
            print(f"{number:>4}  {name:<24} {_state(options.workdir / name, experiment)}")
        return
    _train(members, arguments, options)


def _train(members: dict[str, Experiment], arguments: list[str], options: Options) -> None:
    folder = options.workdir
    left = [(i, name) for i, name in enumerate(members) if _state(folder / name, members[name]) != "done"]
    print(f"{folder}: {len(members)} members, {len(members) - len(left)} of them done")
    failed: list[str] = []
    running: dict[int, tuple[str, subprocess.Popen, float]] = {}
    with _children(running):
        while left or running:
            for slot in range(options.jobs):
                if slot not in running and left:
                    index, name = left.pop(0)
                    running[slot] = name, _start(index, name, arguments, options, slot), time.monotonic()
            time.sleep(_WAIT_S)
            for slot, (name, process, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                told = f"{name}: {(time.monotonic() - began) / 60:.1f} min"
                if process.returncode:
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
    options.workdir.mkdir(parents=True, exist_ok=True)
    print(f"{name}: begins", flush=True)
    command = [sys.executable, "-m", "selfflow", "sweep", *arguments, "--index", str(index)]
    with (options.workdir / f"{name}.log").open("ab") as log, _share_of_cores(slot, options.jobs):
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


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
    from selfflow.run_folder import check_run

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
