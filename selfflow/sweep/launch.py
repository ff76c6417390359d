"""Training of the runs of a sweep on one machine, each in its own process with a share of the cores and GPUs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from selfflow.config.experiment import Experiment
from selfflow.errors import Interrupted, UserError
from selfflow.run.folder import check_run, is_training
from selfflow.sweep.load import SweepRun

_POLL_SECONDS = 0.2


class _Child(NamedTuple):
    """Process that trains a run, with the name of the run and the monotonic time of its start."""

    name: str
    process: subprocess.Popen
    started: float


def launch(runs: Mapping[str, SweepRun], folder: Path, arguments: Sequence[str], jobs: int) -> None:
    """Trains the unfinished runs of a sweep, `jobs` at a time, and prints a line when each starts and ends.

    A failed run does not stop the others. On SIGINT and SIGTERM the processes are terminated after they have saved
    their state.

    Args:
      runs: runs by name, in the order of their indices.
      folder: folder of the sweep, on this disk; the output of run NAME is appended to NAME.log in this folder.
      arguments: arguments of `selfflow sweep`, to which `--index` is added for each process.
      jobs: number of simultaneous processes.

    Raises:
      UserError: if a run failed; raised after all others have ended.
      Interrupted: if the process was asked to stop.
    """
    scheduler = _Scheduler(runs, folder, arguments, jobs)
    with _stopping(scheduler.children):
        while scheduler.queue or scheduler.children:
            scheduler.check_elsewhere()
            scheduler.fill_slots()
            time.sleep(_POLL_SECONDS)
            scheduler.collect()
    if scheduler.failed:
        raise UserError(
            f"{len(scheduler.failed)} of {len(runs)} runs failed ({', '.join(scheduler.failed)}): see "
            f"{folder}/NAME.log; the same command resumes them"
        )
    print(f"{folder}: all {len(runs)} runs are done")


class _Scheduler:
    """Scheduler of the runs of a sweep: starts child processes, and waits for runs that other processes train."""

    def __init__(self, runs: Mapping[str, SweepRun], folder: Path, arguments: Sequence[str], jobs: int):
        self._runs, self._folder, self._arguments, self._jobs = runs, folder, arguments, jobs
        self._indices = {name: index for index, name in enumerate(runs)}
        self.children: dict[int, _Child] = {}  # by slot; the slot determines cores and GPUs
        self.failed: list[str] = []
        self.queue = [name for name in runs if not self._done(name)]
        print(f"{folder}: {len(runs)} runs, {len(runs) - len(self.queue)} of them done")

        # The child processes of a killed sweep continue to train; two processes must not train the same run.
        self._elsewhere = [name for name in self.queue if is_training(folder / name)]
        if self._elsewhere:
            print(f"waiting for other processes, which train {', '.join(self._elsewhere)}", flush=True)

    def check_elsewhere(self) -> None:
        """Removes runs that other processes have finished from the queue."""
        ended = [name for name in self._elsewhere if not is_training(self._folder / name)]
        for name in ended:
            self._elsewhere.remove(name)
            if self._done(name):
                self.queue.remove(name)
                print(f"{name}: done by another process", flush=True)

    def fill_slots(self) -> None:
        """Starts queued runs in free slots; each run that another process trains occupies one slot."""
        for slot in range(self._jobs - len(self._elsewhere)):
            ready = [name for name in self.queue if name not in self._elsewhere]
            if ready and slot not in self.children:
                name = ready[0]
                self.queue.remove(name)
                print(f"{name}: starts", flush=True)
                log = self._folder / f"{name}.log"
                process = start_run(self._indices[name], log, self._arguments, slot, self._jobs)
                self.children[slot] = _Child(name, process, time.monotonic())

    def collect(self) -> None:
        """Frees the slots of processes that have ended, and prints their status."""
        for slot, child in list(self.children.items()):
            if child.process.poll() is None:
                continue
            del self.children[slot]
            message = f"{child.name}: {(time.monotonic() - child.started) / 60:.1f} min"
            # The status is checked, too, because the experiment file may have changed since the start of the sweep.
            if child.process.returncode == 0 and self._done(child.name):
                print(f"{message}, done; {len(self.queue)} waiting, {len(self.children)} running", flush=True)
            else:
                self.failed.append(child.name)
                reason = _last_line(self._folder / f"{child.name}.log")
                print(f"{message}, FAILED with status {child.process.returncode}: {reason}", flush=True)

    def _done(self, name: str) -> bool:
        return run_status(self._folder / name, self._runs[name].experiment) == "done"


def run_status(run: Path, experiment: Experiment) -> str:
    """Returns the status of a run of a sweep: "to do", "started", "N of M steps" or "done".

    Args:
      run: folder of the run.
      experiment: experiment of the run in the sweep.

    Raises:
      UserError: if the run is done but has other settings than in the sweep.
    """
    try:
        steps = json.loads((run / "summary.json").read_text(encoding="utf-8"))["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return "started" if (run / "experiment.json").exists() else "to do"
    if steps < experiment.steps:
        return f"{steps} of {experiment.steps} steps"
    check_run(run, experiment)
    return "done"


def start_run(index: int, log: Path, arguments: Sequence[str], slot: int, jobs: int) -> subprocess.Popen:
    """Starts a process that trains one run. Separate processes isolate the memory and the failures of runs.

    Args:
      index: index of the run.
      log: file to which the output is appended.
      arguments: arguments of `selfflow sweep`.
      slot: slot of the process, from 0 to `jobs` - 1; the process uses every `jobs`-th core and GPU from this one.
      jobs: number of simultaneous processes.
    """
    command = [sys.executable, "-m", "selfflow", "sweep", *arguments, "--index", str(index)]
    environment = dict(os.environ)
    gpus = visible_gpus()
    if gpus and jobs > 1:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slot::jobs])
    with log.open("ab") as output, _share_of_cores(slot, jobs):
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)


def visible_gpus() -> list[str]:
    """Returns the NVIDIA GPUs available to child processes, in the notation of CUDA_VISIBLE_DEVICES."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is not None:
        return [name for name in names.split(",") if name]
    return [str(i) for i in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))]


@contextmanager
def _share_of_cores(slot: int, jobs: int) -> Iterator[None]:
    """Context in which started processes are restricted to every `jobs`-th core, from core `slot`."""
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
def _stopping(children: Mapping[int, _Child]) -> Iterator[None]:
    """Context in which SIGINT and SIGTERM terminate the children, and wait until they have saved their state.

    A signal that is ignored, such as SIGINT in background jobs of a shell, stays ignored.
    """
    signals: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    handlers = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            handlers[number] = signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt:
        names = ", ".join(child.name for child in children.values())
        print(f"\nstopping {names}, which save their state", flush=True)
        for child in children.values():
            child.process.terminate()
        for child in children.values():
            child.process.wait()
        raise Interrupted("stopped; the same command resumes", 128 + signals[0]) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
