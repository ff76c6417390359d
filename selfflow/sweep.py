"""Sweeps: the members of a comparison, each the experiment of one file with some fields changed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from selfflow.errors import UserError
from selfflow.experiment import Experiment
from selfflow.experiment_file import load_module
from selfflow.tree import from_json, to_json


class Member(NamedTuple):
    """One run of a sweep: what `sweep()` of an experiment file yields.

    Attributes:
      name: of its run folder, such as matched_0.
      overrides: fields by their dotted names, such as {"seed.init": 1, "alignment": NoAlignment()}.
    """

    name: str
    overrides: dict[str, Any]


def load_sweep(path: str | Path, base: Experiment) -> dict[str, Experiment]:
    """The experiments of a sweep by their names, in order.

    Args:
      path: experiment file that defines `sweep()`, a generator of `Member`s.
      base: what the overrides are applied to.

    Raises:
      UserError: naming the member and the field, if there is no sweep or one of its experiments makes no sense.
    """
    module = load_module(path)
    if not hasattr(module, "sweep"):
        raise UserError(f"{path} defines no function sweep(); train it with `selfflow train`")
    found: dict[str, Experiment] = {}
    for member in _members(path, module.sweep()):
        where = f"{path}: sweep member {member.name}"
        if member.name in found:
            raise UserError(f"{where}: two members have this name")
        found[member.name] = overridden(base, member.overrides, where)
        try:
            found[member.name].resolved()
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    if not found:
        raise UserError(f"{path}: sweep() yields no member")
    return found


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


def _members(path: str | Path, members: Iterator[Any]) -> Iterator[Member]:
    for member in members:
        if not isinstance(member, Member):
            raise UserError(f"{path}: sweep() yielded {member!r}, not a selfflow.sweep.Member")
        if not member.name or set(member.name) & set("/\\") or member.name.startswith("."):
            raise UserError(f"{path}: sweep member {member.name!r} is to be the name of a folder: leave / and . out")
        yield member
