"""The probes of a study: the rows of `selfflow probe` that are found, and the table that runs end with."""

import csv
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from selfflow.errors import UserError
from selfflow.report.study import Member, Study
from selfflow.representation.comparison import read_rows
from selfflow.representation.probes.probe_run import Row
from selfflow.representation.table import REGRESSED

_BLOCK = re.compile(r"(trained|untrained network), block (\d+)")
_WEIGHTS = {"trained": "ema", "untrained network": "untrained"}
OWN = "end-of-run"  # what stands as the probe of the table in summary.json


class Question(NamedTuple):
    """What a probe was asked: rows that are alike in this may be compared."""

    target: str
    source: str
    probe: str
    metric: str
    split: str
    train_n: int


def question_of(row: Row) -> Question:
    """What the row answers."""
    return Question(row.target, row.source, row.probe, row.metric, row.split, row.train_n)


def in_words(question: Question) -> str:
    """A question in words."""
    clips = f", {question.train_n} to fit" if question.train_n else ""
    metric = question.metric.replace("_", " ").replace("r2", "R²")
    return f"{metric} of the {question.probe} probe, {question.split} split{clips}"


def probe_rows(study: Study, files: Sequence[Path] = ()) -> tuple[list[Row], list[str]]:
    """The probe rows of members that are done, their arms as methods; and what was left out, and why.

    Args:
      study: the runs.
      files: CSV files of `selfflow probe`, besides those in the folders of the study.

    Raises:
      UserError: if a file is damaged, or one of `files` is none of `selfflow probe`.
    """
    done = {member.name: member for member in study.done()}
    rows = {_identity(row): row for member in study.done() for row in _own_rows(member)}
    if other := [path for path in files if not _of_probes(path)]:
        raise UserError(f"{other[0]} holds no rows of `selfflow probe`: give a file that its --csv wrote")
    notes: list[str] = []
    for path in [*_found(study), *files]:
        foreign, old = set(), set()
        for row in read_rows(path):
            member = done.get(row.run)
            if member is None:
                foreign.add(row.run)
            elif row.weights != "untrained" and row.step != member.summary["steps"]:
                old.add(f"{row.run} at step {row.step}")
            else:
                row = row._replace(method=member.arm, seed=member.seed)
                rows[_identity(row)] = row
        if foreign:
            notes.append(f"{path}: rows of {', '.join(sorted(foreign))}, which is no member that is done")
        if old:
            notes.append(f"{path}: rows of {', '.join(sorted(old))}, which is not its last step")
    return list(rows.values()), notes


def _found(study: Study) -> list[Path]:
    """Files of probe rows in the study's folder, below it, and in its runs."""
    folders = [member.run.path / "probes" for member in study.done()]
    if len(study.members) > 1:
        folders = [study.folder, study.folder / "probes", *folders]
    return [path for folder in folders for path in sorted(folder.glob("*.csv")) if _of_probes(path)]


def _of_probes(path: Path) -> bool:
    """Whether a file begins as `selfflow probe` begins them; other tables may lie in a folder."""
    try:
        with path.open(newline="", errors="replace") as file:
            return next(csv.reader(file), []) == list(Row._fields)
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _identity(row: Row) -> tuple:
    return (row.run, row.weights, question_of(row), row.tau, row.layer)


def _own_rows(member: Member) -> Iterable[Row]:
    """The table of `summary.json` as rows."""
    settings = member.run.experiment.final_evaluation
    for name in member.keys("probes"):
        if not (match := _BLOCK.fullmatch(name)):
            continue
        for column in member.keys("probes", name):
            target, _, source = column.partition("/")
            scores = [member.score("probes", name, column, split) for split in ("validation", "test")]
            if None in scores:
                raise UserError(f"{member.run.path}/summary.json is damaged: probes.{name}.{column}: restore it")
            chance = member.score("probes", "chance", column, "test") or 0.0
            weights, nan = _WEIGHTS[match[1]], math.nan
            yield Row(
                member.name,
                member.arm,
                member.seed,
                member.summary["steps"],
                weights,
                target,
                source.replace("both", "video+audio"),
                settings.probe_tau,
                int(match[2]),
                OWN,
                "r2" if target in REGRESSED else "balanced_accuracy",
                nan,
                *scores,
                nan,
                nan,
                chance,
                "test",
                settings.probe_clips if target != "position" else 0,
                0,
            )
