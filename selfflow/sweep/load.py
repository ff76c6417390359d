"""Loading of sweeps from experiment files: the experiment and length of each run."""

import dataclasses
import inspect
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from selfflow.config.experiment import Experiment
from selfflow.config.files import diff, load_module
from selfflow.config.resolve import resolve
from selfflow.errors import UserError
from selfflow.planning.model_flops import StageCost, flops_of, mean_flops, steps_within
from selfflow.serialization import from_json, to_json
from selfflow.sweep.members import Budget, Member, overlapping
from selfflow.training.seeds import Seeds

# Names of files and folders in the folder of a sweep.
_RESERVED = ("lock", "sweep.json", "sweep.lock", "report", "probes")


class SweepRun(NamedTuple):
    """A run of a sweep.

    Attributes:
      member: member of the sweep, from the experiment file.
      experiment: experiment of the run, with overrides and the steps that the budget allows.
      flops: model FLOPs of the whole training.
    """

    member: Member
    experiment: Experiment
    flops: float


@dataclass(frozen=True)
class Sweep:
    """Sweep that an experiment file defines.

    Attributes:
      question: docstring of the file, which states the question of the study.
      budget: length of each run; with an empty budget it is the steps of its experiment.
      base: experiment that the overrides are applied to.
      runs: runs by name, in the order of the members.
    """

    question: str
    budget: Budget
    base: Experiment
    runs: dict[str, SweepRun]


class _Arm(NamedTuple):
    """Arm of a sweep: runs that differ only in their seeds.

    Attributes:
      first: name of the first run of the arm.
      settings: experiment of the runs, with default seeds.
      costs: model FLOPs of a step in each stage of the curriculum.
    """

    first: str
    settings: Experiment
    costs: list[StageCost]


def budget_of(path: str | Path) -> Budget:
    """Returns the `BUDGET` of an experiment file; an empty budget by default."""
    budget = getattr(load_module(path), "BUDGET", Budget())
    if not isinstance(budget, Budget):
        raise UserError(f"{path}: BUDGET is {budget!r}, not a selfflow.sweep.members.Budget")
    return budget


def load_sweep(path: str | Path, base: Experiment, budget: Budget = Budget()) -> Sweep:
    """Loads the sweep of an experiment file.

    Args:
      path: experiment file that defines `sweep()` or `sweep(base)`, which yields or returns `Member`s.
      base: experiment that the overrides are applied to.
      budget: length of each run; by default the steps of its experiment.

    Raises:
      UserError: naming the member and the field, if there is no sweep or one of its experiments is invalid.
    """
    module = load_module(path)
    if not hasattr(module, "sweep"):
        raise UserError(f"{path} defines no function sweep(); train it with `selfflow train`")
    if budget.steps is not None:
        base = dataclasses.replace(base, steps=budget.steps)
    runs: dict[str, SweepRun] = {}
    arms: dict[str, _Arm] = {}
    for member in _members(path, module, base):
        where = f"{path}: sweep member {member.name}"
        if member.name in runs:
            both = f"{runs[member.name].member.overrides} and {member.overrides}"
            raise UserError(f"{where}: two members have this name, with {both}")
        if budget.flops is not None and "steps" in member.overrides:
            raise UserError(f"{where} sets steps, which follow from the FLOPs of the budget: leave out one of the two")
        experiment = with_overrides(base, member.overrides, where)
        try:
            runs[member.name] = _run(member, experiment, budget, arms)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    if not runs:
        raise UserError(f"{path}: sweep() yields no member")
    return Sweep(module.__doc__ or "", budget, base, runs)


def _run(member: Member, experiment: Experiment, budget: Budget, arms: dict[str, _Arm]) -> SweepRun:
    """Checks the experiment of a run against its arm, and sets its steps from the budget."""
    setup = resolve(experiment)
    name, settings = member.arm or member.name, dataclasses.replace(experiment, seed=Seeds())
    if name not in arms:
        arms[name] = _Arm(member.name, settings, mean_flops(setup))
    arm = arms[name]
    differing = list(diff(arm.settings, settings))
    if differing:
        raise UserError(f"it is of the arm {name}, but differs from {arm.first} in {differing[0]}: name another arm")
    if budget.flops is not None:
        experiment = dataclasses.replace(experiment, steps=steps_within(arm.costs, budget.flops))
        resolve(experiment)  # checks the fields again, with the new length
    return SweepRun(member, experiment, flops_of(arm.costs, experiment.steps))


def with_overrides(experiment: Experiment, overrides: dict[str, Any], where: str) -> Experiment:
    """Returns an experiment with the values of some fields replaced.

    Args:
      experiment: the original experiment.
      overrides: new values by dotted field name.
      where: owner of the overrides, for errors.

    Raises:
      UserError: naming the field, if it does not exist or the value has another type.
    """
    data = to_json(experiment)
    for name, value in overrides.items():
        *parents, last = name.split(".")
        place = data
        for depth, parent in enumerate(parents):
            if not isinstance(place, dict) or not isinstance(place.get(parent), dict):
                raise UserError(f"{where}: unknown field {'.'.join(parents[: depth + 1])} in {name}")
            place = place[parent]
        place[last] = to_json(value)
    return from_json(data, Experiment, where)


def _members(path: str | Path, module: ModuleType, base: Experiment) -> list[Member]:
    """Returns the validated members that `sweep()` yields."""
    try:
        members = list(module.sweep(base) if inspect.signature(module.sweep).parameters else module.sweep())
    except UserError as error:  # such as members that cannot be joined
        raise UserError(f"{path}: {error}") from error
    for member in members:
        _check_member(path, member)
    return members


def _check_member(path: str | Path, member: Any) -> None:
    if not isinstance(member, Member):
        raise UserError(f"{path}: sweep() yielded {member!r}, not a selfflow.sweep.members.Member")
    if not member.name or set(member.name) & set("/\\") or member.name.startswith("."):
        raise UserError(f"{path}: sweep member {member.name!r} names a folder: leave / and a leading . out")
    if member.name in _RESERVED or member.name.endswith(".log"):
        raise UserError(f"{path}: sweep member {member.name!r} has the name of a file in the sweep's folder: rename it")
    fields = list(member.overrides)
    for i, field in enumerate(fields):
        # If one override contained another, the result would depend on their order.
        pair = overlapping([field], fields[:i])
        if pair:
            raise UserError(f"{path}: sweep member {member.name} sets {pair[1]} and {pair[0]}: one contains the other")
