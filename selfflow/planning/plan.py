"""Requirements of a run on a slice of TPUs: memory, arithmetic and communication, and a lower bound of the step time.

The step is compiled for the slice and not executed. Times are lower bounds: each is the time that one resource needs at
full utilisation, and a step with perfect overlap takes the longest of them.
"""

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
from selfflow.planning.hlo import KINDS, Collective, collectives
from selfflow.planning.model_flops import model_flops, program_flops


@dataclass(frozen=True)
class Memory:
    """Bytes on one chip.

    Attributes:
      parameters, optimizer, ema, batch: the step's arguments, from their shardings.
      temporaries: temporaries of the compiled step, activations included; the missing amount if it does not fit.
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
      component: name of the component.
      share: share of the steps.
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
      traffic: bytes that a device receives in a step of the compiled component, by collective and type, within its
        slice.
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
      memory: memory of that component.
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
      setup: setup of the experiment.
      topology: topology of the devices of the mesh.
      mesh: the devices.
      every_component: compile a program for each component instead of only that with the most tokens.
    """
    experiment, chip = setup.experiment, chip_of(topology)
    heaviest = max(experiment.mixture, key=lambda name: _tokens(setup, name))
    names = list(experiment.mixture) if every_component else [heaviest]
    programs = {name: compile_step(setup, name, mesh) for name in names}
    # A chip may have several cores, each of which is a device. Coordinates are those within a slice.
    chips = len({(_slice_of(device), *device.coords) for device in mesh.devices.flat})
    hosts = len({(_slice_of(device), device.process_index) for device in mesh.devices.flat})
    cores = mesh.size // chips
    memory = {name: _memory(setup, name, mesh, program, chip, cores) for name, program in programs.items()}
    refused = [name for name, program in programs.items() if isinstance(program, Refused)]
    largest = max(refused or programs, key=lambda name: memory[name].total)
    bounds = None
    if not refused:
        slices = experiment.devices.slices
        transfers = {name: collectives(program.text, mesh.size // slices, slices) for name, program in programs.items()}
        components = []
        for name in experiment.mixture:
            # Traffic and state of a component that was not compiled: those of the compiled one.
            own = name if name in programs else heaviest
            seconds = _seconds(memory[own], name in programs, transfers[own], mesh, chip, cores)
            components.append(_component_plan(setup, name, name in programs, seconds, chips, chip))
        bounds = _bounds(experiment.steps, components, transfers[largest], chip.peak_flops * chips, hosts)
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


def _bounds(
    steps: int, components: list[ComponentPlan], transfers: list[Collective], peak: float, hosts: int
) -> Bounds:
    """Bounds of the mixture, from those of its components and the transfers of one of them.

    Args:
      steps: number of steps of the run.
      components: components of the mixture.
      transfers: transfers of the component that takes most memory.
      peak: operations per second of all chips.
      hosts: number of hosts.
    """

    def mean(value: Callable[[ComponentPlan], float]) -> float:
        return sum(component.share * value(component) for component in components)

    def unhidden(component: ComponentPlan) -> float:
        return max(component.seconds["compute"], component.seconds["hbm"]) + component.transfer_seconds

    step_seconds = mean(lambda component: component.step_seconds)
    by: dict[str, float] = defaultdict(float)  # seconds of the steps that a resource bounds
    for component in components:
        by[max(component.seconds, key=component.seconds.get)] += component.share * component.step_seconds
    rate = mean(lambda component: component.batch_bytes) / step_seconds
    return Bounds(
        components=components,
        traffic=_by_kind(transfers, False),
        traffic_between_slices=_by_kind(transfers, True),
        step_seconds=step_seconds,
        unhidden_seconds=mean(unhidden),
        mfu=mean(lambda component: component.model_flops) / peak / step_seconds,
        by=max(by, key=by.get),
        input_bytes_per_second=rate,
        input_bytes_per_second_of_a_host=rate / hosts,
        days=steps * step_seconds / 86400,
    )


def _tokens(setup: FlowSetup, name: str) -> float:
    """Tokens of a batch, with which activations scale; the attention kernel pads a part of them to blocks of 128."""
    count = sum(modality.tokens for modality in setup.modalities[name].values())
    return setup.experiment.mixture[name].batch_size * (count + (count + -count % 128 + 128) / 4)


def _memory(setup: FlowSetup, name: str, mesh: Mesh, program: Compiled | Refused, chip: Chip, cores: int) -> Memory:
    """Memory of a step on one chip, all of whose cores hold equal parts."""
    state, batch = setup.abstract_state(mesh), abstract_batch(setup, name, mesh)
    parameters = cores * bytes_on_device(state.params)
    optimizer = cores * bytes_on_device(state.optimizer)
    ema = cores * bytes_on_device(state.frozen)
    arguments = parameters + optimizer + ema + cores * bytes_on_device(batch)
    if isinstance(program, Refused):
        # The compiler reports the sum alone.
        temporaries, code = cores * int(program.used_bytes) - arguments, 0
        limit = cores * int(program.limit_bytes)
    else:
        temporaries, code = cores * program.temporary_bytes, program.program_bytes
        limit = int(chip.hbm_bytes)
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        ema=ema,
        batch=cores * bytes_on_device(batch),
        temporaries=temporaries,
        program=code,
        total=arguments + temporaries + code,
        limit=limit,
    )


def _seconds(
    memory: Memory, compiled: bool, transfers: list[Collective], mesh: Mesh, chip: Chip, cores: int
) -> dict[str, float]:
    """Time that the memory and the networks of a chip need for a step.

    Args:
      memory: memory of the step.
      compiled: whether it was compiled; if not, `memory` and `transfers` are of another component.
      transfers: transfers of one device.
      mesh: the devices.
      chip: kind of the chips.
      cores: devices of a chip.
    """
    # The whole state is read and written; activations for the backward pass are written and read.
    activations = memory.temporaries if compiled else 0
    between = cores * sum(transfer.bytes for transfer in transfers if transfer.between_slices)
    return {
        "hbm": 2 * (memory.parameters + memory.optimizer + memory.ema + activations) / chip.hbm_bandwidth,
        "ici": cores * max(_axis_bytes(transfers, mesh)) / (chip.ici_bandwidth / chip.torus_axes),
        "dcn": between / chip.dcn_bandwidth if chip.dcn_bandwidth else 0.0,
    }


def _component_plan(
    setup: FlowSetup, name: str, compiled: bool, seconds: dict[str, float], chips: int, chip: Chip
) -> ComponentPlan:
    """Returns the plan of a component, with the times of memory and networks from `_seconds`."""
    flops = program_flops(setup, name)
    seconds = {"compute": flops / chips / chip.peak_flops} | seconds
    batch_bytes = 0
    for x in jax.tree.leaves(batch_shapes(setup, name)):
        batch_bytes += x.size * x.dtype.itemsize
    return ComponentPlan(
        component=name,
        share=setup.experiment.mixture[name].weight,
        compiled=compiled,
        model_flops=model_flops(setup, name),
        flops=flops,
        seconds=seconds,
        step_seconds=max(seconds.values()),
        transfer_seconds=seconds["ici"] + seconds["dcn"],
        batch_bytes=batch_bytes,
    )


def _axis_bytes(transfers: list[Collective], mesh: Mesh) -> list[float]:
    """Bytes that a device receives along each axis of the torus; a group over several axes uses the links of all."""
    places = coordinates(mesh)
    load = np.zeros(places.shape[1])
    for collective in transfers:
        if collective.between_slices or not collective.groups:
            continue
        # Axes along which the members of a group differ.
        spanned = np.zeros(places.shape[1], bool)
        for group in collective.groups:
            spanned |= np.ptp(places[list(group)], axis=0) > 0
        if spanned.any():  # otherwise it stays within a chip
            load[spanned] += collective.bytes / spanned.sum()
    return load.tolist()


def _by_kind(transfers: list[Collective], between_slices: bool) -> dict[str, float]:
    """Bytes by kind and type, such as "all-gather bf16"."""
    totals: dict[str, float] = defaultdict(float)
    for collective in sorted(transfers, key=lambda collective: KINDS.index(collective.kind)):
        if collective.between_slices == between_slices:
            totals[f"{collective.kind} {collective.dtype}"] += collective.bytes
    return dict(totals)
