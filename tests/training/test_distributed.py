"""Runs on several processes: that they compute what one does, outlive a kill, and fail together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.run.run import open_run
from selfflow.tasks.train import train
from selfflow.training.distributed import Processes, check_agreed, primary_first, run_on_all
from selfflow.training.metrics import TIMINGS, read_metrics
from tests.conftest import TINY, mentions
from tests.training.several import small

pytestmark = pytest.mark.resilience

ROOT = TINY.parents[1]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(folder, data_dir, count: int, tensor: int = 1, evaluate_every: int = 0) -> list[subprocess.Popen]:
    where = [str(folder), str(data_dir), str(tensor), str(evaluate_every), f"127.0.0.1:{free_port()}", str(count)]
    command = [sys.executable, "-m", "tests.training.several", *where]
    return [
        subprocess.Popen(command + [str(i)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for i in range(count)
    ]


def finished(processes: list[subprocess.Popen]) -> list[str]:
    outputs = [p.communicate(timeout=300)[0] for p in processes]
    assert [p.returncode for p in processes] == [0] * len(processes), "\n".join(outputs)
    return outputs


def assert_same_numbers(found, expected) -> None:
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for row, other in zip(found, expected):
        assert row.keys() == other.keys() and row["component"] == other["component"]
        for name in row.keys() - {*TIMINGS, "component"}:
            assert row[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), (row["step"], name)


@pytest.mark.slow
@pytest.mark.parametrize("processes, devices", [(2, 1), (1, 4)])
def test_many_devices_evaluate_together(processes, devices, data_dir, tmp_path, monkeypatch):
    """All draw the samples, one looks at them; the numbers are those of one device, and training is undisturbed."""
    monkeypatch.setattr("selfflow.tasks.flow.evaluate_run", lambda *_: {})
    train(small(evaluate_every=5), tmp_path / "alone", data_dir)
    flags = os.environ["XLA_FLAGS"]
    monkeypatch.setenv("XLA_FLAGS", f"{flags} --xla_force_host_platform_device_count={devices}")
    finished(start(tmp_path / "both", data_dir, processes, tensor=2, evaluate_every=5))
    alone, both = (read_metrics(tmp_path / name) for name in ("alone", "both"))
    assert {row["step"] for row in both if "samples/joint/kid/layer2/video+audio" in row} == {5}
    # Checks of physics are passed or not: a last digit may decide.
    without_physics = lambda row: {name: value for name, value in row.items() if "/physics/" not in name}
    assert_same_numbers([without_physics(row) for row in both], [without_physics(row) for row in alone])


@pytest.mark.slow
def test_two_processes_are_killed_and_go_on_as_one_and_as_two(data_dir, tmp_path, monkeypatch):
    """The numbers are those of one process that was never stopped.

    The two read a half of every batch each; when they go on, with heads and channels split between them, all of it.
    """
    monkeypatch.setattr("selfflow.tasks.flow.evaluate_run", lambda *_: {})
    folder, alone, whole = tmp_path / "run", tmp_path / "alone", tmp_path / "whole"
    train(small(), whole, data_dir)
    both = start(folder, data_dir, 2)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and all(p.poll() is None for p in both):
        if (folder / "checkpoints" / "2").exists():
            break
        time.sleep(0.01)
    for process in both:
        process.send_signal(signal.SIGKILL)
    outputs = [p.communicate()[0] for p in both]
    assert [p.returncode for p in both] == [-signal.SIGKILL] * 2, "\n".join(outputs)
    assert 2 <= open_run(folder).last_step() < 8
    shutil.copytree(folder, alone)
    outputs = finished(start(folder, data_dir, 2, tensor=2))
    assert "8 steps, from step" in outputs[0] and "steps" not in outputs[1]
    train(small(), alone, data_dir)
    expected = open_run(whole).restore()
    for found in (folder, alone):
        assert_same_numbers(read_metrics(found), read_metrics(whole))
        ours, theirs = (
            state.frozen["ema"]["embed"]["video"]["kernel"] for state in (open_run(found).restore(), expected)
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    sessions = json.loads((folder / "provenance.json").read_text())["sessions"]
    assert [len(s["devices"]) for s in sessions] == [2, 2] and sessions[1]["changed"] == {"devices.tensor": [1, 2]}


def test_what_one_process_alone_finds_damaged_both_pass_over(tmp_path):
    """Its own parts of the newest checkpoint, of arrays that both hold halves of."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-c", _DAMAGE, address, str(tmp_path)]
    both = [
        subprocess.Popen(command + [str(i)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for i in range(2)
    ]
    outputs = finished(both)
    assert mentions(tmp_path / "checkpoints" / "2", "damaged-2 step 1").search(outputs[0]), outputs
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "damaged-2"]


_DAMAGE = """
import sys
from pathlib import Path
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from selfflow.training.checkpoints import Checkpoints
from selfflow.training.distributed import Processes, barrier, is_primary
from selfflow.training.state import State

address, folder, number = sys.argv[1:]
Processes(address, 2, int(number)).connect()
mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("fsdp",), ()))
def made(step):
    weights = jax.jit(lambda: jax.random.normal(jax.random.key(step), (256, 256)), out_shardings=split)()
    count = jax.jit(lambda: jnp.int32(step), out_shardings=whole)()
    return State(count, {"weights": weights}, {}, optax.EmptyState())

checkpoints = Checkpoints(Path(folder))
for step in (1, 2):
    checkpoints.save(made(step), step)
checkpoints.wait()
barrier()
if is_primary():
    files = Path(folder).glob("checkpoints/2/state/ocdbt.process_1/**/*")
    file = max(files, key=lambda file: file.stat().st_size)
    data = np.fromfile(file, np.uint8)
    data[len(data) // 3 : len(data) // 2] ^= 255
    data.tofile(file)
barrier()
abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), made(1))
found = checkpoints.restore_newest(abstract)
assert int(found.step) == 1
np.testing.assert_array_equal(*(x.params["weights"].addressable_data(0) for x in (found, made(1))))
checkpoints.close()
barrier()
"""


def test_a_mistake_of_one_process_ends_all(data_dir, tmp_path):
    """Every process sees that the folder holds other files: all print an error and exit."""
    (tmp_path / "thesis.tex").write_text("")
    both = start(tmp_path, data_dir, 2)
    outputs = [p.communicate(timeout=120)[0] for p in both]
    assert all(p.returncode != 0 for p in both)
    assert mentions("process 0", tmp_path, "thesis.tex").search(outputs[0]), outputs[0]


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"coordinator": "10.0.0.1:1234"}, "coordinator, processes process"),
        ({"processes": 2, "process": 1}, "coordinator, processes process"),
        ({"coordinator": "10.0.0.1:1234", "processes": 2, "process": 2}, "process 2 processes"),
        ({"coordinator": "10.0.0.1", "processes": 2, "process": 0}, "coordinator 10.0.0.1 HOST:PORT"),
    ],
)
def test_flags_that_make_no_sense_are_named(fields, words):
    with pytest.raises(UserError, match=mentions(words)):
        Processes(**fields)


def test_one_process_is_alone(monkeypatch):
    """Also as the one task of a Slurm job, and where its libraries for TPUs are installed and there is none."""
    import jax

    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    Processes().connect()
    assert not jax.distributed.is_initialized()
    assert run_on_all(lambda: 3) == primary_first(lambda: 3) == check_agreed(3, "a number") == 3
    with pytest.raises(UserError, match="^as it is$"):
        run_on_all(lambda: (_ for _ in ()).throw(UserError("as it is")))


def meeting(surroundings: list[dict[str, str]], before: str = "") -> None:
    """Processes that find each other by the environment alone."""
    command = [sys.executable, "-c", before + _MEET]
    both = [
        subprocess.Popen(
            command, env=os.environ | variables, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for variables in surroundings
    ]
    outputs = finished(both)
    assert all("process 1: of one alone" in text for text in outputs), outputs


def test_processes_find_each_other_by_the_variables_of_slurm():
    """Two tasks of a step."""
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    slurm |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    meeting([slurm | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)])


@pytest.mark.parametrize("slices", [1, 2])
def test_processes_find_each_other_by_the_variables_of_gke(slices):
    """Two hosts of a slice, or of a slice each; their CPUs pass for TPUs."""
    gke = {"TPU_SKIP_MDS_QUERY": "true", "JAX_COORDINATOR_PORT": str(free_port())}
    gke |= {"TPU_WORKER_HOSTNAMES": ",".join(["localhost"] * (2 // slices)), "MEGASCALE_NUM_SLICES": str(slices)}
    gke |= {"MEGASCALE_COORDINATOR_ADDRESS": "localhost"}
    hosts = [{"MEGASCALE_SLICE_ID": str(i % slices), "TPU_WORKER_ID": str(i // slices)} for i in range(2)]
    meeting([gke | host for host in hosts], _ON_TPU)


def test_a_lone_host_of_gke_is_alone(monkeypatch):
    import jax

    for name, value in {
        "TPU_SKIP_MDS_QUERY": "true",
        "TPU_WORKER_ID": "0",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }.items():
        monkeypatch.setenv(name, value)
    Processes().connect()
    assert not jax.distributed.is_initialized()


_ON_TPU = """
from jax._src.clusters import cloud_tpu_cluster, cluster
cloud_tpu_cluster.running_in_cloud_tpu_vm = cluster.running_in_cloud_tpu_vm = True
"""
_MEET = """
from selfflow.errors import UserError
from selfflow.training.distributed import Processes, barrier, check_agreed, is_primary, run_on_all

Processes().connect()
assert check_agreed("alike", "what is alike") == "alike"
def work():
    if not is_primary():
        raise UserError("of one alone")
try:
    run_on_all(work)
except UserError as error:
    print(error)
barrier()
"""
