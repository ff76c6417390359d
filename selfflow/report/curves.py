"""Curves of a study, averaged over seeds: training metrics against step and compute, probe scores against layer."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from selfflow.errors import UserError
from selfflow.planning.model_flops import StageCost, flops_of, mean_flops
from selfflow.report.probes import END_OF_RUN, ProbeKey, key_of
from selfflow.report.settings import differences
from selfflow.report.study import Member, Study
from selfflow.representation.probes.probe_run import Row
from selfflow.representation.statistics import interval

_BINS = 30
# Fields that affect the task of the training loss: the losses of differing arms are not comparable.
TRAINING_TASK_FIELDS = ("objective", "schedule", "separation", "mixture", "data.", "autoencoders.", "patch.", "exclude")
_LOSS = re.compile(r"flow_loss/([^/]+)")
_DIAGNOSTIC = re.compile(r"(cosine|norm|rank)/([^/]+)/(.+)")
_COSINES = {
    "projected": "cosine, projected",
    "direct": "cosine, without the projector",
    "centred": "cosine, projected, mean over samples subtracted",
    "other_sample": "cosine, projected, with another sample",
}
_DIAGNOSTICS = [*_COSINES.values(), "norm of features", "rank of features"]

Rows = Mapping[str, list[dict[str, Any]]]
"""Rows of `metrics.jsonl` by name of the run."""


class Point(NamedTuple):
    """Mean over n seeds with its 95 % t interval; `low` and `high` are None if n is 1."""

    x: float
    mean: float
    low: float | None
    high: float | None
    n: int


class Line(NamedTuple):
    """Line of a panel.

    Attributes:
      arm: name of the arm, or of an unfinished run.
      kind: kind of the line if an arm has several, such as "teacher"; otherwise empty.
      points: points in the order of x.
    """

    arm: str
    kind: str
    points: list[Point]


class Panel(NamedTuple):
    """Plot with the lines of all arms.

    Attributes:
      section: title of the group of panels.
      title: quantity on the y axis.
      x: quantity on the x axis: step, FLOPs or block.
      lines: lines of all arms.
      level: y value of a horizontal line, such as chance; None for no line.
      log: whether the y axis is logarithmic.
    """

    section: str
    title: str
    x: str
    lines: list[Line]
    level: float | None = None
    log: bool = False


def line_name(member: Member) -> str:
    """Returns the name of a run's line: the arm of a finished run, or a separate line for an unfinished run."""
    return member.arm if member.done else f"{member.name}, not done"


def read_metrics(study: Study) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Reads the rows of `metrics.jsonl` by name of the run; also returns notes about runs without this file.

    Raises:
      UserError: if the metrics of a run are damaged, or end before its last step.
    """
    metrics, notes = {}, []
    for member in study.members:
        if member.run is None:
            continue
        path, rows = member.run.path / "metrics.jsonl", member.run.metrics()
        if not path.is_file():
            notes.append(f"{member.name}: no metrics.jsonl; in no training curve")
            continue
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise UserError(f"{path} is damaged (line {number} has no step): restore it from a copy")
        last = rows[-1]["step"] if rows else 0
        if member.done and last < member.summary["steps"]:
            raise UserError(f"{path} is damaged after step {last} of {member.summary['steps']}: restore it from a copy")
        metrics[member.name] = rows
    return metrics, notes


def loss_panels(study: Study, rows: Rows) -> list[Panel]:
    """Returns panels of flow losses against step and against training compute, averaged over bins of steps and seeds.

    Args:
      study: the study.
      rows: rows from `read_metrics`.
    """
    lines_by_name = _mean_lines(study, rows, _losses)
    # Training losses depend on each arm's noise levels and data, unlike the held-out losses of the tables.
    own_task = any(name.startswith(TRAINING_TASK_FIELDS) for name in differences(study))
    remark = ", each arm with its own noise, attention or data: not comparable between arms" if own_task else ""
    flops: dict[str, list[StageCost]] = {}
    for member in study.members:
        if member.run and line_name(member) not in flops:
            flops[line_name(member)] = mean_flops(member.run.setup)
    panels = []
    for name, lines in lines_by_name.items():
        panels.append(Panel(f"Flow loss against step{remark}", name, "step", lines, log=True))
    for name, lines in lines_by_name.items():
        lines = [_against_flops(line, flops[line.arm]) for line in lines]
        panels.append(Panel(f"Flow loss against FLOPs{remark}", name, "FLOPs", lines, log=True))
    return panels


def diagnostic_panels(study: Study, rows: Rows) -> list[Panel]:
    """Returns panels of cosines, norms and effective ranks of student and teacher features against step.

    Args:
      study: the study.
      rows: rows from `read_metrics`.
    """
    lines_by_panel: dict[tuple[str, str], list[Line]] = {}
    for name, lines in _mean_lines(study, rows, _diagnostics).items():
        quantity, kind, where = _DIAGNOSTIC.fullmatch(name).groups()
        if quantity == "cosine":
            title = _COSINES.get(kind, kind)
        else:
            # Student and teacher are two lines of the same panel.
            title = f"{quantity} of features"
            lines = [line._replace(kind=kind) for line in lines]
        lines_by_panel.setdefault((where, title), []).extend(lines)

    def order(panel: tuple[str, str]) -> tuple[str, int]:
        where, title = panel
        return where, _DIAGNOSTICS.index(title) if title in _DIAGNOSTICS else len(_DIAGNOSTICS)

    return [Panel(*panel, "step", lines_by_panel[panel]) for panel in sorted(lines_by_panel, key=order)]


def probe_panels(study: Study, rows: Iterable[Row]) -> list[Panel]:
    """Returns panels of probe scores on the test split against layer, one for each key and noise level.

    Args:
      study: the study.
      rows: probe results, from `probe_rows`.
    """
    by_panel: dict[tuple[ProbeKey, float], _ProbeScores] = {}
    for row in rows:
        if row.layer and math.isfinite(row.test):  # layer 0 stands for features that are not from a block
            by_panel.setdefault((key_of(row), row.tau), _ProbeScores()).add(row)
    panels = []
    for (key, tau), scores in by_panel.items():
        lines = scores.lines(study.arms)
        panels.append(Panel(f"Score on {key.split}", _probe_title(key, tau), "block", lines, scores.chance))
    return panels


@dataclass
class _ProbeScores:
    """Test scores of one key and noise level.

    Attributes:
      by_line: scores of all seeds, by (arm, kind) and by layer.
      chance: chance level; None if the rows have none.
    """

    by_line: dict[tuple[str, str], dict[int, list[float]]] = field(default_factory=dict)
    chance: float | None = None

    def add(self, row: Row) -> None:
        """Adds the score of a row."""
        kind = "" if row.weights == "ema" else row.weights
        self.by_line.setdefault((row.method, kind), {}).setdefault(row.layer, []).append(row.test)
        if row.chance > 0:
            self.chance = row.chance

    def lines(self, arms: list[str]) -> list[Line]:
        """Returns lines of means over seeds against layer, in the order of the arms."""
        lines = []
        for arm, kind in sorted(self.by_line, key=lambda line: (arms.index(line[0]), line[1])):
            by_layer = self.by_line[arm, kind]
            points = [Point(layer, *interval(by_layer[layer])) for layer in sorted(by_layer)]
            lines.append(Line(arm, kind, points))
        return lines


def _probe_title(key: ProbeKey, tau: float) -> str:
    """Returns the title of a panel, such as "material from video + audio, tau 0.1: balanced accuracy"."""
    unit = "R²" if key.metric == "r2" else key.metric.replace("_", " ")
    probe = "" if key.probe in (END_OF_RUN, "logistic", "ridge") else f", {key.probe}"
    return f"{key.target} from {key.source.replace('+', ' + ')}, tau {tau:g}: {unit}{probe}"


def _losses(row: dict[str, Any]) -> dict[str, Any]:
    """Returns the flow losses in a row of the metrics, by "component/modality"."""
    component = f"{row['component']}/" if row.get("component") else ""
    losses = {}
    for name, value in row.items():
        match = _LOSS.fullmatch(name)
        if match:
            losses[component + match[1]] = value
    return losses


def _diagnostics(row: dict[str, Any]) -> dict[str, Any]:
    """Returns the alignment diagnostics in a row of the metrics, by name."""
    return {name: value for name, value in row.items() if _DIAGNOSTIC.fullmatch(name)}


def _against_flops(line: Line, costs: list[StageCost]) -> Line:
    """Converts a line against step to a line against training compute, with costs from `mean_flops`."""
    points = [point._replace(x=flops_of(costs, point.x)) for point in line.points]
    return line._replace(points=points)


@dataclass
class _Bin:
    """Values of a quantity of one run in one bin of steps."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


def _mean_lines(
    study: Study, rows: Rows, quantities: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, list[Line]]:
    """Returns lines by name of the quantity, averaged over bins of steps and then over seeds.

    Args:
      study: the study.
      rows: rows from `read_metrics`.
      quantities: function that selects quantities {name: value} from a row.
    """
    last_steps = [rows_of_run[-1]["step"] for rows_of_run in rows.values() if rows_of_run]
    longest = max(last_steps, default=0)
    # Bins of steps, which are the same for all runs, align runs that log at different steps, and reduce the noise of
    # single steps. Short runs have fewer bins, of at least 8 steps.
    width = longest / min(_BINS, max(1, longest // 8)) if longest else 1.0
    # Bins by (quantity, line), by run, and by number of the bin.
    bins: dict[tuple[str, str], dict[str, dict[int, _Bin]]] = {}
    for member in study.members:
        for row in rows.get(member.name, []):
            number = math.ceil(row["step"] / width)  # bin i has the steps in ((i - 1) * width, i * width]
            for name, value in quantities(row).items():
                if isinstance(value, int | float) and math.isfinite(value):
                    bins_by_run = bins.setdefault((name, line_name(member)), {})
                    bin_of_run = bins_by_run.setdefault(member.name, {}).setdefault(number, _Bin())
                    bin_of_run.steps.append(row["step"])
                    bin_of_run.values.append(float(value))
    lines: dict[str, list[Line]] = {}
    for (name, line), bins_by_run in bins.items():
        lines.setdefault(name, []).append(Line(line, "", _mean_points(list(bins_by_run.values()))))
    return lines


def _mean_points(runs: list[dict[int, _Bin]]) -> list[Point]:
    """Returns means over runs for each bin. Only bins of all runs are used, so that all points have the same runs."""
    common = set(runs[0])
    for bins in runs:
        common &= set(bins)
    points = []
    for number in sorted(common):
        steps, means = [], []
        # Each run contributes one mean, independent of its number of rows, because the interval is over seeds.
        for bins in runs:
            values = bins[number].values
            steps += bins[number].steps
            means.append(sum(values) / len(values))
        points.append(Point(sum(steps) / len(steps), *interval(means)))
    return points
