"""Frozen trees belong to the objective: a second one, of another shape than the student, is sharded and kept by it."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from selfflow.errors import UserError
from selfflow.training.sharding import Devices, sharding_table, state_shardings
from selfflow.training.state import init_state
from selfflow.training.step import make_step
from tests.conftest import mentions
from tests.training.distillation import OPTIMIZER, Distillation

ROOT = Path(__file__).parents[2]


@pytest.mark.resilience
def test_steps_on_eight_devices_are_those_on_one(tmp_path):
    command = [sys.executable, "-m", "tests.training.distillation", str(tmp_path / "results.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["error"]) == {"params", "ema", "loss"} and max(results["error"].values()) < 1e-12
    assert results["reference_stays"] and results["reference_stays_sharded"]
    assert results["specs"]["first"] == str(PartitionSpec(None, "tensor"))
    assert results["specs"]["second"] == str(PartitionSpec("fsdp", None))


@pytest.fixture(scope="module")
def shapes():
    return jax.eval_shape(lambda key: init_state(Distillation(), OPTIMIZER, key), jax.random.key(0))


def mesh(**sizes) -> AbstractMesh:
    return AbstractMesh(tuple(sizes.values()), tuple(sizes))


def test_each_frozen_tree_has_its_own_axes(shapes):
    layout = state_shardings(Distillation(), OPTIMIZER, shapes, Devices(), mesh(data=1, fsdp=2, tensor=2))
    assert layout.frozen["ema"] == layout.params["model"]
    assert layout.frozen["reference"]["first"].spec == PartitionSpec(None, "tensor")
    assert layout.frozen["reference"]["scale"].spec == PartitionSpec(None)
    lines = sharding_table(shapes, layout, Distillation().logical_axes()).splitlines()
    assert [line.partition(":")[0] for line in lines[-4:]] == [
        "parameters",
        "frozen ema",
        "frozen reference",
        "optimizer",
    ]


def test_a_frozen_parameter_that_does_not_divide_is_named(shapes):
    """The student's 8 and 16 divide by 16 devices of `tensor`, the reference's 24 do not."""
    devices = Devices(rules={"mlp": "tensor"})
    with pytest.raises(UserError, match=mentions("reference.first (8, 24) devices.tensor")):
        state_shardings(Distillation(), OPTIMIZER, shapes, devices, mesh(data=1, fsdp=1, tensor=16))


def test_a_tree_that_is_never_updated_stays_and_the_ema_moves():
    state = init_state(Distillation(), OPTIMIZER, jax.random.key(0))
    batch = {"x": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)}
    step = jax.jit(make_step(Distillation(), OPTIMIZER, 0.9, 5))
    end, _ = step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, end.frozen["reference"], state.frozen["reference"])
    assert not np.array_equal(end.frozen["ema"]["first"], state.frozen["ema"]["first"])
    # What the reference is matters to the loss.
    other = state._replace(frozen=state.frozen | {"reference": jax.tree.map(np.negative, state.frozen["reference"])})
    assert step(state, batch)[1]["loss"] != step(other, batch)[1]["loss"]


def test_frozen_trees_start_from_a_key_of_their_own():
    """Independent of the keys that the trained parameters are split into."""
    state = init_state(Distillation(), OPTIMIZER, jax.random.key(0))
    split = jax.random.split(jax.random.key(0), 8)
    reference = np.asarray(state.frozen["reference"]["scale"])
    for key in (jax.random.key(0), *split):
        assert not np.array_equal(Distillation().init_frozen(state.params, key)["reference"]["scale"], reference)
