"""HTML page of a report, from the folder `templates`. The page loads no other file and runs no script."""

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
    """Content of a report.

    Attributes:
      study: the study.
      measures: comparisons of arms.
      panels: panels of curves by the name of their CSV file: learning, probes or alignment.
      samples: samples of the runs.
      differing: settings in which arms differ, from `settings.differences`.
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

    The attributes correspond to the attributes of `Origin`, as text.
    """

    commits: str
    versions: str
    devices: str
    data: str


def render(content: Content, files: list[str]) -> str:
    """Renders the page as HTML.

    Args:
      content: content of the report.
      files: names of the CSV files next to the page.
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
    """Splits text into pairs (paragraph, is_laid_out); the lines of paragraphs that are not laid out are joined."""
    paragraphs = []
    for paragraph in text.strip().split("\n\n"):
        lines = paragraph.strip("\n").split("\n")
        # Indents and double spaces indicate commands and tables, whose line breaks must be preserved.
        is_laid_out = any(line.startswith((" ", "\t")) or "  " in line.strip() for line in lines)
        if paragraph.strip():
            paragraphs.append((paragraph if is_laid_out else " ".join(lines), is_laid_out))
    return paragraphs


def _colours(content: Content) -> dict[str, int]:
    """Returns the colour index of each arm, in the order of the study, and then of each unfinished run."""
    names = dict.fromkeys(content.study.arms)
    for panels in content.panels.values():
        names.update(dict.fromkeys(_arms_of(panels)))
    return {name: index for index, name in enumerate(names)}


def _arms_of(panels: list[Panel]) -> list[str]:
    """Returns the arms that have a line in any of the panels, in the order of the panels."""
    arms: dict[str, None] = {}  # an ordered set
    for panel in panels:
        arms.update(dict.fromkeys(line.arm for line in panel.lines))
    return list(arms)


def _dashes_of(panels: list[Panel]) -> list[str]:
    """Returns the legend of the line styles and of the horizontal line."""
    # Line styles are assigned to kinds in each panel: the panel with the most kinds determines the legend.
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
    """Groups the names of the runs by environment."""
    names: dict[Environment, list[str]] = {}
    for origin in origins:
        commits = ", then ".join(origin.commits)
        environment = Environment(commits, origin.versions, origin.devices, origin.data or "none")
        names.setdefault(environment, []).append(origin.member.name)
    return names
