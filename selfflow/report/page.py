"""The HTML page of a report, from the templates beside this module. It loads no other file and runs no script."""

import datetime
import json
from typing import Any, NamedTuple

import jinja2

from selfflow import __version__
from selfflow.report import charts, results
from selfflow.report.curves import Panel
from selfflow.report.measures import FEW, Measure
from selfflow.report.samples import Sample
from selfflow.report.settings import Origin
from selfflow.report.study import Study


class Content(NamedTuple):
    """The content of a report.

    Attributes:
      study: the runs.
      measures: comparisons of arms.
      panels: curves by the name of their CSV file: learning, probes, alignment.
      samples: media of the runs.
      differing: the settings in which arms differ, from `settings.differences`.
      origins: code, packages and data of the runs.
      notes: omissions and their reasons.
    """

    study: Study
    measures: list[Measure]
    panels: dict[str, list[Panel]]
    samples: list[Sample]
    differing: dict[str, dict[str, Any]]
    origins: list[Origin]
    notes: list[str]


class Environment(NamedTuple):
    """Code, packages, devices and data shared by several runs.

    Attributes: as of `Origin`, as text.
    """

    commits: str
    versions: str
    devices: str
    data: str


def render(content: Content, files: list[str]) -> str:
    """Returns the page as HTML.

    Args:
      content: content of the report.
      files: names of the CSV files beside the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("selfflow.report"),
        # Names of runs and arms, docstrings and settings are untrusted text.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(json=json.dumps, count_of=results.count_of)
    environment.globals.update(
        arms_in=results.arms_in,
        arms_of=_arms_of,
        cell_of=results.cell_of,
        dashes_of=_dashes_of,
        draw=charts.draw,
        few=FEW,
        number_of_colours=charts.COLOURS,
        reference_rows=results.reference_rows,
        today=datetime.date.today().isoformat(),
        version=__version__,
    )
    groups: dict[str, list[Measure]] = {}
    for measure in content.measures:
        groups.setdefault(measure.group, []).append(measure)
    return environment.get_template("report.html").render(
        content._asdict(),
        colours=_colours(content),
        environments=_environments(content.origins),
        files=files,
        groups=groups,
        paragraphs=_paragraphs(content.study.question),
        summary=results.summarise(content.measures),
    )


def _paragraphs(text: str) -> list[tuple[str, bool]]:
    """Paragraphs with their line breaks joined, and False; those with columns or indents unchanged, and True."""
    paragraphs = []
    for paragraph in text.strip().split("\n\n"):
        lines = paragraph.strip("\n").split("\n")
        # Indents and double spaces are those of commands and tables, whose line breaks matter.
        is_laid_out = any(line.startswith((" ", "\t")) or "  " in line.strip() for line in lines)
        if paragraph.strip():
            paragraphs.append((paragraph if is_laid_out else " ".join(lines), is_laid_out))
    return paragraphs


def _colours(content: Content) -> dict[str, int]:
    """Index of the colour of each arm, and of each run that is not done: arms first, in the order of the study."""
    names = dict.fromkeys(content.study.arms)
    for panels in content.panels.values():
        names.update(dict.fromkeys(_arms_of(panels)))
    return {name: index for index, name in enumerate(names)}


def _arms_of(panels: list[Panel]) -> list[str]:
    """Returns the arms that have a line in any of the panels, in order."""
    arms: dict[str, None] = {}  # an ordered set
    for panel in panels:
        arms.update(dict.fromkeys(line.arm for line in panel.lines))
    return list(arms)


def _dashes_of(panels: list[Panel]) -> list[str]:
    """Returns the key to the dashes of the lines, and to the horizontal line."""
    # Kinds are dashed in the order of their panel: the panel with the most kinds has the whole key.
    kinds: list[str] = []
    for panel in panels:
        kinds_of_panel = list(dict.fromkeys(line.kind for line in panel.lines))
        if len(kinds_of_panel) > len(kinds):
            kinds = kinds_of_panel
    entries = []
    if kinds != [""]:
        dashes = ("solid", "dashed", "dotted")
        entries = [f"{dashes[index % 3]}: {kind or 'trained'}" for index, kind in enumerate(kinds)]
    if any(panel.level is not None for panel in panels):
        entries.append("level: chance")
    return entries


def _environments(origins: list[Origin]) -> dict[Environment, list[str]]:
    """Names of the runs by their environment."""
    names: dict[Environment, list[str]] = {}
    for origin in origins:
        commits = ", then ".join(origin.commits)
        environment = Environment(commits, origin.versions, origin.devices, origin.data or "none")
        names.setdefault(environment, []).append(origin.member.name)
    return names
