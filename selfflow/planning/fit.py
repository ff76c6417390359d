"""Search for a setting that fits into memory, by compilation of candidates."""

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

_ATTEMPTS = 5  # maximum number of compilations
# Approximate share of activation memory that remains with rematerialisation, and the ratio of estimated memory to the
# limit above which a candidate is excluded without compilation. Both affect only the duration of the search.
_REMAT_SHARE, _EXCLUDED_ABOVE = 0.35, 1.3


@dataclass(frozen=True)
class _Change:
    """Change of an experiment that reduces its memory.

    Attributes:
      fsdp: factor of the fsdp axis.
      remat: whether blocks are rematerialised.
      accumulate: factor of the number of gradient accumulation parts.
      tensor: factor of the tensor axis.
      batch: divisor of the batch sizes.
    """

    fsdp: int = 1
    remat: bool = False
    accumulate: int = 1
    tensor: int = 1
    batch: int = 1


def nearest_fit(
    setup: FlowSetup, name: str, plan: Plan, make_mesh: Callable[[Experiment], Mesh]
) -> tuple[FlowSetup, list[str]] | None:
    """Tries changes in the order of their cost until one fits, with at most `_ATTEMPTS` compilations.

    Sharding parameters over more devices costs communication, rematerialisation about a quarter more arithmetic, and
    gradient accumulation some idle time. A smaller batch comes last, because it changes the training.

    Args:
      setup: setup of the experiment that does not fit.
      name: name of the component that does not fit.
      plan: plan with the memory of that component.
      make_mesh: function that returns the mesh of an experiment on the slice.

    Returns:
      The setup that fits and the corresponding flags; None if no candidate fits.
    """
    experiment, memory, attempts = setup.experiment, plan.memory, 0
    state = memory.parameters + memory.optimizer + memory.ema
    for change in _changes(plan.mesh["data"] // experiment.devices.slices, experiment):
        # The state is divided by the factors of the mesh axes; activations are proportional to the samples of a pass.
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
            continue  # invalid mesh, or the batch cannot be sharded over it
        if attempts == _ATTEMPTS:
            return None
        attempts += 1
        if not isinstance(compile_step(candidate, name, mesh), Refused):
            return candidate, _flags(experiment, candidate.experiment)
    return None


def _changes(copies: int, experiment: Experiment) -> Iterator[_Change]:
    """Yields changes from the cheapest to the most expensive; a slice has `copies` copies of the parameters."""
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
    """Returns the flags that change the experiment `before` into `after`."""
    fields = {}
    for axis in ("data", "fsdp", "tensor"):
        fields[f"devices.{axis}"] = getattr(before.devices, axis), getattr(after.devices, axis)
    fields["model.execution.remat"] = before.model.execution.remat, after.model.execution.remat
    fields["optimizer.accumulate"] = before.optimizer.accumulate, after.optimizer.accumulate
    for name, component in before.mixture.items():
        fields[f"mixture.{name}.batch-size"] = component.batch_size, after.mixture[name].batch_size
    return [f"--{name} {new}" for name, (old, new) in fields.items() if old != new]
