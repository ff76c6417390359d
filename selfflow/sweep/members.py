"""Members of a sweep, and functions that combine them. An experiment file defines them in a function `sweep()`:

    def sweep():
        none = [Member("none", {"alignment": NoAlignment()})]
        return seeds(chain(none, axis("alignment.weight", (0.2, 0.4))), range(1, 4))

This sweep has the members none_1, 0.2_1, 0.4_1, none_2 and so on; the first arm, none, is the baseline. `chain` is
`itertools.chain`. A sweep that depends on the experiment, such as one with half of its steps, is a function
`sweep(base)`, where `base` is the file's experiment with the flags and the budget of the command line.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from selfflow.errors import UserError, check_at_least

__all__ = ["Budget", "Member", "axis", "chain", "product", "seeds", "zipped"]


class Member(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: name of the run folder, such as matched_0.
      overrides: values by dotted field name, such as {"seed.init": 1, "alignment": NoAlignment()}.
      arm: common name of members that differ only in their seeds; by default the member's name.
    """

    name: str
    overrides: dict[str, Any]
    arm: str = ""


@dataclass(frozen=True)
class Budget:
    """Length of each run of a sweep, in steps or in FLOPs. An experiment file defines it as `BUDGET`."""

    steps: int | None = None
    """Number of updates of each run, unless its overrides set steps."""
    flops: float | None = None
    """Model FLOPs of each run's training, which determine its number of steps."""

    def __post_init__(self):
        if self.steps is not None and self.flops is not None:
            raise UserError(
                f"budget has steps {self.steps} and flops {self.flops:g}: give one of them, and None for the other, as "
                "in --budget.flops None where the file has FLOPs"
            )
        check_at_least(self, "budget.", steps=1)
        if self.flops is not None and not 0 < self.flops < math.inf:
            raise UserError(f"budget.flops is {self.flops}: give a number above 0")

    def __bool__(self) -> bool:
        return self.steps is not None or self.flops is not None


def axis(field: str, values: Iterable[Any] | Mapping[str, Any]) -> list[Member]:
    """Returns a member for each value of a field.

    Args:
      field: dotted name of the field, such as "alignment.weight".
      values: numbers, strings, booleans or None, which also serve as names of the members; or a mapping from names to
        values of any type.

    Raises:
      UserError: if a value of another type has no name.
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
    """Returns the Cartesian product of the factors, with the last changing fastest; names are joined by `_`.

    Raises:
      UserError: if two members of a combination set the same field.
    """
    return [_joined(parts) for parts in itertools.product(*factors)]


def zipped(*factors: Iterable[Member]) -> list[Member]:
    """Joins the first members of all factors, the second members, and so on; names are joined by `_`.

    Raises:
      UserError: if the factors differ in length, or two members of a combination set the same field.
    """
    lists = [list(factor) for factor in factors]
    if len({len(members) for members in lists}) > 1:
        lengths = [f"{len(members)} ({', '.join(member.name for member in members)})" for members in lists]
        raise UserError(f"zipped() joins factors of {' and '.join(lengths)} members: give all the same number")
    return [_joined(parts) for parts in zip(*lists)]


def seeds(members: Iterable[Member], numbers: Iterable[int]) -> list[Member]:
    """Returns each member with each seed, named NAME_SEED: all members with the first seed, then with the next.

    Initial weights, data order and noise use the same seed, so that runs of different arms can be paired by seed.
    """
    members = list(members)
    seeded = []
    for seed in numbers:
        paired = Member(str(seed), {"seed.init": seed, "seed.data": seed, "seed.noise": seed})
        for member in members:
            seeded.append(_joined((member, paired))._replace(arm=member.arm or member.name))
    return seeded


def overlapping(one: Iterable[str], other: Iterable[str]) -> tuple[str, str] | None:
    """Returns the first pair of dotted field names, one from each list, that overlap; None if none do."""
    for a, b in itertools.product(one, other):
        if f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}."):
            return a, b
    return None


def _joined(parts: tuple[Member, ...]) -> Member:
    for one, other in itertools.combinations(parts, 2):
        pair = overlapping(one.overrides, other.overrides)
        if pair:
            raise UserError(
                f"{one.name} sets {pair[0]} and {other.name} sets {pair[1]}: they cannot be joined to one member"
            )
    overrides: dict[str, Any] = {}
    for part in parts:
        overrides |= part.overrides
    names, arms = [part.name for part in parts], [part.arm or part.name for part in parts]
    return Member("_".join(names), overrides, "_".join(arms))
