"""SIGTERM and SIGINT: a run ends its step, saves, and resumes where it stopped."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from selfflow.errors import Interrupted
from selfflow.run.run import open_run
from selfflow.training.metrics import TIMINGS, read_metrics
from tests.conftest import TINY, mentions
from tests.training.small import run
from tests.training.test_profile import traced

pytestmark = pytest.mark.resilience

ROOT = Path(__file__).parents[2]


def saved(folder) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def start(command, stderr=subprocess.STDOUT) -> subprocess.Popen:
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)


def asking(number, at):
    def ask(step):
        if step == at:
            os.kill(os.getpid(), number)
            time.sleep(0.1)  # the thread that reads signals may be slower than a step of eight numbers

    return ask


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("at, steps", [(5, [3, 5]), (6, [3, 6]), (8, [6, 8])])
def test_a_run_that_is_asked_to_stop_ends_its_step_and_saves_once(tmp_path, number, status, at, steps):
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Interrupted, match=rf"{number.name}\b.* step {at}\b.* step {at}\b") as stopped:
        run(tmp_path / "run", 8, before=asking(number, at))
    assert stopped.value.status == status and saved(tmp_path / "run") == steps
    assert read_metrics(tmp_path / "run")[-1]["step"] == at
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before
    if at < 8:
        jax.tree.map(np.testing.assert_array_equal, run(tmp_path / "run", 8), run(tmp_path / "whole", 8))


def test_skipped_steps_are_not_saved_when_a_run_is_stopped(tmp_path):
    with pytest.raises(Interrupted, match=r"SIGTERM\b.* step 5\b.* step 3\b"):
        run(tmp_path, 8, bad=(5,), before=asking(signal.SIGTERM, 5))
    assert saved(tmp_path) == [3]


_DEAF = """
import ctypes
from selfflow.training.signals import interruptible

with interruptible():
    print("ready", flush=True)
    while True:
        ctypes.CDLL(None).usleep(10_000_000)  # as a compilation does, during which Python handles no signals
"""


def test_a_second_interrupt_leaves_at_once_even_while_something_compiles():
    process = start([sys.executable, "-c", _DEAF], stderr=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    began = time.monotonic()
    assert process.wait(timeout=20) == 130 and time.monotonic() - began < 5
    first, second = process.stderr.read().split("\n\n")
    assert mentions("SIGINT step").search(first) and mentions("not saved").search(second)


def together(folder, *arguments) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        start([sys.executable, "-m", "tests.training.two", str(port), str(i), str(folder), *arguments])
        for i in range(2)
    ]


def ended(processes) -> list[str]:
    try:
        return [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize(
    "number, status", [pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow), (signal.SIGINT, 130)]
)
def test_two_processes_stop_at_one_step_whichever_is_asked(tmp_path, number, status):
    """Their parameters are split over both, and the second step is skipped by both."""
    processes = together(tmp_path, "100000", "0.02")
    deadline = time.monotonic() + 90
    while not (tmp_path / "reached").exists() and time.monotonic() < deadline:
        assert all(process.poll() is None for process in processes), processes[1].communicate()[0]
        time.sleep(0.05)
    processes[1].send_signal(number)
    out = ended(processes)
    assert [process.returncode for process in processes] == [143, status], out
    # Each process names the step after which it stopped, and the saved step from which it resumes.
    steps = [[int(step) for step in re.findall(r" step (\d+)", text)] for text in out]
    assert steps == 2 * [2 * [saved(tmp_path)[-1]]]
    rows = [read_metrics(tmp_path / str(i)) for i in range(2)]
    assert [[row["loss"] for row in mine] for mine in rows][0] == [row["loss"] for row in rows[1]]
    at = saved(tmp_path)[-1]
    assert [row["step"] for row in rows[0] if row["skipped"]] == [2] and len(rows[0]) == at
    if number == signal.SIGTERM:
        out = ended(together(tmp_path, str(at + 5), "0"))
        assert all("norm" in text for text in out), out
        assert out[0].split("norm")[1].split()[0] == out[1].split("norm")[1].split()[0]
        assert len(read_metrics(tmp_path / "0")) == at + 5


def test_several_processes_notice_a_signal_before_their_first_step():
    """By JAX's own service, which then stops at step 1: a resumed run is past that."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    done = subprocess.run(
        [sys.executable, "-c", _EARLY, address], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "stops\n", done.stderr


_EARLY = """
import os, signal, sys, time
import jax
jax.distributed.initialize(sys.argv[1], 1, 0)
jax.process_count = lambda: 2
from selfflow.training.signals import Interruption
interruption = Interruption()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(3)
for _ in range(20):
    if interruption.reached():
        print("stops")
        break
    time.sleep(0.2)
"""


@pytest.mark.slow
def test_a_run_that_is_stopped_twice_equals_an_uninterrupted_one(tiny_run, data_dir, tmp_path):
    """By SIGTERM while its first step compiles, then by SIGINT, then it runs to its end, and traces two steps."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "selfflow", "train", str(TINY), "--workdir", str(folder)]
    command += ["--data-dir", str(data_dir), "--cadence.checkpoint-every", "100"]
    metrics, seen, at = folder / "metrics.jsonl", None, 0
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = start(command)
        deadline = time.monotonic() + 120
        # The file is written, or written anew, just before the first step.
        while not metrics.exists() or metrics.stat().st_ino == seen:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.01)
        time.sleep(0.1)
        seen = metrics.stat().st_ino
        process.send_signal(number)
        out = process.communicate(timeout=120)[0]
        assert process.returncode == status, out
        before, at = at, open_run(folder).last_step()
        assert before < at < 12 and len(read_metrics(folder)) == at
        assert re.search(rf"{number.name}\b.* step {at}\b.* step {at}\b", out)
    # Steps that the interruptions leave, however fast the machine is.
    done = start([*command, "--profile.steps", "11:13"])
    out = done.communicate(timeout=240)[0]
    assert done.returncode == 0, out
    numbers = lambda run: [{k: v for k, v in row.items() if k not in TIMINGS} for row in read_metrics(run)]
    assert numbers(folder) == numbers(tiny_run) and traced(folder)
    jax.tree.map(np.testing.assert_array_equal, *(open_run(f).restore() for f in (folder, tiny_run)))
