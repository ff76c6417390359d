"""Writing of a report as an HTML page and CSV files."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from selfflow.errors import UserError
from selfflow.report.curves import diagnostic_panels, loss_panels, probe_panels, read_metrics
from selfflow.report.measures import Measure, measures
from selfflow.report.page import Content, render
from selfflow.report.probes import probe_rows
from selfflow.report.samples import select_samples
from selfflow.report.settings import differences, origins
from selfflow.report.study import Study
from selfflow.report.tables import write_tables
from selfflow.storage.atomic import atomic_write


class Written(NamedTuple):
    """Files of a report and its results.

    Attributes:
      path: path of the page.
      files: paths of the CSV files next to the page.
      measures: comparisons of arms.
      notes: omissions and their reasons.
    """

    path: Path
    files: list[Path]
    measures: list[Measure]
    notes: list[str]


def write_report(
    study: Study, folder: Path, probes: Sequence[Path] = (), samples: int = 2, megabytes: float = 16.0
) -> Written:
    """Writes `report.html` and the CSV files of a study.

    Args:
      study: the study.
      folder: output folder; created if missing.
      probes: CSV files of `selfflow probe` outside of the folders of the study.
      samples: number of clips for each component and arm.
      megabytes: limit on the size of all samples in the page.

    Raises:
      UserError: if a file of the study is damaged, or the folder cannot be created.
    """
    content = _collect(study, probes, samples, megabytes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be created ({error.strerror}): choose another folder") from error
    files = write_tables(folder, study, content.measures, content.panels, content.differing)
    path = folder / "report.html"
    text = render(content, [file.name for file in files])
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="replace")
    return Written(path, files, content.measures, content.notes)


def _collect(study: Study, probes: Sequence[Path], samples: int, megabytes: float) -> Content:
    rows, probe_notes = probe_rows(study, probes)
    compared, measure_notes = measures(study, rows)
    metrics, metric_notes = read_metrics(study)
    media, sample_notes = select_samples(study, samples, megabytes)
    panels = {
        "learning": loss_panels(study, metrics),
        "probes": probe_panels(study, rows),
        "alignment": diagnostic_panels(study, metrics),
    }
    notes = [*study.notes]
    notes += [f"{member.name}: {member.state}" for member in study.members if not member.done]
    notes += [*probe_notes, *measure_notes, *metric_notes, *sample_notes]
    return Content(study, compared, panels, media, differences(study), origins(study), notes)
