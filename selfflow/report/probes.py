"""Probe results of a study, from the CSV files of `selfflow probe` and from the table in `summary.json`."""

import csv
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from selfflow.data.dataset import TargetKind
from selfflow.errors import UserError
from selfflow.report.study import Member, Study
from selfflow.representation.comparison import read_rows
from selfflow.representation.probes.probe_run import Row

END_OF_RUN = "end-of-run"
"""Name of the probe of the table in `summary.json`."""
_BLOCK = re.compile(r"(trained|untrained network), block (\d+)")
_WEIGHTS = {"trained": "ema", "untrained network": "untrained"}


class ProbeKey(NamedTuple):
    """Fields of a probe result that must be equal for scores to be comparable."""

    target: str
    source: str
    probe: str
    metric: str
    split: str
    train_n: int


def key_of(row: Row) -> ProbeKey:
    """Returns the key of a probe result."""
    return ProbeKey(row.target, row.source, row.probe, row.metric, row.split, row.train_n)


def describe(key: ProbeKey) -> str:
    """Returns the description of a key, such as "R² of the ridge probe, test split, fitted on 64"."""
    metric = key.metric.replace("_", " ").replace("r2", "R²")
    clips = f", fitted on {key.train_n}" if key.train_n else ""
    return f"{metric} of the {key.probe} probe, {key.split} split{clips}"


def probe_rows(study: Study, files: Sequence[Path] = ()) -> tuple[list[Row], list[str]]:
    """Returns the probe results of finished runs, with arms as methods.

    Args:
      study: the study.
      files: CSV files of `selfflow probe` outside of the folders of the study.

    Returns:
      The rows, and notes about omitted rows.

    Raises:
      UserError: if a file is damaged, or one of `files` was not written by `selfflow probe`.
    """
    for path in files:
        if not _has_probe_rows(path):
            raise UserError(f"{path} has no rows of `selfflow probe`: give a file that its --csv wrote")
    done = {member.name: member for member in study.done()}
    # Later rows replace earlier rows of the same probe, so that a CSV file may be read twice.
    rows: dict[tuple, Row] = {}
    for member in done.values():
        for row in _summary_rows(member):
            rows[_identity(row)] = row
    notes: list[str] = []
    for path in [*_files_of(study), *files]:
        other_runs, other_steps = set(), set()
        for row in read_rows(path):
            member = done.get(row.run)
            if member is None:
                other_runs.add(row.run)
            elif row.weights != "untrained" and row.step != member.summary["steps"]:
                other_steps.add(f"{row.run} at step {row.step}")
            else:
                row = row._replace(method=member.arm, seed=member.seed)
                rows[_identity(row)] = row
        if other_runs:
            notes.append(f"{path}: rows of {', '.join(sorted(other_runs))}, not a finished run of this study")
        if other_steps:
            notes.append(f"{path}: rows of {', '.join(sorted(other_steps))}, not the last step of the run")
    return list(rows.values()), notes


def _files_of(study: Study) -> list[Path]:
    """Returns the CSV files with probe results in the folders of the study and of its runs."""
    folders = [study.folder, study.folder / "probes"] if len(study.members) > 1 else []
    folders += [member.run.path / "probes" for member in study.done()]
    files: list[Path] = []
    for folder in folders:
        files += filter(_has_probe_rows, sorted(folder.glob("*.csv")))
    return files


def _has_probe_rows(path: Path) -> bool:
    """Returns whether a CSV file has the columns of `selfflow probe`."""
    try:
        with path.open(encoding="utf-8", newline="", errors="replace") as file:
            return next(csv.reader(file), []) == list(Row._fields)
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _identity(row: Row) -> tuple:
    """Returns the fields that identify a probe, without its results."""
    return (row.run, row.weights, key_of(row), row.tau, row.layer)


def _summary_rows(member: Member) -> Iterable[Row]:
    """Yields the probe table of `summary.json` as rows, one for each block and column."""
    settings = member.run.experiment.final_evaluation
    kinds: dict[str, TargetKind] = {}
    for dataset in member.run.experiment.data.values():
        if dataset.ground_truth is not None:
            kinds |= dataset.ground_truth.kinds
    for name in member.keys("probes"):
        match = _BLOCK.fullmatch(name)
        if not match:
            continue  # a reference value, such as "raw latents"
        for column in member.keys("probes", name):
            target, _, source = column.partition("/")
            validation = member.score("probes", name, column, "validation")
            test = member.score("probes", name, column, "test")
            if validation is None or test is None:
                raise UserError(
                    f"{member.run.path}/summary.json is damaged: probes.{name}.{column}: restore it from a copy"
                )
            yield Row(
                run=member.name,
                method=member.arm,
                seed=member.seed,
                step=member.summary["steps"],
                weights=_WEIGHTS[match[1]],
                target=target,
                source=source.replace("both", "video+audio"),
                tau=settings.probe_tau,
                layer=int(match[2]),
                probe=END_OF_RUN,
                metric="balanced_accuracy" if kinds.get(target, "class") == "class" else "r2",
                setting=math.nan,
                validation=validation,
                test=test,
                low=math.nan,
                high=math.nan,
                chance=member.score("probes", "chance", column, "test") or 0.0,
                split="test",
                train_n=settings.probe_clips if kinds.get(target) != "token" else 0,
                test_n=0,
            )
