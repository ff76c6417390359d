"""The numbers of a report as CSV."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from selfflow.report.curves import Panel
from selfflow.report.measures import Measure, is_exploratory, verdict
from selfflow.report.study import Study
from selfflow.storage.atomic import atomic_write

_TABLE = (
    "group,measure,detail,better,arm,n,mean,low,high,baseline,paired_n,difference,difference_low,difference_high,p,"
    "verdict,exploratory"
).split(",")
_SCORES = ["group", "measure", "detail", "arm", "seed", "run", "score"]
_CURVES = ["section", "panel", "arm", "kind", "axis", "x", "mean", "low", "high", "n"]


def write_tables(
    folder: Path, study: Study, measures: list[Measure], panels: dict[str, list[Panel]], differing: dict[str, Any]
) -> list[Path]:
    """Writes means and differences, the scores behind them, the differing settings, and the curves.

    Args:
      folder: to write to.
      study: the runs.
      measures: from `measures.measures`.
      panels: curves by the name of their file.
      differing: from `settings.differences`.

    Returns:
      The files.
    """
    settings = [[name, *(values.get(arm) for arm in study.arms)] for name, values in differing.items()]
    files = [
        _write(folder / "table.csv", _TABLE, _table(study, measures)),
        _write(folder / "scores.csv", _SCORES, _scores(study, measures)),
        _write(folder / "settings.csv", ["field", *study.arms], settings),
    ]
    for name, panels_of_file in panels.items():
        files.append(_write(folder / f"{name}.csv", _CURVES, _curves(panels_of_file)))
    return files


def _table(study: Study, measures: list[Measure]) -> Iterable[Sequence]:
    for measure in measures:
        columns = (measure.group, measure.name, measure.detail, measure.better)
        for method in measure.methods:
            mean, difference = method.mean, method.difference
            compared = [""] * 6
            if difference is not None:
                interval = (difference.low, difference.high, difference.p)
                compared = [study.baseline, difference.n, difference.difference, *interval]
            yield (
                *columns,
                *(method.name, mean.n, mean.estimate, mean.low, mean.high),
                *compared,
                verdict(measure, method),
                is_exploratory(method),
            )
        for name, value in measure.references.items():
            yield *columns, f"({name})", "", value, *[""] * 10


def _scores(study: Study, measures: list[Measure]) -> Iterable[Sequence]:
    runs = {(member.arm, member.seed): member.name for member in study.done()}
    for measure in measures:
        for method in measure.methods:
            for seed, score in sorted(method.scores.items()):
                run = runs[method.name, seed]
                yield measure.group, measure.name, measure.detail, method.name, seed, run, score


def _curves(panels: list[Panel]) -> Iterable[Sequence]:
    for panel in panels:
        for line in panel.lines:
            for point in line.points:
                yield panel.section, panel.title, line.arm, line.kind, panel.x, *point


def _write(path: Path, head: list[str], rows: Iterable[Sequence]) -> Path:
    with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for row in rows:
            writer.writerow([f"{value:.8g}" if isinstance(value, float) else value for value in row])
    return path
