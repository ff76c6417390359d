"""`sweep.json`: the description that a sweep leaves beside its runs, and the folders that it refuses."""

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
from tests.conftest import mentions

FILE = """'''The question.'''
from tests.tiny import experiment  # noqa
from selfflow.objectives.alignment import NoAlignment
from selfflow.sweep.members import *

def sweep():
    arms = [Member("none", {"alignment": NoAlignment()}), *axis("alignment.weight", (0.2, 0.4))]
    return seeds(arms, range(1, 3))
"""


@pytest.fixture
def description_of(tmp_path):
    """A function that returns the content of `sweep.json` for the file, after some changes of its text."""

    def describe_file(*replaced: tuple[str, str], budget: Budget = Budget(), arguments: tuple[str, ...] = ()) -> dict:
        text = FILE
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new)
        file = tmp_path / "file.py"
        file.write_text(text)
        return describe(load_sweep(file, load_experiment(file), budget), [str(file), *arguments])

    return describe_file


def based_on(changes: str) -> tuple[str, str]:
    """A change of the file's text that changes its `experiment()`."""
    body = f"return dataclasses.replace(tiny.experiment(), {changes})"
    imports = "import dataclasses; from tests import tiny; from selfflow.training.loop import Cadence"
    imports += "; from selfflow.training.seeds import Seeds"
    return "def sweep", f"{imports}\ndef experiment(): {body}\ndef sweep"


def kept(folder: Path) -> dict:
    return json.loads((folder / "sweep.json").read_text())


def test_a_sweep_is_described_in_its_folder(description_of, tmp_path):
    flags = "--steps 9 --index 3 --jobs=2 --data-dir x --list --workdir runs/x --model.width 32 --data_dir=y".split()
    description = description_of(budget=Budget(flops=1e9), arguments=tuple(flags))
    enter_sweep(tmp_path / "runs", description)
    sweep = kept(tmp_path / "runs")
    assert sweep == description and sweep["question"] == "The question." and sweep["budget"] == {"flops": 1e9}
    file = str(tmp_path / "file.py")
    assert sweep["file"] == file
    assert sweep["command"] == ["selfflow", "sweep", file, *"--steps 9 --workdir runs/x --model.width 32".split()]
    assert [(m["name"], m["arm"], m["seed"]) for m in sweep["members"][:4]] == [
        ("none_1", "none", 1),
        ("0.2_1", "0.2", 1),
        ("0.4_1", "0.4", 1),
        ("none_2", "none", 2),
    ]
    assert sweep["members"][1]["overrides"] == {
        "alignment.weight": 0.2,
        "seed.init": 1,
        "seed.data": 1,
        "seed.noise": 1,
    }
    assert sweep["members"][0]["overrides"]["alignment"]["kind"] == "none"
    for member in sweep["members"]:
        assert 0 < member["flops"] <= 1e9 and member["steps"] > 1
    assert from_json(sweep["experiment"], Experiment, "x") == load_experiment(file)
    assert description_of(budget=Budget(steps=5))["budget"] == {"steps": 5} and description_of()["budget"] is None


def test_the_same_sweep_resumes_and_may_have_more_runs(description_of, tmp_path):
    enter_sweep(tmp_path / "runs", description_of())
    enter_sweep(tmp_path / "runs", description_of())
    assert kept(tmp_path / "runs") == description_of()
    often = description_of(based_on("condition_drop=0.1, cadence=Cadence(log_every=2)"))  # how to train, not what
    enter_sweep(tmp_path / "runs", often)
    assert kept(tmp_path / "runs") == often != description_of()
    more = description_of(("range(1, 3)", "range(1, 4)"), ("(0.2, 0.4)", "(0.1, 0.2, 0.4)"))
    enter_sweep(tmp_path / "runs", more)
    assert kept(tmp_path / "runs") == more and len(more["members"]) == 12
    with pytest.raises(UserError, match=mentions(tmp_path / "runs", "0.1_1 --workdir")):
        enter_sweep(tmp_path / "runs", description_of())
    assert kept(tmp_path / "runs") == more


@pytest.mark.parametrize(
    "change, words",
    [
        (("0.2, 0.4", "0.2, 0.5"), "0.4_1"),
        (("(0.2, 0.4)", "{'0.2': 0.3, '0.4': 0.4}"), "alignment.weight 0.2_1 0.2 0.3"),
        (("NoAlignment()}", "NoAlignment(), 'condition_drop': 0.5}"), "condition_drop none_1 0.1 0.5"),
        (based_on("steps=13"), "steps none_1 12 13"),
        (based_on("seed=Seeds(data=1), condition_drop=0.3"), "condition_drop none_1 0.1 0.3"),
    ],
)
def test_another_sweep_is_refused(description_of, tmp_path, change, words):
    description = description_of()
    enter_sweep(tmp_path / "runs", description)
    other = description_of(change)
    for enter in (enter_sweep, check_sweep):
        with pytest.raises(UserError, match=mentions(tmp_path / "runs", tmp_path / "file.py", words)):
            enter(tmp_path / "runs", other)
    assert kept(tmp_path / "runs") == description


def test_a_damaged_file_is_named(description_of, tmp_path):
    description = description_of()
    for content in ("", "{", "[]", "null", "{}", '{"experiment": 3, "members": []}', "\udcff", '{"members":'):
        (tmp_path / "sweep.json").write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(UserError, match=mentions(tmp_path / "sweep.json")):
            enter_sweep(tmp_path, description)


def test_a_run_folder_is_no_folder_of_a_sweep(description_of, tmp_path):
    (tmp_path / "experiment.json").write_text("{}")
    with pytest.raises(UserError, match=mentions("--workdir", tmp_path, "run folder")):
        check_sweep(tmp_path, description_of())


def test_of_many_that_start_at_once_those_of_one_sweep_succeed(description_of, tmp_path):
    """As the processes of an array do; each opens its own lock, threads as well as processes."""
    one, other = description_of(), description_of(("0.2, 0.4", "0.6, 0.8"))

    def enter(description: dict) -> bool:
        try:
            enter_sweep(tmp_path / "runs", description)
        except UserError as error:
            assert mentions(tmp_path / "runs", "sweep --workdir").search(str(error))
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        entered = list(pool.map(enter, [one, other] * 8))
    assert kept(tmp_path / "runs") in (one, other)
    assert entered == [kept(tmp_path / "runs") == description for description in [one, other] * 8]
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"sweep.json", "sweep.lock"}


@pytest.mark.resilience
def test_a_lock_goes_with_a_killed_process(tmp_path):
    assert not is_training(tmp_path / "run") and not (tmp_path / "run").exists()
    holding = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True)"
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", f"{holding}; time.sleep(60)", str(tmp_path / "run" / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert is_training(tmp_path / "run")
        with pytest.raises(UserError, match=mentions("another process", tmp_path / "run")), run_lock(tmp_path / "run"):
            pass
        process.kill()
        process.wait()
        assert not is_training(tmp_path / "run")
        with run_lock(tmp_path / "run"):
            assert is_training(tmp_path / "run")
    assert not is_training(tmp_path / "run")
