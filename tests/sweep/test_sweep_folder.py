"""`sweep.json`: what a sweep leaves beside its runs, and which folders it refuses."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from selfflow.config.experiment import Experiment
from selfflow.config.files import load_experiment
from selfflow.errors import UserError
from selfflow.run.folder import is_training, run_lock
from selfflow.serialization import from_json
from selfflow.sweep.folder import check_sweep, describe, enter_sweep
from selfflow.sweep.load import load_sweep
from selfflow.sweep.members import Budget

FILE = """'''What is asked.'''
from tests.tiny import experiment  # noqa
from selfflow.objectives.alignment import NoAlignment
from selfflow.sweep.members import *

def sweep():
    arms = [Member("none", {"alignment": NoAlignment()}), *axis("alignment.weight", (0.2, 0.4))]
    return seeds(arms, range(1, 3))
"""


@pytest.fixture
def told(tmp_path):
    """What `sweep.json` would say of a file, after some changes of its text."""

    def tell(*replaced: tuple[str, str], budget: Budget = Budget(), arguments: tuple[str, ...] = ()) -> dict:
        text = FILE
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new)
        file = tmp_path / "file.py"
        file.write_text(text)
        return describe(load_sweep(file, load_experiment(file), budget), [str(file), *arguments])

    return tell


def based_on(changes: str) -> tuple[str, str]:
    """A change of the file's text that changes its `experiment()`."""
    body = f"return dataclasses.replace(tiny.experiment(), {changes})"
    imports = "import dataclasses; from tests import tiny; from selfflow.training.loop import Cadence"
    imports += "; from selfflow.training.seeds import Seeds"
    return "def sweep", f"{imports}\ndef experiment(): {body}\ndef sweep"


def kept(folder: Path) -> dict:
    return json.loads((folder / "sweep.json").read_text())


def test_a_sweep_tells_what_it_is(told, tmp_path):
    flags = "--steps 9 --index 3 --jobs=2 --data-dir x --list --workdir runs/x --model.width 32 --data_dir=y".split()
    described = told(budget=Budget(flops=1e9), arguments=tuple(flags))
    enter_sweep(tmp_path / "runs", described)
    found = kept(tmp_path / "runs")
    assert found == described and found["question"] == "What is asked." and found["budget"] == {"flops": 1e9}
    file = str(tmp_path / "file.py")
    assert found["file"] == file
    assert found["command"] == ["selfflow", "sweep", file, *"--steps 9 --workdir runs/x --model.width 32".split()]
    assert [(m["name"], m["arm"], m["seed"]) for m in found["members"][:4]] == [
        ("none_1", "none", 1),
        ("0.2_1", "0.2", 1),
        ("0.4_1", "0.4", 1),
        ("none_2", "none", 2),
    ]
    assert found["members"][1]["overrides"] == {
        "alignment.weight": 0.2,
        "seed.init": 1,
        "seed.data": 1,
        "seed.noise": 1,
    }
    assert found["members"][0]["overrides"]["alignment"]["kind"] == "none"
    for member in found["members"]:
        assert 0 < member["flops"] <= 1e9 and member["steps"] > 1
    assert from_json(found["experiment"], Experiment, "x") == load_experiment(file)
    assert told(budget=Budget(steps=5))["budget"] == {"steps": 5} and told()["budget"] is None


def test_the_same_sweep_goes_on_and_may_have_got_more_members(told, tmp_path):
    enter_sweep(tmp_path / "runs", told())
    enter_sweep(tmp_path / "runs", told())
    assert kept(tmp_path / "runs") == told()
    often = told(based_on("condition_drop=0.1, cadence=Cadence(log_every=2)"))  # which says how, and not what
    enter_sweep(tmp_path / "runs", often)
    assert kept(tmp_path / "runs") == often != told()
    more = told(("range(1, 3)", "range(1, 4)"), ("(0.2, 0.4)", "(0.1, 0.2, 0.4)"))
    enter_sweep(tmp_path / "runs", more)
    assert kept(tmp_path / "runs") == more and len(more["members"]) == 12
    with pytest.raises(UserError, match="it has the run 0.1_1, which is missing now: use another --workdir"):
        enter_sweep(tmp_path / "runs", told())
    assert kept(tmp_path / "runs") == more


@pytest.mark.parametrize(
    "change, message",
    [
        (("0.2, 0.4", "0.2, 0.5"), "it has the run 0.4_1, which is missing now"),
        (("(0.2, 0.4)", "{'0.2': 0.3, '0.4': 0.4}"), "alignment.weight of its run 0.2_1 was 0.2, now 0.3"),
        (
            ("NoAlignment()}", "NoAlignment(), 'condition_drop': 0.5}"),
            "condition_drop of its run none_1 was 0.1, now",
        ),
        (based_on("steps=13"), "steps of its run none_1 was 12, now 13"),
        (based_on("seed=Seeds(data=1), condition_drop=0.3"), "condition_drop of its run none_1 was 0.1, now 0.3"),
    ],
)
def test_another_sweep_is_refused(told, tmp_path, change, message):
    described = told()
    enter_sweep(tmp_path / "runs", described)
    other = told(change)
    for enter in (enter_sweep, check_sweep):
        with pytest.raises(UserError, match=f"{tmp_path}/runs holds another sweep, of .*file.py: {message}"):
            enter(tmp_path / "runs", other)
    assert kept(tmp_path / "runs") == described


def test_a_damaged_file_is_named(told, tmp_path):
    described = told()
    for content in ("", "{", "[]", "null", "{}", '{"experiment": 3, "members": []}', "\udcff", '{"members":'):
        (tmp_path / "sweep.json").write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(UserError, match="sweep.json"):
            enter_sweep(tmp_path, described)


def test_a_run_folder_is_no_folder_of_a_sweep(told, tmp_path):
    (tmp_path / "experiment.json").write_text("{}")
    with pytest.raises(UserError, match="is a run folder: give the sweep a folder of its own"):
        check_sweep(tmp_path, told())


def test_of_many_that_begin_at_once_those_of_one_sweep_go_on(told, tmp_path):
    """As the processes of an array do; each opens its own lock, threads as well as processes."""
    one, other = told(), told(("0.2, 0.4", "0.6, 0.8"))

    def enter(described: dict) -> bool:
        try:
            enter_sweep(tmp_path / "runs", described)
        except UserError as error:
            assert "holds another sweep" in str(error)
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        entered = list(pool.map(enter, [one, other] * 8))
    assert kept(tmp_path / "runs") in (one, other)
    assert entered == [kept(tmp_path / "runs") == described for described in [one, other] * 8]
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"sweep.json", "sweep.lock"}


def test_a_lock_goes_with_a_killed_process(tmp_path):
    assert not is_training(tmp_path / "run") and not (tmp_path / "run").exists()
    holding = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True)"
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", f"{holding}; time.sleep(60)", str(tmp_path / "run" / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert is_training(tmp_path / "run")
        with pytest.raises(UserError, match="another process is training in"), run_lock(tmp_path / "run"):
            pass
        process.kill()
        process.wait()
        assert not is_training(tmp_path / "run")
        with run_lock(tmp_path / "run"):
            assert is_training(tmp_path / "run")
    assert not is_training(tmp_path / "run")
