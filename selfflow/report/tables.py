"""The figures of a report as CSV."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from selfflow.report.curves import Panel
from selfflow.report.measures import Measure, exploratory, verdict
from selfflow.report.study import Study
from selfflow.storage.atomic import atomic_write


def write_tables(
    folder: Path, study: Study, measures: list[Measure], panels: dict[str, list[Panel]], differing: dict[str, Any]
) -> list[Path]:
    """Writes the table, the scores that it is made of, the settings, and the curves; returns the files.

    Args:
      folder: where to.
      study: the runs.
      measures: as `measures.measures` gives them.
      panels: curves by the name of their file.
      differing: as `settings.differences` gives them.
    """
    files = [
        _write(
            folder / "table.csv",
            "group,measure,detail,better,arm,n,mean,low,high,baseline,paired_n,difference,difference_low,"
            "difference_high,p,verdict,exploratory",
            _table(study, measures),
        ),
        _write(
            folder / "scores.csv",
            "group,measure,detail,arm,seed,run,score",
            (
                (m.group, m.name, m.detail, method.name, seed, _run(study, method.name, seed), score)
                for m in measures
                for method in m.methods
                for seed, score in sorted(method.scores.items())
            ),
        ),
        _write(
            folder / "settings.csv",
            ["field", *study.arms],
            ((name, *(values.get(arm) for arm in study.arms)) for name, values in differing.items()),
        ),
    ]
    for name, some in panels.items():
        rows = (
            (panel.section, panel.title, line.arm, line.kind, panel.x, *point)
            for panel in some
            for line in panel.lines
            for point in line.points
        )
        files.append(_write(folder / f"{name}.csv", "section,panel,arm,kind,axis,x,mean,low,high,n", rows))
    return files


def _table(study: Study, measures: list[Measure]) -> Iterable[tuple]:
    for m in measures:
        for method in m.methods:
            mean, d = method.mean, method.difference
            about = (m.group, m.name, m.detail, m.better, method.name, mean.n, mean.estimate, mean.low, mean.high)
            held = ("", "", "", "", "", "") if d is None else (study.baseline, d.n, d.difference, d.low, d.high, d.p)
            yield *about, *held, verdict(m, method), exploratory(method)
        for name, value in m.beside.items():
            yield m.group, m.name, m.detail, m.better, f"({name})", "", value, *[""] * 10


def _run(study: Study, arm: str, seed: int) -> str:
    return next(member.name for member in study.done(arm) if member.seed == seed)


def _write(path: Path, head: str | list[str], rows: Iterable[tuple]) -> Path:
    with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head.split(",") if isinstance(head, str) else head)
        for row in rows:
            writer.writerow(f"{value:.8g}" if isinstance(value, float) else value for value in row)
    return path
