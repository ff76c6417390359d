"""Plan of a run on a slice of TPUs: memory, arithmetic, communication, and a lower bound of the step time.

The step is compiled for the slice, but not executed. Times are lower bounds: each is the time of one resource at full
utilisation, and a step with perfect overlap takes the maximum of these times.
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
    """Memory of a step on one chip, in bytes.

    Attributes:
      parameters: trained parameters.
      optimizer: state of the optimizer.
      ema: frozen trees, such as the EMA.
      batch: batch of the step.
      temporaries: temporaries of the compiled step, including activations; if the step does not fit, the memory that
        it requires in addition to its arguments.
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
    """Plan of the step on one component of the mixture.

    Attributes:
      component: name of the component.
      share: share of the component in the steps.
      compiled: whether the step of this component was compiled; otherwise the communication of the compiled component
        is used.
      model_flops: operations of the step on all chips, from the shapes of the model.
      flops: operations of the program on all chips, including recomputation.
      seconds: minimum time by resource: `compute`, `hbm`, `ici` and `dcn`.
      step_seconds: maximum of these times.
      transfer_seconds: sum of `ici` and `dcn`.
      batch_bytes: size of the batch.
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
    """Lower bounds of the time of a step that fits, and the corresponding rates.

    Attributes:
      components: plans of the components of the mixture.
      traffic: bytes that a device receives within its slice in a step of the compiled component, by collective and
        dtype.
      traffic_between_slices: bytes that a device receives over the network between slices, in the same form.
      step_seconds: minimum time of a step, mean over the mixture.
      unhidden_seconds: minimum time of a step without overlap of communication and arithmetic.
      mfu: model FLOPs utilisation at `step_seconds`.
      by: resource that bounds the largest part of `step_seconds`.
      input_bytes_per_second: rate at which batches are consumed, in total.
      input_bytes_per_second_of_a_host: the same rate for each host.
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
    """Plan of a run on one or more slices.

    Attributes:
      topology: chip and shape of a slice.
      chips: number of chips.
      hosts: number of hosts.
      mesh: sizes of the mesh axes.
      fits: whether the step fits into memory.
      component: compiled component with the largest memory.
      memory: memory of the step on that component.
      excess_bytes: memory above the limit of a chip; 0 if the step fits.
      compile_seconds: duration of all compilations.
      bounds: lower bounds of the step time; None if the step does not fit.
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
    """Compiles the training step and computes its memory and minimum time.

    Args:
      setup: setup of the experiment.
      topology: topology of the devices.
      mesh: mesh of devices.
      every_component: compile the step of each component instead of only the one with the most tokens.
    """
    experiment, chip = setup.experiment, chip_of(topology)
    heaviest = max(experiment.mixture, key=lambda name: _tokens(setup, name))
    names = list(experiment.mixture) if every_component else [heaviest]
    programs = {name: compile_step(setup, name, mesh) for name in names}
    # A chip may have several cores, each of which is a device. Coordinates are unique within a slice.
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
            # A component that was not compiled uses the communication and state of the heaviest one.
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
    """Combines the plans of all components into bounds of the mixture.

    Args:
      steps: number of steps of the run.
      components: plans of the components of the mixture.
      transfers: transfers of the component with the largest memory.
      peak: operations per second of all chips.
      hosts: number of hosts.
    """

    def mean(value: Callable[[ComponentPlan], float]) -> float:
        return sum(component.share * value(component) for component in components)

    def unhidden(component: ComponentPlan) -> float:
        return max(component.seconds["compute"], component.seconds["hbm"]) + component.transfer_seconds

    step_seconds = mean(lambda component: component.step_seconds)
    by: dict[str, float] = defaultdict(float)  # step time that is bounded by each resource
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
    """Estimates the memory of activations by the tokens of a batch, partly padded to the kernel's blocks of 128."""
    count = sum(modality.tokens for modality in setup.modalities[name].values())
    return setup.experiment.mixture[name].batch_size * (count + (count + -count % 128 + 128) / 4)


def _memory(setup: FlowSetup, name: str, mesh: Mesh, program: Compiled | Refused, chip: Chip, cores: int) -> Memory:
    """Returns the memory of a step on one chip; all of its cores hold equal parts."""
    state, batch = setup.abstract_state(mesh), abstract_batch(setup, name, mesh)
    parameters = cores * bytes_on_device(state.params)
    optimizer = cores * bytes_on_device(state.optimizer)
    ema = cores * bytes_on_device(state.frozen)
    batch_bytes = cores * bytes_on_device(batch)
    arguments = parameters + optimizer + ema + batch_bytes
    if isinstance(program, Refused):
        # The compiler reports only the total.
        temporaries, code = cores * int(program.used_bytes) - arguments, 0
        limit = cores * int(program.limit_bytes)
    else:
        temporaries, code = cores * program.temporary_bytes, program.program_bytes
        limit = int(chip.hbm_bytes)
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        ema=ema,
        batch=batch_bytes,
        temporaries=temporaries,
        program=code,
        total=arguments + temporaries + code,
        limit=limit,
    )


def _seconds(
    memory: Memory, compiled: bool, transfers: list[Collective], mesh: Mesh, chip: Chip, cores: int
) -> dict[str, float]:
    """Returns the minimum times of a step for the memory and the networks of a chip.

    Args:
      memory: memory of the step.
      compiled: whether the step was compiled; otherwise `memory` and `transfers` are those of another component.
      transfers: transfers of one device.
      mesh: mesh of devices.
      chip: specifications of the chips.
      cores: number of devices of a chip.
    """
    # The whole state is read and written once. Activations are written, and read by the backward pass.
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
    """Returns the plan of a component; `seconds` are the times of memory and networks from `_seconds`."""
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
    """Returns the bytes that a device receives along each torus axis; groups over several axes use all their links."""
    places = coordinates(mesh)
    load = np.zeros(places.shape[1])
    for collective in transfers:
        if collective.between_slices or not collective.groups:
            continue
        # Axes along which the members of a group have different coordinates.
        spanned = np.zeros(places.shape[1], bool)
        for group in collective.groups:
            spanned |= np.ptp(places[list(group)], axis=0) > 0
        if spanned.any():  # otherwise the transfer is within a chip
            load[spanned] += collective.bytes / spanned.sum()
    return load.tolist()


def _by_kind(transfers: list[Collective], between_slices: bool) -> dict[str, float]:
    """Returns the bytes by kind and dtype, such as "all-gather bf16"."""
    totals: dict[str, float] = defaultdict(float)
    for collective in sorted(transfers, key=lambda collective: KINDS.index(collective.kind)):
        if collective.between_slices == between_slices:
            totals[f"{collective.kind} {collective.dtype}"] += collective.bytes
    return dict(totals)
