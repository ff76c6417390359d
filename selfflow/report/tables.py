"""CSV files of a report."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from selfflow.report.curves import Panel
from selfflow.report.measures import Measure, is_exploratory, verdict
from selfflow.report.study import Study
from selfflow.storage.atomic import atomic_write

_TABLE = [
    *("group", "measure", "detail", "better"),
    *("arm", "n", "mean", "low", "high"),
    *("baseline", "paired_n", "difference", "difference_low", "difference_high", "p"),
    *("verdict", "exploratory"),
]
_SCORES = ["group", "measure", "detail", "arm", "seed", "run", "score"]
_CURVES = ["section", "panel", "arm", "kind", "axis", "x", "mean", "low", "high", "n"]


def write_tables(
    folder: Path,
    study: Study,
    measures: list[Measure],
    panels: dict[str, list[Panel]],
    differing: dict[str, dict[str, Any]],
) -> list[Path]:
    """Writes CSV files of means and differences, scores of each run, differing settings, and curves.

    Args:
      folder: output folder.
      study: the study.
      measures: measures, from `measures.measures`.
      panels: panels of curves by file name.
      differing: differing settings, from `settings.differences`.

    Returns:
      Paths of the files.
    """
    files = [
        _write(folder / "table.csv", _TABLE, _table(study, measures)),
        _write(folder / "scores.csv", _SCORES, _scores(study, measures)),
        _write(folder / "settings.csv", ["field", *study.arms], _settings(study, differing)),
    ]
    for name, panels_of_file in panels.items():
        files.append(_write(folder / f"{name}.csv", _CURVES, _curves(panels_of_file)))
    return files


def _table(study: Study, measures: list[Measure]) -> Iterable[Sequence]:
    """Yields one row for each measure and arm, and one for each reference value with its name in brackets."""
    for measure in measures:
        columns = [measure.group, measure.name, measure.detail, measure.better]
        for method in measure.methods:
            mean, difference = method.mean, method.difference
            # The columns from "baseline" to "p" are empty for the baseline itself.
            comparison = [""] * 6
            if difference is not None:
                comparison = [study.baseline, difference.n, difference.difference]
                comparison += [difference.low, difference.high, difference.p]
            row = [*columns, method.name, mean.n, mean.estimate, mean.low, mean.high, *comparison]
            yield [*row, verdict(measure, method), is_exploratory(method)]
        for name, value in measure.references.items():
            row = [*columns, f"({name})", "", value]
            yield row + [""] * (len(_TABLE) - len(row))


def _settings(study: Study, differing: dict[str, dict[str, Any]]) -> Iterable[Sequence]:
    """Yields one row for each differing field, with one column for each arm."""
    for name, values in differing.items():
        yield [name, *(values.get(arm) for arm in study.arms)]


def _scores(study: Study, measures: list[Measure]) -> Iterable[Sequence]:
    """Yields one row for each measure and run."""
    runs = {(member.arm, member.seed): member.name for member in study.done()}
    for measure in measures:
        for method in measure.methods:
            for seed, score in sorted(method.scores.items()):
                run = runs[method.name, seed]
                yield measure.group, measure.name, measure.detail, method.name, seed, run, score


def _curves(panels: list[Panel]) -> Iterable[Sequence]:
    """Yields one row for each point of a curve."""
    for panel in panels:
        for line in panel.lines:
            for point in line.points:
                yield panel.section, panel.title, line.arm, line.kind, panel.x, *point


def _write(path: Path, head: list[str], rows: Iterable[Sequence]) -> Path:
    """Writes a table with eight significant digits. Surrogates in undecodable file names become question marks."""
    with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for row in rows:
            writer.writerow([f"{value:.8g}" if isinstance(value, float) else value for value in row])
    return path
