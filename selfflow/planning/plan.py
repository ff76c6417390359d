"""Requirements of a run on a slice of TPUs: memory, arithmetic and communication, and a lower bound of the step time.

The step is compiled for the slice and not executed. Times are lower bounds: each is the time that one resource needs at
full utilisation, and a step with perfect overlap takes the longest of them.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from selfflow.config.setup import FlowSetup
from selfflow.planning.chips import Chip, chip_of
from selfflow.planning.compile import (
    Compiled,
    Refused,
    abstract_batch,
    batch_shapes,
    bytes_on_device,
    compile_step,
    coordinates,
)
from selfflow.planning.flops import matmul_flops
from selfflow.planning.hlo import KINDS, Collective, collectives
from selfflow.planning.model_flops import model_flops


@dataclass(frozen=True)
class Memory:
    """Bytes on one chip.

    Attributes:
      parameters, optimizer, ema, batch: the step's arguments, from their shardings.
      temporaries: of the compiled step, activations included; the missing amount if it does not fit.
      program: code of the step.
      total: sum of the above.
      limit: memory of the chip.
    """

    parameters: int
    optimizer: int
    ema: int
    batch: int
    temporaries: int
    program: int
    total: int
    limit: int


@dataclass(frozen=True)
class ComponentPlan:
    """A step on one component of the mixture.

    Attributes:
      component: its name.
      share: of the steps.
      compiled: whether its own step was compiled; otherwise the communication of the compiled one is used.
      model_flops: operations of the whole step, from its shapes.
      flops: operations of the program, recomputation included.
      seconds: time that each resource needs: `compute`, `hbm`, `ici`, `dcn`.
      step_seconds: the longest of them.
      transfer_seconds: sum of `ici` and `dcn`.
      batch_bytes: size of its batch.
    """

    component: str
    share: float
    compiled: bool
    model_flops: int
    flops: int
    seconds: dict[str, float]
    step_seconds: float
    transfer_seconds: float
    batch_bytes: int


@dataclass(frozen=True)
class Bounds:
    """Lower bounds of a step that fits.

    Attributes:
      components: each component of the mixture.
      traffic: bytes that a device receives in a step of the compiled set, by collective and type, within its slice.
      traffic_between_slices: the same over the network between slices.
      step_seconds: mean over the mixture.
      unhidden_seconds: the same without overlap of communication and arithmetic: the sum of both.
      mfu: the model's operations divided by those of the chips' peak in `step_seconds`.
      by: the resource that bounds most of that time.
      input_bytes_per_second: size of batches per second, for all hosts together and for each.
      days: duration of all steps.
    """

    components: list[ComponentPlan]
    traffic: dict[str, float]
    traffic_between_slices: dict[str, float]
    step_seconds: float
    unhidden_seconds: float
    mfu: float
    by: str
    input_bytes_per_second: float
    input_bytes_per_second_of_a_host: float
    days: float


@dataclass(frozen=True)
class Plan:
    """A run on one or more slices.

    Attributes:
      fits: whether the step fits into memory.
      component: the one that was compiled and takes most memory.
      memory: its memory.
      excess_bytes: memory above the limit of a chip; 0 if it fits.
      compile_seconds: duration of all compilations.
      bounds: None if it does not fit.
    """

    topology: str
    chips: int
    hosts: int
    mesh: dict[str, int]
    fits: bool
    component: str
    memory: Memory
    excess_bytes: int
    compile_seconds: float
    bounds: Bounds | None


def make_plan(setup: FlowSetup, topology: str, mesh: Mesh, every_component: bool = False) -> Plan:
    """Compiles the step and derives its requirements.

    Args:
      setup: of the experiment.
      topology: of the devices of the mesh.
      mesh: the devices.
      every_component: compile a program for each component, and not for the one with most tokens alone.
    """
    experiment, chip = setup.experiment, chip_of(topology)
    heaviest = max(experiment.mixture, key=lambda name: _tokens(setup, name))
    names = list(experiment.mixture) if every_component else [heaviest]
    programs = {name: compile_step(setup, name, mesh) for name in names}
    # A chip may have several cores, each of which is a device.
    chips = len({(_slice_of(device), *device.coords) for device in mesh.devices.flat})
    hosts = len({(_slice_of(device), device.process_index) for device in mesh.devices.flat})
    memory = {n: _memory(setup, n, mesh, program, chip, mesh.size // chips) for n, program in programs.items()}
    refused = [name for name, program in programs.items() if isinstance(program, Refused)]
    largest = max(refused or programs, key=lambda name: memory[name].total)
    bounds = None
    if not refused:
        slices = experiment.devices.slices
        sent = {name: collectives(program.text, mesh.size // slices, slices) for name, program in programs.items()}
        components = []
        for name in experiment.mixture:
            own = name if name in programs else heaviest
            components.append(_component_plan(setup, name, name in programs, memory[own], sent[own], mesh, chip, chips))
        bounds = _bounds(experiment.steps, components, sent[largest], chip.peak_flops * chips, hosts)
    return Plan(
        topology=topology,
        chips=chips,
        hosts=hosts,
        mesh=dict(mesh.shape),
        fits=not refused,
        component=largest,
        memory=memory[largest],
        excess_bytes=memory[largest].total - memory[largest].limit if refused else 0,
        compile_seconds=sum(program.seconds for program in programs.values()),
        bounds=bounds,
    )


def _slice_of(device: jax.Device) -> int:
    return getattr(device, "slice_index", 0)


def _bounds(steps: int, components: list[ComponentPlan], sent: list[Collective], peak: float, hosts: int) -> Bounds:
    """The mixture's, from those of its components and the traffic of one of them."""

    def mean(value: Callable[[ComponentPlan], float]) -> float:
        return sum(one.share * value(one) for one in components)

    step_seconds = mean(lambda one: one.step_seconds)
    by: dict[str, float] = defaultdict(float)
    for one in components:
        by[max(one.seconds, key=one.seconds.get)] += one.share * one.step_seconds
    rate = mean(lambda one: one.batch_bytes) / step_seconds
    return Bounds(
        components=components,
        traffic=_by_kind(sent, False),
        traffic_between_slices=_by_kind(sent, True),
        step_seconds=step_seconds,
        unhidden_seconds=mean(lambda one: max(one.seconds["compute"], one.seconds["hbm"]) + one.transfer_seconds),
        mfu=mean(lambda one: one.model_flops) / peak / step_seconds,
        by=max(by, key=by.get),
        input_bytes_per_second=rate,
        input_bytes_per_second_of_a_host=rate / hosts,
        days=steps * step_seconds / 86400,
    )


def _tokens(setup: FlowSetup, name: str) -> float:
    """Tokens of a batch, which activations scale with; the attention kernel pads a part of them to blocks of 128."""
    count = sum(modality.tokens for modality in setup.modalities[name].values())
    return setup.experiment.mixture[name].batch_size * (count + (count + -count % 128 + 128) / 4)


def _memory(setup: FlowSetup, name: str, mesh: Mesh, program: Compiled | Refused, chip: Chip, cores: int) -> Memory:
    state, batch = setup.abstract_state(mesh), abstract_batch(setup, name, mesh)
    parts = [cores * bytes_on_device(part) for part in (state.params, state.optimizer, state.frozen, batch)]
    if isinstance(program, Refused):
        rest, code, limit = cores * int(program.used_bytes) - sum(parts), 0, cores * int(program.limit_bytes)
    else:
        rest, code, limit = cores * program.temporary_bytes, program.program_bytes, int(chip.hbm_bytes)
    return Memory(*parts, rest, code, sum(parts) + rest + code, limit)


def _component_plan(
    setup: FlowSetup,
    name: str,
    compiled: bool,
    memory: Memory,
    sent: list[Collective],
    mesh: Mesh,
    chip: Chip,
    chips: int,
) -> ComponentPlan:
    cores = mesh.size // chips
    demanded, done = model_flops(setup, name), _program_flops(setup, name)
    # The whole state is read and written; activations for the backward pass are written and read.
    kept = memory.temporaries if compiled else 0
    between = cores * sum(one.bytes for one in sent if one.between_slices)
    seconds = {
        "compute": done / chips / chip.peak_flops,
        "hbm": 2 * (memory.parameters + memory.optimizer + memory.ema + kept) / chip.hbm_bandwidth,
        "ici": cores * max(_axis_bytes(sent, mesh)) / (chip.ici_bandwidth / chip.torus_axes),
        "dcn": between / chip.dcn_bandwidth if chip.dcn_bandwidth else 0.0,
    }
    batch = batch_shapes(setup, name)
    batch_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch))
    longest, transfer = max(seconds.values()), seconds["ici"] + seconds["dcn"]
    return ComponentPlan(
        name, setup.experiment.mixture[name].weight, compiled, demanded, done, seconds, longest, transfer, batch_bytes
    )


def _program_flops(setup: FlowSetup, name: str) -> int:
    """Operations with recomputation. Kernels hide their products from the count, so it uses plain attention."""
    model = setup.experiment.model
    plain = dataclasses.replace(model.execution, attention="xla", unroll=1)
    objective = dataclasses.replace(setup.objective, model=dataclasses.replace(model, execution=plain))
    setup = dataclasses.replace(setup, objective=objective)
    state = jax.eval_shape(setup.init, jax.random.key(0))
    return matmul_flops(setup.step(), state, batch_shapes(setup, name))


def _axis_bytes(sent: list[Collective], mesh: Mesh) -> list[float]:
    """Bytes that a device receives along each axis of the torus; a group over several axes uses the links of all."""
    places = coordinates(mesh)
    load = np.zeros(places.shape[1])
    for collective in sent:
        if collective.between_slices or not collective.groups:
            continue
        spanned = np.zeros(places.shape[1], bool)
        for group in collective.groups:
            spanned |= np.ptp(places[list(group)], axis=0) > 0
        if spanned.any():  # otherwise it stays within a chip
            load[spanned] += collective.bytes / spanned.sum()
    return load.tolist()


def _by_kind(sent: list[Collective], between_slices: bool) -> dict[str, float]:
    """Bytes by kind and type, such as "all-gather bf16"."""
    totals: dict[str, float] = defaultdict(float)
    for collective in sorted(sent, key=lambda collective: KINDS.index(collective.kind)):
        if collective.between_slices == between_slices:
            totals[f"{collective.kind} {collective.dtype}"] += collective.bytes
    return dict(totals)
