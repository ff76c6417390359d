"""Sweeps in experiment files: from what `sweep()` yields to the experiment of each member, as long as it may be."""

import dataclasses
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from selfflow.config.experiment import Experiment
from selfflow.config.files import diff, load_module
from selfflow.errors import UserError
from selfflow.planning.model_flops import flops_of, mean_flops, steps_within
from selfflow.serialization import from_json, to_json
from selfflow.sweep.members import Budget, Member, overlapping
from selfflow.training.seeds import Seeds

_TAKEN = ("lock", "sweep.json", "sweep.lock", "sweep.partial", "report", "probes")


class Planned(NamedTuple):
    """A member of a sweep and what becomes of it.

    Attributes:
      member: as the file yields it.
      experiment: with its overrides, and the steps that the budget allows.
      flops: model FLOPs of its whole training.
    """

    member: Member
    experiment: Experiment
    flops: float


@dataclass(frozen=True)
class Sweep:
    """All that an experiment file says of a comparison.

    Attributes:
      question: the file's docstring.
      budget: what each member may take; an empty one leaves the steps to the experiments.
      base: the experiment that the overrides are applied to.
      members: by name, in order.
    """

    question: str
    budget: Budget
    base: Experiment
    members: dict[str, Planned]


def budget_of(path: str | Path) -> Budget:
    """The `BUDGET` of an experiment file; an empty one where it has none."""
    budget = getattr(load_module(path), "BUDGET", Budget())
    if not isinstance(budget, Budget):
        raise UserError(f"{path}: BUDGET is {budget!r}, not a selfflow.sweep.members.Budget")
    return budget


def load_sweep(path: str | Path, base: Experiment, budget: Budget = Budget()) -> Sweep:
    """The sweep of an experiment file.

    Args:
      path: experiment file that defines `sweep()` or `sweep(base)`, which yields or returns `Member`s.
      base: what the overrides are applied to.
      budget: how long each member is trained; by default as long as its experiment says.

    Raises:
      UserError: naming the member and the field, if there is no sweep or one of its experiments makes no sense.
    """
    module = load_module(path)
    if not hasattr(module, "sweep"):
        raise UserError(f"{path} defines no function sweep(); train it with `selfflow train`")
    if budget.steps is not None:
        base = dataclasses.replace(base, steps=budget.steps)
    found: dict[str, Planned] = {}
    arms: dict[str, tuple[str, Experiment, list[tuple[int, float]]]] = {}
    for member in _members(path, module, base):
        where = f"{path}: sweep member {member.name}"
        if member.name in found:
            both = f"{found[member.name].member.overrides} and {member.overrides}"
            raise UserError(f"{where}: two members have this name, with {both}")
        if budget.flops is not None and "steps" in member.overrides:
            raise UserError(f"{where} sets steps, which follow from the FLOPs of the budget: leave out one of the two")
        experiment = overridden(base, member.overrides, where)
        try:
            resolved = experiment.resolved()
            arm, unseeded = member.arm or member.name, dataclasses.replace(experiment, seed=Seeds())
            first, settings, costs = arms.setdefault(arm, (member.name, unseeded, mean_flops(resolved)))
            if differing := list(diff(settings, unseeded)):
                raise UserError(f"it is of the arm {arm}, but differs from {first} in {differing[0]}: name another arm")
            if budget.flops is not None:
                experiment = dataclasses.replace(experiment, steps=steps_within(costs, budget.flops))
                experiment.resolved()
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        found[member.name] = Planned(member, experiment, flops_of(costs, experiment.steps))
    if not found:
        raise UserError(f"{path}: sweep() yields no member")
    return Sweep(module.__doc__ or "", budget, base, found)


def overridden(experiment: Experiment, overrides: dict[str, Any], where: str) -> Experiment:
    """The experiment with fields changed, each checked against its type.

    Args:
      experiment: what to change.
      overrides: new values by dotted name.
      where: what they belong to, for errors.
    """
    data = to_json(experiment)
    for name, value in overrides.items():
        *parents, last = name.split(".")
        place = data
        for depth, parent in enumerate(parents):
            if not isinstance(place, dict) or not isinstance(place.get(parent), dict):
                raise UserError(f"{where}: there is no field {'.'.join(parents[: depth + 1])} for {name} to be in")
            place = place[parent]
        place[last] = to_json(value)
    return from_json(data, Experiment, where)


def _members(path: str | Path, module: Any, base: Experiment) -> Iterator[Member]:
    try:
        members = list(module.sweep(base) if inspect.signature(module.sweep).parameters else module.sweep())
    except UserError as error:  # members that cannot be joined
        raise UserError(f"{path}: {error}") from error
    for member in members:
        if not isinstance(member, Member):
            raise UserError(f"{path}: sweep() yielded {member!r}, not a selfflow.sweep.members.Member")
        if not member.name or set(member.name) & set("/\\") or member.name.startswith("."):
            raise UserError(f"{path}: sweep member {member.name!r} is to be the name of a folder: leave / and . out")
        if member.name in _TAKEN or member.name.endswith(".log"):
            raise UserError(
                f"{path}: sweep member {member.name!r} is called as a file of the sweep's folder: rename it"
            )
        fields = list(member.overrides)
        for i, field in enumerate(fields):
            if found := overlapping([field], fields[:i]):
                raise UserError(
                    f"{path}: sweep member {member.name} sets {found[1]} and {found[0]}: one holds the other"
                )
        yield member
