"""Meshes, placements, and that a run over many devices computes what it computes on one."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from selfflow.config.files import load_experiment
from selfflow.config.resolve import resolve
from selfflow.errors import UserError
from selfflow.training.sharding import (
    Devices,
    check_batch,
    device_bytes,
    pad_batch,
    shard_batch,
    sharding_table,
    state_shardings,
)
from tests.conftest import TINY, mentions

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "dtype, meshes",
    [
        ("float64", ("2x2x2",)),
        pytest.param("float64", ("8x1x1", "1x8x1", "4x1x2"), marks=pytest.mark.slow),
        pytest.param("float32", ("8x1x1", "1x8x1", "2x2x2", "4x1x2"), marks=pytest.mark.slow),
    ],
)
@pytest.mark.resilience
def test_five_steps_on_eight_devices_are_those_on_one(tmp_path, dtype, meshes):
    """Video with audio, Self-Flow, off its initial values; the last mesh with its tokens split too."""
    command = [sys.executable, "-m", "tests.training.spread", dtype, str(tmp_path / "errors.json"), *meshes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert set(errors) == set(meshes)
    for name, error in errors.items():
        # Not the parameters in float32: Adam turns the rounding of a gradient near zero into a step of full size.
        quantities = error if dtype == "float64" else ("loss", "gradient", "moments")
        for quantity in quantities:
            assert error[quantity] < (1e-9 if dtype == "float64" else 1e-5), (name, quantity)


def abstract_mesh(**sizes) -> AbstractMesh:
    return AbstractMesh(tuple(sizes.values()), tuple(sizes))


def test_ema_and_moments_are_sharded_as_their_parameters():
    setup = resolve(load_experiment(TINY.parents[1] / "experiments" / "quickstart.py"))
    objective, optimizer = setup.objective, setup.optimizer()
    shapes = jax.eval_shape(setup.init, jax.random.key(0))
    mesh = abstract_mesh(data=2, fsdp=2, tensor=2)
    layout = state_shardings(objective, optimizer, shapes, Devices(), mesh)
    assert layout.params["model"]["double"]["media"]["mlp_in"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert layout.params["model"]["double"]["media"]["mlp_out"]["kernel"].spec == PartitionSpec(None, "tensor", "fsdp")
    assert layout.frozen["ema"] == layout.params["model"]
    moments = layout.optimizer[1][0]
    assert moments.mu == moments.nu == layout.params and moments.count.spec == PartitionSpec()
    big = [x for x in jax.tree.leaves((shapes, layout)) if isinstance(x, jax.ShapeDtypeStruct)]
    whole = sum(x.size * x.dtype.itemsize for x in big)
    on_device = sum(device_bytes(x, s) for x, s in zip(jax.tree.leaves(shapes), jax.tree.leaves(layout), strict=True))
    assert whole / 4 < on_device < 0.35 * whole  # a quarter, and what has no axis to be split along
    table = sharding_table(shapes, layout, objective.logical_axes())
    assert "model.single.outputs.kernel" in table and "layers, mlp, embed" in table and "None, tensor, fsdp" in table
    assert "optimizer:" in table.splitlines()[-1]


def test_a_parameter_that_does_not_divide_is_named():
    setup = resolve(load_experiment(TINY.parents[1] / "experiments" / "quickstart.py"))
    with pytest.raises(UserError, match=r"model\.double\.media\.\w+\.kernel\b.*\b3\b.*\bdevices\.fsdp\b.*\bembed\b"):
        shapes = jax.eval_shape(setup.init, jax.random.key(0))
        mesh = abstract_mesh(data=1, fsdp=3, tensor=1)
        state_shardings(setup.objective, setup.optimizer(), shapes, Devices(), mesh)


@pytest.mark.parametrize(
    "fields, count, shape",
    [
        ({}, 8, (8, 1, 1)),
        ({"fsdp": -1, "data": 2}, 8, (2, 4, 1)),
        ({"data": 1, "fsdp": 4, "tensor": 2}, 8, (1, 4, 2)),
    ],
)
def test_the_rest_fills_the_mesh(fields, count, shape):
    assert tuple(Devices(**fields).shape(count).values()) == shape


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"fsdp": 3}, "devices fsdp 3 tensor 1 8"),
        ({"data": 2, "fsdp": 2}, "devices data 2 fsdp 2 8"),
        ({"rules": {"embd": "fsdp"}}, "devices.rules embd embed"),
        ({"data": 0}, "devices.data 0"),
        ({"fsdp": -1}, "devices data fsdp tensor -1"),
        ({"rules": {"embed": "model"}}, "devices.rules.embed model fsdp"),
    ],
)
def test_an_impossible_mesh_is_named(fields, words):
    with pytest.raises(UserError, match=mentions(words)):
        Devices(**fields).shape(8)


def test_a_batch_is_placed_and_filled():
    mesh = Devices().mesh(jax.devices()[:1])
    batch = {"latents": {"image": np.arange(12.0).reshape(3, 4)}, "weight": np.ones(3, np.float32)}
    layout = shard_batch(batch, mesh)
    np.testing.assert_array_equal(layout["latents"]["image"], batch["latents"]["image"])
    four = pad_batch(batch, abstract_mesh(data=2, fsdp=2, tensor=1))
    np.testing.assert_array_equal(four["weight"], [1, 1, 1, 0])
    np.testing.assert_array_equal(four["latents"]["image"][3], batch["latents"]["image"][2])
    assert len(pad_batch(batch, mesh)["weight"]) == 3
    with pytest.raises(UserError, match=mentions("mixture.image 3 4 devices.data devices.fsdp")):
        check_batch(abstract_mesh(data=2, fsdp=2, tensor=1), 3, "mixture.image")


def test_an_axis_that_is_split_twice_is_named():
    experiment = load_experiment(TINY)
    twice = dataclasses.replace(experiment, devices=Devices(rules={"embed": "fsdp", "heads": "fsdp", "mlp": "tensor"}))
    with pytest.raises(UserError, match=r"\bdevices\.rules\b.* model\.double\.media\.\w+\.kernel\b.*\btwice\b"):
        resolve(twice).shardings(abstract_mesh(data=1, fsdp=2, tensor=1))


def test_devices_may_change_in_a_run():
    from selfflow.config.files import diff, is_fixed

    old = load_experiment(TINY)
    new = dataclasses.replace(old, devices=Devices(data=1, fsdp=-1))
    assert diff(old, new) and not any(is_fixed(name) for name in diff(old, new))


class Far:
    """A device with a slice index."""

    platform, device_kind, process_index = "gpu", "far", 0

    def __init__(self, number: int, slice_index: int | None):
        self.id, self.slice_index = number, slice_index


@pytest.mark.parametrize("slice_of", [lambda i: None, lambda i: i // 4, lambda i: i % 2])
def test_slices_follow_each_other_along_data(slice_of):
    mesh = Devices(data=4, fsdp=2, slices=2).mesh([Far(i, slice_of(i)) for i in range(8)])
    assert mesh.shape == {"data": 4, "fsdp": 2, "tensor": 1}
    halves = [{device.id for device in half.flat} for half in (mesh.devices[:2], mesh.devices[2:])]
    # Without an index, the first half of the devices is the first slice.
    expected = [{i for i in range(8) if (slice_of(i) if slice_of(0) is not None else i // 4) == s} for s in (0, 1)]
    assert halves == expected


def test_slices_that_do_not_fit_are_named():
    with pytest.raises(UserError, match=mentions("devices.slices 3 devices.data 4 8")):
        Devices(fsdp=2, slices=3).shape(8)
    with pytest.raises(UserError, match=mentions("devices.slices 0")):
        Devices(slices=0)
    with pytest.raises(UserError, match=mentions("devices.slices 2 [2, 2, 2, 2]")):
        Devices(slices=2).mesh([Far(i, i // 2) for i in range(8)])
