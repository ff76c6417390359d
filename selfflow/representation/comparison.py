"""Comparison of methods over training seeds, with intervals, and CSV files of probe rows."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from selfflow.errors import UserError
from selfflow.representation.probes.probe_run import Row
from selfflow.representation.statistics import Interval, Paired, interval, paired
from selfflow.storage.atomic import atomic_write


class Method(NamedTuple):
    """Scores of a method over its seeds, and its difference from the baseline.

    Attributes:
      name: name of the method.
      scores: test score by seed.
      mean: mean over seeds, with its t interval.
      difference: difference to the baseline, paired by seed; None for the baseline itself, or if they share no seed.
    """

    name: str
    scores: dict[int, float]
    mean: Interval
    difference: Paired | None

    def summary(self) -> str:
        """Formats the name, mean and difference as one line of a table."""
        difference = "" if self.difference is None else f"   difference {self.difference.summary()}"
        return f"{self.name:<20} {self.mean.summary()}{difference}"


def select_rows(rows: Iterable[Row], **fields: Any) -> list[Row]:
    """Returns the rows with these values, such as `target="material", source="video", split="test", tau=0.1`."""
    return [row for row in rows if all(getattr(row, name) == value for name, value in fields.items())]


def compare_methods(rows: Iterable[Row], baseline: str = "") -> list[Method]:
    """Compares methods by rows of one target and source, one row per run (see `best`).

    Args:
      rows: rows of all runs.
      baseline: method to compare the others with; by default the first.

    Raises:
      UserError: if a method has two runs of one seed, or the baseline is not one of them.
    """
    scores: dict[str, dict[int, float]] = {}
    for row in rows:
        by_seed = scores.setdefault(row.method, {})
        if row.seed in by_seed:
            raise UserError(f"{row.method}: two runs have seed.init {row.seed}: leave one out")
        by_seed[row.seed] = row.test
    baseline = baseline or next(iter(scores))
    if baseline not in scores:
        raise UserError(f"baseline is {baseline!r}, expected one of {', '.join(scores)}")
    return compare_to_baseline(scores, baseline)


def compare_to_baseline(scores: Mapping[str, Mapping[int, float]], baseline: str) -> list[Method]:
    """Compares methods with a baseline by their scores.

    Args:
      scores: scores by method and seed; finite.
      baseline: method to compare the others with; if it has no scores, no method has a difference.
    """
    against = scores.get(baseline, {})
    methods = []
    for name, own in scores.items():
        difference = None if name == baseline else _paired(against, own)
        methods.append(Method(name, dict(own), interval(own), difference))
    return methods


def interaction(methods: Iterable[Method], here: tuple[str, str], there: tuple[str, str]) -> Paired:
    """Computes the interaction (a - b) - (c - d) over seeds, with here = (a, b) and there = (c, d).

    Args:
      methods: methods from `compare_methods`.
      here, there: names of two methods each; seeds that all four have are paired.

    Raises:
      UserError: an unknown name, or no seed that all four have.
    """
    scores = {method.name: method.scores for method in methods}
    for name in (*here, *there):
        if name not in scores:
            raise UserError(f"interaction of {name!r}: no such method; choose from {', '.join(scores)}")

    def gain(a: str, b: str) -> dict[int, float]:
        return {seed: scores[a][seed] - scores[b][seed] for seed in scores[a].keys() & scores[b].keys()}

    # Pairing by seed cancels the variance that the four runs of a seed share.
    difference = _paired(gain(*there), gain(*here))
    if difference is None:
        raise UserError(f"interaction of {', '.join((*here, *there))}: they have no seed in common")
    return difference


def _paired(a: Mapping[int, float], b: Mapping[int, float]) -> Paired | None:
    """Compares scores over common seeds; None if there are none."""
    a_shared, b_shared = {}, {}
    for seed in sorted(a.keys() & b.keys()):
        a_shared[seed], b_shared[seed] = a[seed], b[seed]
    return paired(a_shared, b_shared) if a_shared else None


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        for row in rows:
            writer.writerow(_shown(value) for value in row)


def read_rows(path: Path) -> list[Row]:
    """Reads the rows that `write_rows` wrote.

    Raises:
      UserError: if the file is missing, or holds other data.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; `selfflow probe --csv {path}` writes it")
    kinds = Row.__annotations__
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        return [Row(*(kinds[name](line[name]) for name in Row._fields)) for line in lines]
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} holds no rows of `selfflow probe` ({error}): write it again with --csv") from error


def _shown(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
