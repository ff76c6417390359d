"""The nearest setting that fits into memory, found by compilation."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jax.sharding import Mesh

from selfflow.config.experiment import Experiment
from selfflow.config.resolve import resolve
from selfflow.config.setup import FlowSetup
from selfflow.errors import UserError
from selfflow.planning.compile import Refused, compile_step
from selfflow.planning.plan import Plan

_ATTEMPTS = 5  # compilations
# Approximate share of activations that remains with rematerialisation, and the factor above the limit from which an
# estimate excludes a candidate without compiling it. Both affect the time of the search, not whether a candidate fits.
_REMAT_SHARE, _EXCLUDED_ABOVE = 0.35, 1.3


@dataclass(frozen=True)
class _Change:
    """Rematerialisation, and factors: of mesh axes, of the parts of a batch, and by which batches become smaller."""

    fsdp: int = 1
    remat: bool = False
    accumulate: int = 1
    tensor: int = 1
    batch: int = 1


def nearest_fit(
    setup: FlowSetup, name: str, plan: Plan, make_mesh: Callable[[Experiment], Mesh]
) -> tuple[FlowSetup, list[str]] | None:
    """Tries changes in the order of their cost until one fits, with a few compilations at most.

    Sharding parameters over more devices costs communication, rematerialisation a quarter more arithmetic, accumulation
    some idle time; a smaller batch, the last resort, changes the training itself.

    Args:
      setup: setup of the experiment that does not fit.
      name: the component that does not.
      plan: plan of that component.
      make_mesh: the mesh of an experiment over the slice.

    Returns:
      The setup that fits and the flags that give it; None if no candidate fits.
    """
    experiment, memory, attempts = setup.experiment, plan.memory, 0
    state = memory.parameters + memory.optimizer + memory.ema
    for change in _changes(plan.mesh["data"] // experiment.devices.slices, experiment):
        # Parameters and optimizer are sharded over more devices; activations scale with the samples of one pass.
        share = _REMAT_SHARE if change.remat and experiment.model.execution.remat != "block" else 1.0
        parts = change.accumulate * change.batch
        expected = state / change.fsdp / change.tensor + (memory.total - state) * share / parts
        if expected > _EXCLUDED_ABOVE * memory.limit:
            continue
        try:
            candidate = resolve(_apply(experiment, plan, change))
            mesh = make_mesh(candidate.experiment)
            candidate.check_devices(mesh)
        except UserError:
            continue  # no such mesh, or the batch cannot be sharded over it
        if attempts == _ATTEMPTS:
            return None
        attempts += 1
        if not isinstance(compile_step(candidate, name, mesh), Refused):
            return candidate, _flags(experiment, candidate.experiment)
    return None


def _changes(copies: int, experiment: Experiment) -> Iterator[_Change]:
    """Changes from the cheapest to the most expensive; a slice holds `copies` of the parameters."""
    wider = [2**i for i in range(1, 12) if copies % 2**i == 0]
    most = max(wider, default=1)
    for factor in wider:
        yield _Change(fsdp=factor)
    if experiment.model.execution.remat != "block":
        for factor in (1, *wider):
            yield _Change(fsdp=factor, remat=True)
    for parts in (2, 4, 8, 16):
        yield _Change(most, remat=True, accumulate=parts)
    for parts in (2, 4, 8):  # the devices of the tensor axis are taken from the fsdp axis
        yield _Change(max(most // parts, 1), remat=True, tensor=parts)
    for parts in (2, 4, 8, 16, 32):
        yield _Change(most, remat=True, batch=parts)


def _apply(experiment: Experiment, plan: Plan, change: _Change) -> Experiment:
    devices, optimizer, model = experiment.devices, experiment.optimizer, experiment.model
    if change.fsdp * change.tensor > 1:
        fsdp, tensor = plan.mesh["fsdp"] * change.fsdp, plan.mesh["tensor"] * change.tensor
        devices = dataclasses.replace(devices, data=-1, fsdp=fsdp, tensor=tensor)  # -1: the remaining devices
    if change.remat:
        model = dataclasses.replace(model, execution=dataclasses.replace(model.execution, remat="block"))
    optimizer = dataclasses.replace(optimizer, accumulate=optimizer.accumulate * change.accumulate)
    mixture = {}
    for name, component in experiment.mixture.items():
        mixture[name] = dataclasses.replace(component, batch_size=component.batch_size // change.batch)
    return dataclasses.replace(experiment, devices=devices, optimizer=optimizer, model=model, mixture=mixture)


def _flags(before: Experiment, after: Experiment) -> list[str]:
    """Returns the flags that turn one experiment into the other."""
    fields = {}
    for axis in ("data", "fsdp", "tensor"):
        fields[f"devices.{axis}"] = getattr(before.devices, axis), getattr(after.devices, axis)
    fields["model.execution.remat"] = before.model.execution.remat, after.model.execution.remat
    fields["optimizer.accumulate"] = before.optimizer.accumulate, after.optimizer.accumulate
    for name, component in before.mixture.items():
        fields[f"mixture.{name}.batch-size"] = component.batch_size, after.mixture[name].batch_size
    return [f"--{name} {new}" for name, (old, new) in fields.items() if old != new]
