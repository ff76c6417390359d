"""Sweeps: one file, several experiments, each in its own process."""

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

from selfflow.cli.sweep import _state, main
from selfflow.errors import UserError
from selfflow.experiment_file import load_experiment
from selfflow.objectives.alignment import NoAlignment
from selfflow.run import Run
from selfflow.sweep import load_sweep, overridden
from tests.conftest import TINY

MEMBERS = """
from selfflow.experiments.quickstart import experiment  # noqa
from selfflow.objectives.alignment import NoAlignment
from selfflow.sweep import Member

def sweep():
    for seed in range(2):
        yield Member(f"selfflow_{seed}", {"seed.init": seed, "mixture.joint.batch_size": 8})
        yield Member(f"none_{seed}", {"seed.init": seed, "alignment": NoAlignment()})
"""


def written(path: Path, body: str) -> Path:
    path.write_text(body)
    return path


def test_members_differ_from_the_file_in_what_they_say(tmp_path):
    file = written(tmp_path / "x.py", MEMBERS)
    base = load_experiment(file)
    found = load_sweep(file, base)
    assert list(found) == ["selfflow_0", "none_0", "selfflow_1", "none_1"]
    assert found["none_1"].alignment == NoAlignment() and found["none_1"].seed.init == 1
    assert found["selfflow_1"].mixture["joint"].batch_size == 8
    assert overridden(found["none_1"], {"alignment": base.alignment, "seed.init": base.seed.init}, "x") == base


@pytest.mark.parametrize(
    "member, message",
    [
        ('Member("a", {"seed.int": 1})', "sweep member a: unknown field seed.int; did you mean init?"),
        ('Member("a", {"sede.init": 1})', "there is no field sede for sede.init to be in"),
        ('Member("a", {"steps": "many"})', "steps is 'many', expected int"),
        ('Member("a", {"alignment.student_layer": 9})', "sweep member a: alignment.student_layer is 9"),
        ('Member("a/b", {})', "leave / and"),
        ('("a", {})', "not a selfflow.sweep.Member"),
    ],
)
def test_what_a_member_gets_wrong_is_named(tmp_path, member, message):
    file = written(tmp_path / "x.py", MEMBERS.split("def")[0] + f"def sweep():\n    yield {member}\n")
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        load_sweep(file, load_experiment(file))


def test_a_file_without_members_is_refused(tmp_path):
    twice = MEMBERS + '    yield Member("none_1", {})\n'
    for body, message in (
        ("x = 1", "no function sweep"),
        ("def sweep(): return []", "no member"),
        (twice, "this name"),
    ):
        file = written(tmp_path / "x.py", body)
        with pytest.raises(UserError, match=message):
            load_sweep(file, load_experiment(TINY))


TINY_SWEEP = f"""
import importlib.util, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tests.tiny import experiment
from selfflow.sweep import Member

def sweep():
    for name, steps in (("short", 3), ("broken", 3), ("long", 6)):
        yield Member(name, {{"steps": steps, "proof.probe_clips": 0, "proof.samples": 1}})
"""


def sweep(file: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "selfflow", "sweep", str(file), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)


@pytest.mark.slow
def test_a_sweep_survives_a_failure_and_goes_on_where_it_was_stopped(tmp_path, data_dir, tiny_run):
    file, runs = written(tmp_path / "s.py", TINY_SWEEP), tmp_path / "runs"
    (runs / "broken").mkdir(parents=True)
    (runs / "broken" / "experiment.json").write_text("{")
    flags = ("--workdir", str(runs), "--data-dir", str(data_dir))
    process = sweep(file, *flags)
    told = process.communicate(timeout=300)[0]
    assert process.returncode == 2, told
    assert "broken" in told and "FAILED with status 2" in told and "not valid JSON" in told
    assert "1 of 3 members failed (broken)" in told
    steps = {name: json.loads((runs / name / "summary.json").read_text())["steps"] for name in ("short", "long")}
    assert steps == {"short": 3, "long": 6}
    (runs / "broken" / "experiment.json").unlink()
    (runs / "long" / "summary.json").unlink()  # as if it had been killed in its last minute
    listed = sweep(file, "--list", *flags).communicate(timeout=60)[0].split()
    assert (
        listed[1:3] == ["short", "done"] and listed[4:7] == ["broken", "to", "do"] and listed[8:] == ["long", "begun"]
    )
    before = (runs / "short.log").stat().st_size
    process = sweep(file, "--jobs", "2", *flags)
    told = process.communicate(timeout=300)[0]
    assert process.returncode == 0 and "3 members, 1 of them done" in told and "all 3 members are done" in told, told
    assert (runs / "short.log").stat().st_size == before
    assert "from step 6" in (runs / "long.log").read_text()


@pytest.mark.slow
def test_a_sweep_that_is_asked_to_stop_saves_and_goes_on(tmp_path, data_dir, tiny_run):
    body = TINY_SWEEP.replace('("short", 3), ("broken", 3), ("long", 6)', '("one", 100000), ("two", 3)')
    file, runs = written(tmp_path / "s.py", body), tmp_path / "runs"
    flags = ("--workdir", str(runs), "--data-dir", str(data_dir), "--jobs", "2")
    process = sweep(file, *flags)
    until = time.monotonic() + 400
    while time.monotonic() < until and not list(runs.glob("one/checkpoints/[1-9]*")):
        time.sleep(0.2)
    assert process.poll() is None and time.monotonic() < until
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=300)[0]
    assert process.returncode == 128 + signal.SIGTERM and "the same command goes on" in told, told
    said = re.search(r"after step (\d+): the same command goes on from step (\d+)", (runs / "one.log").read_text())
    assert said[1] == said[2] == str(Run(runs / "one").last_step())
    # A run may be made longer or shorter than it was meant to be, and this one is to end.
    written(file, body.replace("100000", str(int(said[1]) + 3)))
    process = sweep(file, *flags)
    told = process.communicate(timeout=300)[0]
    assert process.returncode == 0 and "all 2 members are done" in told, told
    assert f"steps, from step {said[1]}\n" in (runs / "one.log").read_text()
    assert json.loads((runs / "one" / "summary.json").read_text())["steps"] == int(said[1]) + 3


def test_what_was_done_with_other_settings_is_no_member(tmp_path, tiny_run, tiny_experiment):
    """Neither is it kept beside members of the new settings, nor trained again."""
    shutil.copytree(tiny_run, tmp_path / "one")
    assert _state(tmp_path / "one", tiny_experiment) == "done"
    assert _state(tmp_path / "one", dataclasses.replace(tiny_experiment, steps=20)) == "12 of 20 steps"
    faster = overridden(tiny_experiment, {"optimizer.learning_rate": 0.5}, "x")
    with pytest.raises(UserError, match="one holds a run of another experiment: optimizer.learning_rate was .* 0.5"):
        _state(tmp_path / "one", faster)
    with pytest.raises(UserError, match="steps is 6, but .*one has done 12"):
        _state(tmp_path / "one", dataclasses.replace(tiny_experiment, steps=6))


def test_an_index_outside_is_refused(tmp_path):
    file = written(tmp_path / "x.py", MEMBERS)
    process = sweep(file, "--index", "4", "--workdir", str(tmp_path))
    assert "has members 0 to 3" in process.communicate(timeout=60)[0] and process.returncode == 2


def test_a_bucket_takes_members_one_by_one(tmp_path):
    file = written(tmp_path / "x.py", MEMBERS)
    for flags in ((), ("--list",)):
        with pytest.raises(UserError, match="--workdir gs://b/runs: .* one by one, with --index"):
            main([str(file), "--workdir", "gs://b/runs", *flags])
