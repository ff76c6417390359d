"""The recipes of experiments/launch, run with stand-ins for what they call: what reaches `selfflow train`, and what
follows from how it ends."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from selfflow.training.distributed import Processes

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "experiments" / "launch"


@pytest.fixture
def surroundings(tmp_path) -> dict[str, str]:
    """A clone whose `.venv/bin/selfflow`, and a path whose commands, note how they were called."""
    noting = f"""#!{sys.executable}
import json, os, sys
name = os.path.basename(sys.argv[0])
with open({str(tmp_path / "calls")!r}, "a") as calls:
    print(json.dumps([name, *sys.argv[1:]]), file=calls)
if name == "srun":
    os.execv(".venv/bin/selfflow", sys.argv[sys.argv.index(".venv/bin/selfflow"):])
sys.exit(int(os.environ.get("STATUS", "0")) if name == "selfflow" else 0)
"""
    for name in (".venv/bin/selfflow", "bin/srun", "bin/scontrol", "bin/xpk"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(noting)
        (tmp_path / name).chmod(0o755)
    return {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PWD": str(tmp_path)}


def called(command: list, surroundings: dict[str, str], status: int = 0) -> dict[str, list[str]]:
    """Runs a script in the clone of the surroundings, and returns the arguments of the commands that it called."""
    folder = Path(surroundings["PWD"])
    (folder / "calls").unlink(missing_ok=True)
    done = subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return {name: rest for name, *rest in map(json.loads, (folder / "calls").read_text().splitlines())}


def trained(arguments: list[str], monkeypatch) -> tuple:
    """What `selfflow train` makes of arguments: the experiment, its folder, that of the data, and the processes."""
    import selfflow.cli.train

    joined, made = [], []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(Processes, "connect", lambda self: joined.append(self))
    monkeypatch.setattr("selfflow.tasks.train.train", lambda *given: made.append(given))
    assert arguments[0] == "train"
    selfflow.cli.train.main(arguments[1:])
    return *made[0], joined[0]


@pytest.mark.parametrize("ended, requeued", [(0, False), (1, False), (137, False), (143, True)])
def test_a_slurm_job_waits_again_after_a_checkpoint(surroundings, monkeypatch, ended, requeued):
    flags = ["experiments/quickstart.py", "--workdir", "some where", "--data-dir", "data", "--steps", "3"]
    job = surroundings | {"SLURM_JOB_ID": "47", "SLURM_CPUS_PER_TASK": "8", "https_proxy": "x", "STATUS": str(ended)}
    calls = called(["bash", LAUNCH / "slurm.sh", *flags], job, status=ended)
    assert {"--kill-on-bad-exit=1", "--cpus-per-task=8"} < set(calls["srun"])
    assert calls.get("scontrol") == (["requeue", "47"] if requeued else None)
    experiment, workdir, data_dir, processes = trained(calls["selfflow"], monkeypatch)
    assert (experiment.steps, workdir, data_dir) == (3, Path("some where"), Path("data"))
    assert processes == Processes()  # Slurm tells


def test_a_slurm_job_has_a_task_for_each_gpu_and_is_told_ahead():
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", (LAUNCH / "slurm.sh").read_text(), re.MULTILINE))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"] and "gpus-per-task" not in asked
    # Without `B:`, which would signal the script and not the tasks.
    assert re.fullmatch(r"TERM@\d{3,}", asked["signal"]) and "requeue" in asked


@pytest.mark.parametrize("example", re.findall(r"^#   bash (\S*xpk.sh .*)", (LAUNCH / "xpk.sh").read_text(), re.M))
def test_xpk_is_asked_for_slices(surroundings, monkeypatch, example):
    recipe, name, chips, slices, *flags = shlex.split(example, comments=True)
    told = {variable: variable.lower() for variable in ("CLUSTER", "PROJECT", "ZONE", "IMAGE", "STORAGE")}
    told |= {"SHARED": "/sha red", "XPK_FLAGS": "--spot --dry-run"}
    asked = called(["bash", ROOT / recipe, name, chips, slices, *flags], surroundings | told)["xpk"]
    assert asked[:2] == ["workload", "create"] and asked[-2:] == ["--spot", "--dry-run"]
    options = dict(zip(asked[2:-2:2], asked[3:-2:2]))
    assert (options["--workload"], options["--docker-image"], options["--storage"]) == (name, "image", "storage")
    assert (options["--tpu-type"], options["--num-slices"]) == (chips, slices)
    first, second, *arguments = shlex.split(options["--command"])
    assert [first, second] == ["exec", "selfflow"]  # so that SIGTERM reaches it
    experiment, workdir, data_dir, processes = trained(arguments, monkeypatch)
    assert (workdir, data_dir, processes) == (Path(f"/sha red/runs/{name}"), Path("/sha red/data"), Processes())
    assert experiment.devices.slices == int(slices)
    devices = int(chips.rpartition("-")[2]) * int(slices)
    assert not any(component.batch_size % devices for component in experiment.mixture.values())


def test_xpk_names_what_it_is_not_told(surroundings):
    flags = ["run", "v5litepod-16", "1", "experiments/quickstart.py"]
    done = subprocess.run(["bash", LAUNCH / "xpk.sh", *flags], env=surroundings, capture_output=True, text=True)
    assert done.returncode == 1 and "SHARED" in done.stderr


@pytest.mark.parametrize("node", [0, 1])
def test_skypilot_gives_each_node_its_number(surroundings, monkeypatch, node):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    subprocess.run(["bash", "-n", "-c", task["setup"]], check=True)
    given = {name: value or "" for name, value in task["envs"].items()} | {"RUN": "a", "FLAGS": "--steps 3"}
    given |= {"SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.9", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": str(node)}
    arguments = called(["bash", "-c", task["run"]], surroundings | given)["selfflow"]
    experiment, workdir, data_dir, processes = trained(arguments, monkeypatch)
    assert (experiment.steps, workdir, data_dir) == (3, Path("/shared/runs/a"), Path("/shared/data"))
    assert list(task["volumes"]) == ["/shared"]
    assert processes == Processes("10.0.0.7:8476", processes=2, process=node)


def test_the_files_that_recipes_name_are_there():
    for recipe in LAUNCH.iterdir():
        for name in re.findall(r"experiments/[\w/.]*\w", recipe.read_text()):
            assert (ROOT / name).exists(), (recipe.name, name)
