"""Writes the report of a study: the page, and its figures as CSV."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from selfflow.errors import UserError
from selfflow.report.curves import health, layers, learning, logged
from selfflow.report.measures import Measure, measures
from selfflow.report.page import page
from selfflow.report.probes import probe_rows
from selfflow.report.samples import chosen_samples
from selfflow.report.settings import differences, origins
from selfflow.report.study import Study
from selfflow.report.tables import write_tables
from selfflow.storage.atomic import atomic_write


class Written(NamedTuple):
    """A report that was written.

    Attributes:
      path: the page.
      files: the CSV files beside it.
      measures: what it compares.
      notes: what it leaves out, and why.
    """

    path: Path
    files: list[Path]
    measures: list[Measure]
    notes: list[str]


def write_report(
    study: Study, folder: Path, probes: Sequence[Path] = (), samples: int = 2, megabytes: float = 16.0
) -> Written:
    """Writes `report.html` and the CSV files.

    Args:
      study: the runs.
      folder: where to; is made.
      probes: CSV files of `selfflow probe`, besides those that lie in the study.
      samples: clips of each set of each arm.
      megabytes: what all samples may take in the page.

    Raises:
      UserError: if a file of the study is damaged, or the folder cannot be written.
    """
    rows, about_rows = probe_rows(study, probes)
    found, about_measures = measures(study, rows)
    metrics, about_metrics = logged(study)
    panels = {
        "learning": learning(study, metrics),
        "probes": layers(study, rows),
        "alignment": health(study, metrics),
    }
    media, about_media = chosen_samples(study, samples, megabytes)
    unfinished = [f"{m.name}: {m.state}" for m in study.members if not m.done]
    notes = [*study.notes, *unfinished, *about_rows, *about_measures, *about_metrics, *about_media]
    differing, made = differences(study), origins(study)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be made ({error.strerror}): choose another folder") from error
    files = write_tables(folder, study, found, panels, differing)
    text = page(study, found, panels, media, differing, made, notes, [file.name for file in files])
    path = folder / "report.html"
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="replace")
    return Written(path, files, found, notes)
