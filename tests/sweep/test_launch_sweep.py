"""`selfflow sweep`: each run in its own process; failures, stops and kills are survived."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfflow.cli.sweep import main
from selfflow.errors import Interrupted, UserError
from selfflow.run.folder import is_training, run_lock
from selfflow.run.run import Run
from selfflow.storage.runs import saved_steps
from selfflow.sweep import launch
from selfflow.sweep.launch import run_status, start_run
from selfflow.sweep.load import with_overrides
from selfflow.training.distributed import Processes
from tests.conftest import mentions

pytestmark = pytest.mark.resilience

TINY_SWEEP = f"""
import importlib.util, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.tiny import experiment
from selfflow.sweep.members import Member

def sweep():
    for name, steps in (("short", 3), ("broken", 3), ("long", 6)):
        yield Member(name, {{"steps": steps, "final_evaluation.probe_clips": 0, "final_evaluation.samples": 1}})
"""


def written(path: Path, body: str) -> Path:
    path.write_text(body, encoding="utf-8")
    return path


def sweep(file: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "selfflow", "sweep", str(file), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)


@pytest.mark.slow
def test_a_sweep_survives_a_failure_and_resumes_where_it_was_stopped(tmp_path, data_dir, tiny_run):
    file, runs = written(tmp_path / "s.py", TINY_SWEEP), tmp_path / "runs"
    (runs / "broken").mkdir(parents=True)
    (runs / "broken" / "experiment.json").write_text("{")
    flags = ("--workdir", str(runs), "--data-dir", str(data_dir))
    process = sweep(file, *flags)
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 2, out
    assert mentions("broken: FAILED 2 JSON 1 3 failed (broken)").search(out)
    steps = {name: json.loads((runs / name / "summary.json").read_text())["steps"] for name in ("short", "long")}
    assert steps == {"short": 3, "long": 6}
    (runs / "broken" / "experiment.json").unlink()
    (runs / "long" / "summary.json").unlink()  # as if it had been killed in its last minute
    listed = sweep(file, "--list", *flags).communicate(timeout=60)[0]
    lines = [line.split() for line in listed.splitlines()]
    assert [line[1:4] for line in lines] == [["short", "3", "steps"], ["broken", "3", "steps"], ["long", "6", "steps"]]
    assert [" ".join(line[6:]) for line in lines] == ["done", "to do", "started"]
    assert float(lines[2][4]) == pytest.approx(2 * float(lines[0][4]), rel=0.01)
    before = (runs / "short.log").stat().st_size
    process = sweep(file, "--jobs", "2", *flags)
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0, out
    first, *_, last = out.splitlines()
    assert mentions(runs, "3 1 done").search(first) and mentions(runs, "3 done").search(last)
    assert (runs / "short.log").stat().st_size == before
    assert "from step 6" in (runs / "long.log").read_text()


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_finishes(tmp_path, data_dir):
    """kill -9 of the sweep while two runs train: one of them is killed, too, and the other trains on."""
    body = TINY_SWEEP.replace('("short", 3), ("broken", 3), ("long", 6)', '("dies", 60), ("lives", 60), ("last", 3)')
    file, runs = written(tmp_path / "s.py", body), tmp_path / "runs"
    flags = ("--workdir", str(runs), "--data-dir", str(data_dir), "--jobs", "2")
    stopped: dict[str, int] = {}
    process = sweep(file, *flags)
    try:
        until = time.monotonic() + 1200
        while len(stopped) < 2:
            assert process.poll() is None and time.monotonic() < until
            for index, name in enumerate(("dies", "lives")):
                if name not in stopped and saved_steps(runs / name):
                    (stopped[name],) = (pid for pid in children(process.pid) if argv(pid)[-1] == str(index))
                    os.kill(stopped[name], signal.SIGSTOP)
            time.sleep(0.02)
        process.kill()
        process.communicate()
        os.kill(stopped.pop("dies"), signal.SIGKILL)
        while is_training(runs / "dies"):
            time.sleep(0.02)
        assert is_training(runs / "lives") and not is_training(runs)
        process = sweep(file, *flags)
        out = ""
        while not mentions("waiting lives").search(out):
            line = process.stdout.readline()
            assert line, out
            out += line
        os.kill(stopped.pop("lives"), signal.SIGCONT)
        out += process.stdout.read()  # communicate() would pass over what readline() has buffered
        process.wait(timeout=60)
    finally:
        if process.poll() is None:
            stopped |= {str(pid): pid for pid in (*children(process.pid), process.pid)}
        for pid in stopped.values():
            os.kill(pid, signal.SIGKILL)
    assert process.returncode == 0 and mentions(runs, "3 done").search(out.splitlines()[-1]), out
    (line,) = re.findall("^lives: .*", out, re.M)
    assert mentions("done another process").search(line) and re.search("^dies: ", out, re.M)
    for name, steps in (("dies", 60), ("lives", 60), ("last", 3)):
        assert json.loads((runs / name / "summary.json").read_text())["steps"] == steps
    assert re.search(r"60 steps, from step [1-9]", (runs / "dies.log").read_text())
    assert "from step" not in (runs / "lives.log").read_text()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]


def argv(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").rstrip("\0").split("\0")


@pytest.mark.slow
def test_a_sweep_that_is_asked_to_stop_saves_and_resumes(tmp_path, data_dir, tiny_run):
    body = TINY_SWEEP.replace('("short", 3), ("broken", 3), ("long", 6)', '("one", 100000), ("two", 3)')
    file, runs = written(tmp_path / "s.py", body), tmp_path / "runs"
    flags = ("--workdir", str(runs), "--data-dir", str(data_dir), "--jobs", "2")
    process = sweep(file, *flags)
    until = time.monotonic() + 400
    while time.monotonic() < until and not list(runs.glob("one/checkpoints/[1-9]*")):
        time.sleep(0.2)
    assert process.poll() is None and time.monotonic() < until
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 128 + signal.SIGTERM and mentions("stopping one").search(out), out
    step, resumed = re.search(r"after step (\d+).* from step (\d+)", (runs / "one.log").read_text()).groups()
    assert step == resumed == str(Run(runs / "one").last_step())
    # The length of a run may change, that of the runs of a sweep only once its record of their lengths is gone.
    (runs / "sweep.json").unlink()
    written(file, body.replace("100000", str(int(step) + 3)))
    process = sweep(file, *flags)
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0 and mentions(runs, "2 done").search(out.splitlines()[-1]), out
    assert f"from step {step}\n" in (runs / "one.log").read_text()
    assert json.loads((runs / "one" / "summary.json").read_text())["steps"] == int(step) + 3


def test_a_run_of_other_settings_is_no_run_of_the_sweep(tmp_path, tiny_run, tiny_experiment):
    """It is neither kept beside runs of the new settings, nor trained again."""
    shutil.copytree(tiny_run, tmp_path / "one")
    assert run_status(tmp_path / "one", tiny_experiment) == "done"
    assert run_status(tmp_path / "one", dataclasses.replace(tiny_experiment, steps=20)) == "12 of 20 steps"
    faster = with_overrides(tiny_experiment, {"optimizer.learning_rate": 0.5}, "x")
    with pytest.raises(UserError, match=mentions(tmp_path / "one", "optimizer.learning_rate 0.5")):
        run_status(tmp_path / "one", faster)
    with pytest.raises(UserError, match=mentions(tmp_path / "one", "steps 6 12")):
        run_status(tmp_path / "one", dataclasses.replace(tiny_experiment, steps=6))


def test_an_index_outside_is_refused(tmp_path):
    file = written(tmp_path / "s.py", TINY_SWEEP)
    process = sweep(file, "--index", "3", "--workdir", str(tmp_path))
    assert mentions("--index 3 0 2").search(process.communicate(timeout=60)[0]) and process.returncode == 2


def test_runs_are_trained_into_a_bucket_one_by_one(tmp_path):
    file = written(tmp_path / "s.py", TINY_SWEEP)
    for flags in ((), ("--list",)):
        with pytest.raises(UserError, match=mentions("--workdir gs://b/runs --index")):
            main([str(file), "--workdir", "gs://b/runs", *flags])


HOLDING = """
import fcntl, pathlib, sys
run, summary = pathlib.Path(sys.argv[1]), sys.argv[2]
run.mkdir(parents=True, exist_ok=True)
with (run / "lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("held", flush=True)
    sys.stdin.readline()
    (run / "summary.json").write_text(summary)
"""


def holding(run: Path, steps: int, until: int) -> subprocess.Popen:
    """A process that holds the lock of a run, as training does, until a line or the end of `until`.

    It fails at once if another process holds the lock.
    """
    command = [sys.executable, "-c", HOLDING, str(run), json.dumps({"steps": steps})]
    return subprocess.Popen(command, stdin=until, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def quick(monkeypatch):
    """Runs that take no time, in processes of their own; returns the names of those that were started."""
    started = []

    def start(index, log, arguments, slot, jobs):
        started.append(log.stem)
        log.touch()
        return holding(log.with_suffix(""), 6, subprocess.DEVNULL)

    monkeypatch.setattr(launch, "start_run", start)
    monkeypatch.setattr(launch, "check_run", lambda run, experiment: None)
    return started


@pytest.mark.parametrize("lives", [True, False])
def test_runs_that_other_processes_train_are_waited_for(tmp_path, quick, capsys, monkeypatch, lives):
    """The other process finishes, or is killed and its run resumed: never do two processes train one run."""
    file = written(tmp_path / "s.py", TINY_SWEEP)
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3 and lives:
            orphan.stdin.write("\n")
            orphan.stdin.flush()
        elif len(slept) == 3:
            orphan.kill()
        assert len(slept) > 3 or not quick  # with --jobs 1 there is one at a time
        os.sched_yield()

    with holding(tmp_path / "runs" / "short", 3, subprocess.PIPE) as orphan:
        orphan.stdout.readline()
        monkeypatch.setattr(launch.time, "sleep", sleep)
        main([str(file), "--workdir", str(tmp_path / "runs")])
    out = capsys.readouterr().out
    assert quick == (["broken", "long"] if lives else ["short", "broken", "long"])
    assert mentions("waiting short").search(out) and mentions("3 done").search(out.splitlines()[-1])
    *_, line = re.findall("^short: .*", out, re.M)
    assert bool(mentions("done another process").search(line)) == lives


@pytest.mark.parametrize("ignored", [True, False])
def test_an_ignored_interrupt_stops_no_sweep(tmp_path, quick, monkeypatch, ignored):
    """Background jobs of a shell ignore SIGINT."""
    start = launch.start_run

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return start(*arguments)

    monkeypatch.setattr(launch, "start_run", interrupted)
    command = [str(written(tmp_path / "s.py", TINY_SWEEP)), "--workdir", str(tmp_path / "runs")]
    handler = signal.SIG_IGN if ignored else signal.default_int_handler
    before = signal.signal(signal.SIGINT, handler)
    try:
        if ignored:
            main(command)
        else:
            with pytest.raises(Interrupted) as stopped:
                main(command)
            assert stopped.value.status == 130
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert quick == (["short", "broken", "long"] if ignored else [])


def test_two_sweeps_in_one_folder_are_refused(tmp_path, quick, monkeypatch, capsys):
    monkeypatch.setattr(Processes, "connect", lambda self: None)
    file, flags = written(tmp_path / "s.py", TINY_SWEEP), ["--workdir", str(tmp_path / "runs")]
    with run_lock(tmp_path / "runs"), pytest.raises(UserError, match=mentions("another process", tmp_path / "runs")):
        main([str(file), *flags])
    assert quick == []
    main([str(file), *flags])
    other = written(tmp_path / "other.py", TINY_SWEEP.replace('"long"', '"longer"'))
    for more in ([], ["--list"], ["--index", "0"]):
        with pytest.raises(UserError, match=mentions(tmp_path / "runs", file, "long")):
            main([str(other), *flags, *more])
    main([str(file), *flags, "--index", "2"])  # a finished run is not trained
    assert f"{tmp_path}/runs/long: done" in capsys.readouterr().out
    with pytest.raises(UserError, match=mentions(tmp_path / "runs", file, "steps long 6 7")):
        main([str(written(file, TINY_SWEEP.replace("6)", "7)"))), *flags, "--index", "2"])
    assert quick == ["short", "broken", "long"] and not (tmp_path / "runs" / "longer").exists()


def test_runs_share_the_gpus_out(tmp_path, monkeypatch):
    visible = []
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, env, **more: visible.append(env.get("CUDA_VISIBLE_DEVICES"))
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4,GPU-5f")
    for jobs, slots in ((2, (0, 1)), (1, (0,))):
        for slot in slots:
            start_run(0, tmp_path / "one.log", ["s.py"], slot, jobs)
    assert visible == ["3,GPU-5f", "4", "3,4,GPU-5f"]
    file = written(tmp_path / "s.py", TINY_SWEEP)
    with pytest.raises(UserError, match=mentions("--jobs 4 3 GPUs")):
        main([str(file), "--workdir", str(tmp_path / "runs"), "--jobs", "4"])
    assert not (tmp_path / "runs").exists()


def test_flags_that_contradict_a_sweep_are_refused(tmp_path):
    file = written(
        tmp_path / "s.py", TINY_SWEEP + "from selfflow.sweep.members import Budget\nBUDGET = Budget(flops=1e9)"
    )
    for flags, words in (
        (["--steps", "3"], "--steps --budget.steps --budget.flops"),
        (["--steps=3"], "--steps --budget.steps --budget.flops"),
        (["--budget.steps", "3"], "budget steps 3 flops 1e+09"),
        ([], f"{file} short steps FLOPs budget"),
        (["--coordinator", "h:1", "--processes", "2", "--process", "0"], "--coordinator --index"),
    ):
        with pytest.raises(UserError, match=mentions(words)):
            main([str(file), "--workdir", str(tmp_path / "runs"), *flags])
    assert not (tmp_path / "runs").exists()
