"""Sweeps: the members that `sweep()` of an experiment file yields, and what makes many of them in a few lines.

    def sweep():
        none = [Member("none", {"alignment": NoAlignment()})]
        return seeds(chain(none, axis("alignment.weight", (0.2, 0.4))), range(1, 4))

has the members none_1, 0.2_1, 0.4_1, none_2 and so on; the first of its arms, none, is what the others are held
against. `chain` is that of itertools. Where something follows from the base, such as a half of its steps, it is
`sweep(base)`, which is given the file's experiment with the flags and the budget of the command line.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from selfflow.errors import UserError

__all__ = ["Budget", "Member", "axis", "chain", "product", "seeds", "zipped"]


class Member(NamedTuple):
    """One run of a sweep: what `sweep()` of an experiment file yields.

    Attributes:
      name: of its run folder, such as matched_0.
      overrides: fields by their dotted names, such as {"seed.init": 1, "alignment": NoAlignment()}.
      arm: what members that differ in their seeds alone share; empty means the name.
    """

    name: str
    overrides: dict[str, Any]
    arm: str = ""


@dataclass(frozen=True)
class Budget:
    """How long each member of a sweep is trained, in one of two measures; `BUDGET` of an experiment file is one."""

    steps: int | None = None
    """Updates of each member, but of those whose overrides have steps of their own."""
    flops: float | None = None
    """Model FLOPs of each member's training; one whose steps cost more has fewer."""

    def __post_init__(self):
        if self.steps is not None and self.flops is not None:
            raise UserError(
                f"budget has steps {self.steps} and flops {self.flops:g}: give one of them, and None for the other, as "
                "in --budget.flops None where the file has FLOPs"
            )
        if self.steps is not None and self.steps < 1:
            raise UserError(f"budget.steps is {self.steps}: it must be at least 1")
        if self.flops is not None and not 0 < self.flops < math.inf:
            raise UserError(f"budget.flops is {self.flops}: give a number above 0")

    def __bool__(self) -> bool:
        return self.steps is not None or self.flops is not None


def axis(field: str, values: Iterable[Any] | Mapping[str, Any]) -> list[Member]:
    """A member for each value of a field.

    Args:
      field: dotted name, such as "alignment.weight".
      values: numbers, strings, booleans or None, each of which names its member; or values of any kind by name.

    Raises:
      UserError: if a value needs a name.
    """
    if isinstance(values, Mapping):
        return [Member(name, {field: value}) for name, value in values.items()]
    members = []
    for value in values:
        if not isinstance(value, str | int | float | None):
            raise UserError(f"axis of {field}: give names to values like {value!r}: {{'NAME': VALUE}}")
        members.append(Member(str(value), {field: value}))
    return members


def product(*factors: Iterable[Member]) -> list[Member]:
    """Every pairing of members of the factors, the last factor changing fastest; names are joined by `_`.

    Raises:
      UserError: if two that are joined set the same field.
    """
    return [_joined(parts) for parts in itertools.product(*factors)]


def zipped(*factors: Iterable[Member]) -> list[Member]:
    """The first members of all factors joined, the second ones, and so on.

    Raises:
      UserError: if the factors are not equally long, or two that are joined set the same field.
    """
    lists = [list(factor) for factor in factors]
    if len({len(members) for members in lists}) > 1:
        told = " and ".join(f"{len(members)} ({', '.join(m.name for m in members)})" for members in lists)
        raise UserError(f"zipped() joins factors of {told} members: give all as many")
    return [_joined(parts) for parts in zip(*lists)]


def seeds(members: Iterable[Member], numbers: Iterable[int]) -> list[Member]:
    """Each member with each seed, as NAME_SEED: all members with the first seed, then with the next.

    Initial weights, order of the data and noise have the same seed, so that arms are paired by it.
    """
    members = list(members)
    return [
        _joined(
            (member, Member(str(seed), {f"seed.{purpose}": seed for purpose in ("init", "data", "noise")}))
        )._replace(arm=member.arm or member.name)
        for seed in numbers
        for member in members
    ]


def overlapping(one: Iterable[str], other: Iterable[str]) -> tuple[str, str] | None:
    """A field of each, by dotted names, of which one holds the other or is the other; None where none do."""
    pairs = itertools.product(one, other)
    return next(((a, b) for a, b in pairs if f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")), None)


def _joined(parts: tuple[Member, ...]) -> Member:
    for one, other in itertools.combinations(parts, 2):
        if found := overlapping(one.overrides, other.overrides):
            a, b = found
            raise UserError(f"{one.name} sets {a} and {other.name} sets {b}: they cannot be joined to one member")
    return Member(
        "_".join(part.name for part in parts),
        {field: value for part in parts for field, value in part.overrides.items()},
        "_".join(part.arm or part.name for part in parts),
    )
