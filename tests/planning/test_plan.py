"""Plans for slices of TPUs, which need libtpu and no TPU where they are compiled (`-m tpu`)."""

import dataclasses
import json
import sys
import time
from pathlib import Path

import jax
import pytest

from selfflow.cli.plan import main
from selfflow.config.experiment import Experiment
from selfflow.config.files import load_experiment
from selfflow.config.resolve import resolve
from selfflow.config.setup import FlowSetup
from selfflow.errors import UserError
from selfflow.models.joint_config import JointConfig
from selfflow.noise import DualTimestep
from selfflow.objectives.alignment import NoAlignment
from selfflow.planning import fit
from selfflow.planning.chips import CHIPS, chip_of, topologies_of
from selfflow.planning.compile import Compiled, Refused, _refusal, compile_step, slice_devices
from selfflow.planning.hlo import collectives
from selfflow.planning.plan import Memory, Plan, make_plan
from selfflow.training.sharding import Devices
from tests.conftest import mentions

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
# The cache of the tests takes a program for another machine, and cannot load it again on this one.
pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache entry")


def test_every_chip_has_its_figures_and_their_source():
    assert list(CHIPS) == ["v4", "v5e", "v5p", "v6e", "tpu7x"]
    for name, chip in CHIPS.items():
        assert chip_of(f"{name}:2x2") is chip and f"/tpu/docs/{name}" in chip.source
        # Bytes of memory take some milliseconds to read, and bytes from a neighbour longer than those of memory.
        assert 0.01 < chip.hbm_bytes / chip.hbm_bandwidth < 0.1
        assert chip.hbm_bandwidth > chip.ici_bandwidth > 5 * (chip.dcn_bandwidth or 0)
        assert all(
            name.count("x") == 1 + (chip.torus_axes == 3) for name in (t.split(":")[1] for t in topologies_of(name))
        )


def test_an_unknown_chip_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=mentions("v9:2x2 v9 v4:2x2x1 v5e:16x16")):
        slice_devices("v9:2x2")


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(UserError, match=mentions("libtpu pip selfflow[tpu]")):
        slice_devices("v5e:2x2")


@pytest.mark.parametrize(
    "message, used",
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 31.50G of 15.75G hbm. Exceeds ...", 31.5),
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries (27.50G) exceeds available HBM "
            "(15.75G).",
            28.5,  # and what the step is given
        ),
    ],
)
def test_a_refusal_of_the_compiler_is_read(message, used):
    found = _refusal(jax.errors.JaxRuntimeError(message), 2**30, 7.0)
    assert found == Refused(used * 2**30, 15.75 * 2**30, 7.0)


def test_another_error_of_the_compiler_is_raised_again():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        _refusal(jax.errors.JaxRuntimeError("INTERNAL: a bug"), 0, 1.0)


GB = 10**9


def refused(parameters: float, temporaries: float, **mesh: int) -> Plan:
    """The plan of a step that takes these GB of 16."""
    parts = (parameters, 2 * parameters, parameters, 0.0, temporaries, 0.0, 4 * parameters + temporaries, 16.0)
    memory = Memory(*(int(part * GB) for part in parts))
    return Plan("v5e:4x4", 16, 4, mesh, False, "image", memory, memory.total - memory.limit, 1.0, None)


@pytest.mark.parametrize(
    "plan, fitting, flags, compiled",
    [
        # Much state: over more devices, and not over so few that it cannot fit.
        (refused(6, 2, data=16, fsdp=1, tensor=1), lambda e: True, ["--devices.fsdp 2"], 1),
        (refused(20, 2, data=16, fsdp=1, tensor=1), lambda e: e.devices.fsdp >= 16, ["--devices.fsdp 16"], 2),
        # Much to keep for the backward pass: blocks are computed again, then parts of a batch come one after the other.
        (
            refused(1, 24, data=16, fsdp=1, tensor=1),
            lambda e: e.model.execution.remat == "block",
            ["--model.execution.remat block"],
            1,
        ),
        (
            refused(0.1, 60, data=4, fsdp=4, tensor=1),
            lambda e: e.optimizer.accumulate == 2,
            ["--devices.fsdp 16", "--model.execution.remat block", "--optimizer.accumulate 2"],
            1,
        ),
    ],
)
def test_the_nearest_setting_that_fits_is_found_in_few_compilations(
    tiny_experiment, monkeypatch, plan, fitting, flags, compiled
):
    setup = resolve(
        dataclasses.replace(
            tiny_experiment,
            mixture={"image": dataclasses.replace(tiny_experiment.mixture["image"], weight=1.0, batch_size=64)},
            schedule=DualTimestep(),
            devices=Devices(fsdp=plan.mesh["fsdp"]),
        )
    )
    tried = []

    def compile_step(candidate: FlowSetup, name: str, mesh) -> Compiled | Refused:
        tried.append(candidate)
        return Compiled("", 0, 0, 1.0) if fitting(candidate.experiment) else Refused(20 * GB, 16 * GB, 1.0)

    monkeypatch.setattr(fit, "compile_step", compile_step)
    monkeypatch.setattr(FlowSetup, "check_devices", lambda self, mesh: None)
    found, told = fit.nearest_fit(setup, "image", plan, lambda candidate: candidate.devices.shape(16))
    assert told == flags and found is tried[-1] and len(tried) == compiled


def test_where_nothing_fits_the_search_ends(tiny_experiment, monkeypatch):
    monkeypatch.setattr(fit, "compile_step", lambda *_: Refused(20 * GB, 16 * GB, 1.0))
    monkeypatch.setattr(FlowSetup, "check_devices", lambda self, mesh: None)
    shape = lambda candidate: candidate.devices.shape(16)
    assert fit.nearest_fit(resolve(tiny_experiment), "joint", refused(3, 9, data=16, fsdp=1, tensor=1), shape) is None


def small(experiment: Experiment, dtype: str = "bfloat16", **fields) -> FlowSetup:
    """One component, and few narrow blocks."""
    model = JointConfig(width=256, heads=4, double_blocks=1, single_blocks=3, rotary=(16, 16, 16, 16), dtype=dtype)
    mixture = {"image": dataclasses.replace(experiment.mixture["image"], weight=1.0, batch_size=16)}
    return resolve(
        dataclasses.replace(
            experiment, model=model, mixture=mixture, schedule=DualTimestep(), alignment=NoAlignment(), **fields
        )
    )


def planned(setup: FlowSetup, topology: str) -> Plan:
    devices = slice_devices(topology, setup.experiment.devices.slices)
    return make_plan(setup, topology, setup.experiment.devices.mesh(devices))


@pytest.mark.tpu
def test_a_small_step_is_planned_for_four_chips(capsys):
    pytest.importorskip("libtpu", reason="no libtpu: pip install 'selfflow[tpu]'")
    flags = ["--devices.fsdp", "2", "--mixture.joint.batch-size", "4"]
    main([str(EXPERIMENTS.parent / "tests" / "tiny.py"), "--topology", "v5e:2x2", "--json", *flags])
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] and plan["chips"] == 4 and plan["hosts"] == 1
    assert plan["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    memory = plan["memory"]
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=0.01)
    assert memory["ema"] < memory["parameters"] and memory["temporaries"] > 0
    bounds = plan["bounds"]
    assert sum(bounds["traffic"].values()) > 0 and not bounds["traffic_between_slices"]
    assert (
        0 < bounds["mfu"] <= 1
        and bounds["step_seconds"] > 0
        and {one["component"] for one in bounds["components"]} == {"joint", "image"}
    )


@pytest.mark.tpu
def test_parameters_are_cast_before_they_are_gathered(tiny_experiment):
    """In bfloat16 half the bytes of float32, where products of the latter are not rounded to bfloat16 anyway."""
    pytest.importorskip("libtpu", reason="no libtpu: pip install 'selfflow[tpu]'")
    devices, gathered = slice_devices("v5e:2x4"), {}
    for dtype, precision in (("bfloat16", None), ("float32", "highest")):
        setup = small(tiny_experiment, dtype, devices=Devices(data=1, fsdp=8))
        with jax.default_matmul_precision(precision):
            program = compile_step(setup, "image", setup.experiment.devices.mesh(devices))
        gathers = [one for one in collectives(program.text, 8) if one.kind == "all-gather"]
        gathered[dtype] = sum(one.bytes for one in gathers)
        name, size = ("bf16", 2) if dtype == "bfloat16" else ("f32", 4)
        assert sum(one.bytes for one in gathers if one.dtype == name) > 0.95 * gathered[dtype]
        # Layer by layer: no gather is larger than the widest layer of one block.
        assert max(one.bytes / one.count for one in gathers) <= 256 * (3 * 256 + 2 * 1024) * size
    assert 0.45 < gathered["bfloat16"] / gathered["float32"] < 0.6


@pytest.mark.tpu
def test_gradients_go_between_slices_and_little_else(tiny_experiment):
    pytest.importorskip("libtpu", reason="no libtpu: pip install 'selfflow[tpu]'")
    setup = small(tiny_experiment, devices=Devices(fsdp=4, slices=2))
    plan = planned(setup, "v5e:2x2")
    assert plan.chips == 8 and plan.mesh == {"data": 2, "fsdp": 4, "tensor": 1}
    between = sum(plan.bounds.traffic_between_slices.values())
    size = sum(x.size for x in jax.tree.leaves(jax.eval_shape(setup.init, jax.random.key(0)).params))
    # Every chip passes on its quarter of the gradient, in bfloat16 but for what no dense layer holds.
    assert 0.5 * size / 4 * 2 < between < 2.5 * size / 4 * 2
    assert plan.bounds.components[0].seconds["dcn"] == pytest.approx(between / CHIPS["v5e"].dcn_bandwidth)


@pytest.mark.tpu
@pytest.mark.slow
def test_the_joint_model_of_625m_fits_256_chips():
    pytest.importorskip("libtpu", reason="no libtpu: pip install 'selfflow[tpu]'")
    began = time.perf_counter()
    plan = planned(resolve(load_experiment(EXPERIMENTS / "joint_625m.py")), "v5e:16x16")
    assert plan.fits and plan.memory.total < 15.75 * 2**30 and plan.bounds.mfu > 0.8
    assert time.perf_counter() - began < 240
