"""Curves of a study as means over seeds: training metrics against step and compute, probe scores against layer."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from selfflow.errors import UserError
from selfflow.planning.model_flops import flops_of, mean_flops
from selfflow.report.probes import END_OF_RUN, ProbeKey, key_of
from selfflow.report.settings import differences
from selfflow.report.study import Member, Study
from selfflow.representation.probes.probe_run import Row
from selfflow.representation.statistics import interval

_BINS = 30
TRAINING_TASK_FIELDS = ("schedule", "separation", "mixture", "data.", "autoencoders.", "patch.", "exclude")
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
"""Rows of `metrics.jsonl` by the name of the run."""


class Point(NamedTuple):
    """A mean over n seeds with its 95 % t interval; low and high are None if n is 1."""

    x: float
    mean: float
    low: float | None
    high: float | None
    n: int


class Line(NamedTuple):
    """One line of a panel.

    Attributes:
      arm: name of the arm, or of a run that is not done.
      kind: distinguishes several lines of the arm, such as teacher; empty if there is one.
      points: in ascending x.
    """

    arm: str
    kind: str
    points: list[Point]


class Panel(NamedTuple):
    """One plot.

    Attributes:
      section: title of the group of panels.
      title: the quantity.
      x: the quantity along x: step, FLOPs or block.
      lines: of all arms.
      level: height of a horizontal line, such as chance; None for none.
      log: whether y is logarithmic.
    """

    section: str
    title: str
    x: str
    lines: list[Line]
    level: float | None = None
    log: bool = False


def line_name(member: Member) -> str:
    """The line that a run belongs to: the mean of its arm, or one of its own if it is not done."""
    return member.arm if member.done else f"{member.name}, not done"


def read_metrics(study: Study) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The rows of `metrics.jsonl` by the name of the run, and notes about runs that have none.

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
    """Flow losses against step and against compute: means over bins of steps, then over seeds.

    Args:
      study: the runs.
      rows: from `read_metrics`.
    """
    lines_by_name = _mean_lines(study, rows, _losses)
    # Training logs the loss of each arm's own task, at its own noise levels and attention.
    own_task = any(name.startswith(TRAINING_TASK_FIELDS) for name in differences(study))
    remark = ", each arm with its own noise, attention or data: not comparable between arms" if own_task else ""
    flops: dict[str, float] = {}
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
    """Cosines of student and teacher features, their norms and effective ranks, against step; by component, modality.

    Args:
      study: the runs.
      rows: from `read_metrics`.
    """
    lines_by_panel: dict[tuple[str, str], list[Line]] = {}
    for name, lines in _mean_lines(study, rows, _diagnostics).items():
        quantity, kind, where = _DIAGNOSTIC.fullmatch(name).groups()
        if quantity == "cosine":
            title = _COSINES.get(kind, kind)
        else:
            title = f"{quantity} of features"
            lines = [line._replace(kind=kind) for line in lines]
        lines_by_panel.setdefault((where, title), []).extend(lines)

    def order(panel: tuple[str, str]) -> tuple[str, int]:
        where, title = panel
        return where, _DIAGNOSTICS.index(title) if title in _DIAGNOSTICS else len(_DIAGNOSTICS)

    return [Panel(*panel, "step", lines_by_panel[panel]) for panel in sorted(lines_by_panel, key=order)]


def probe_panels(study: Study, rows: Iterable[Row]) -> list[Panel]:
    """Probe scores on the test split against layer: a panel for each key and noise level.

    Args:
      study: the runs.
      rows: of their probes, from `probe_rows`.
    """
    # Scores by panel, by line, and by layer.
    scores: dict[tuple[ProbeKey, float], dict[tuple[str, str], dict[int, list[float]]]] = {}
    chance: dict[tuple[ProbeKey, float], float] = {}
    for row in rows:
        if row.layer and math.isfinite(row.test):
            panel = (key_of(row), row.tau)
            line = (row.method, "" if row.weights == "ema" else row.weights)
            scores.setdefault(panel, {}).setdefault(line, {}).setdefault(row.layer, []).append(row.test)
            if row.chance > 0:
                chance[panel] = row.chance
    panels = []
    for (key, tau), scores_by_line in scores.items():
        lines = []
        for arm, kind in sorted(scores_by_line, key=lambda line: (study.arms.index(line[0]), line[1])):
            by_layer = scores_by_line[arm, kind]
            points = [Point(layer, *interval(by_layer[layer])) for layer in sorted(by_layer)]
            lines.append(Line(arm, kind, points))
        title = _probe_title(key, tau)
        panels.append(Panel(f"Score on {key.split}", title, "block", lines, chance.get((key, tau))))
    return panels


def _probe_title(key: ProbeKey, tau: float) -> str:
    unit = "R²" if key.metric == "r2" else key.metric.replace("_", " ")
    probe = "" if key.probe in (END_OF_RUN, "logistic", "ridge") else f", {key.probe}"
    return f"{key.target} from {key.source.replace('+', ' + ')}, tau {tau:g}: {unit}{probe}"


def _losses(row: dict[str, Any]) -> dict[str, Any]:
    component = f"{row['component']}/" if row.get("component") else ""
    losses = {}
    for name, value in row.items():
        match = _LOSS.fullmatch(name)
        if match:
            losses[component + match[1]] = value
    return losses


def _diagnostics(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if _DIAGNOSTIC.fullmatch(name)}


def _against_flops(line: Line, flops: float) -> Line:
    return line._replace(points=[point._replace(x=flops_of(flops, point.x)) for point in line.points])


def _mean_lines(
    study: Study, rows: Rows, quantities: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, list[Line]]:
    """Lines by the name of a quantity: means over bins of steps, then over seeds.

    Args:
      study: the runs.
      rows: from `read_metrics`.
      quantities: selects {name: value} from a row.
    """
    last_steps = [rows_of_run[-1]["step"] for rows_of_run in rows.values() if rows_of_run]
    longest = max(last_steps, default=0)
    width = longest / min(_BINS, max(1, longest // 8)) if longest else 1.0
    # (step, value) by name and line, by run, and by bin.
    values: dict[tuple[str, str], dict[str, dict[int, list[tuple[int, float]]]]] = {}
    for member in study.members:
        for row in rows.get(member.name, []):
            number = math.ceil(row["step"] / width)
            for name, value in quantities(row).items():
                if isinstance(value, int | float) and math.isfinite(value):
                    by_run = values.setdefault((name, line_name(member)), {})
                    by_run.setdefault(member.name, {}).setdefault(number, []).append((row["step"], float(value)))
    lines: dict[str, list[Line]] = {}
    for (name, line), by_run in values.items():
        lines.setdefault(name, []).append(Line(line, "", _mean_points(list(by_run.values()))))
    return lines


def _mean_points(runs: list[dict[int, list[tuple[int, float]]]]) -> list[Point]:
    """Means over runs of the values in each bin; a bin that one run lacks is left out, so that all points are of the
    same runs."""
    points = []
    for number in sorted(set.intersection(*(set(bins) for bins in runs))):
        steps, means = [], []
        for bins in runs:
            steps.extend(step for step, _ in bins[number])
            means.append(sum(value for _, value in bins[number]) / len(bins[number]))
        points.append(Point(sum(steps) / len(steps), *interval(means)))
    return points
