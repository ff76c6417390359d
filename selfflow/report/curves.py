"""Curves of a study as means over seeds: training metrics against step and compute, probe scores against layer."""

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
# Arms that differ in one of these have training losses of different tasks.
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
      kind: distinguishes several lines of the arm, such as "teacher"; empty if there is one.
      points: points in ascending x.
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
      lines: lines of all arms.
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
    """Returns the line that a run belongs to: that of its arm if it is done, otherwise a line for this run alone."""
    return member.arm if member.done else f"{member.name}, not done"


def read_metrics(study: Study) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Returns the rows of `metrics.jsonl` by the name of the run, and notes about runs without this file.

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
    """Flow losses against step and against training compute: means over bins of steps, then over seeds.

    Args:
      study: the runs.
      rows: rows from `read_metrics`.
    """
    lines_by_name = _mean_lines(study, rows, _losses)
    # The training loss of an arm is that of its own noise levels and data, unlike the held-out losses of the tables.
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
    """Cosines, norms and effective ranks of student and teacher features against step, by component and modality.

    Args:
      study: the runs.
      rows: rows from `read_metrics`.
    """
    lines_by_panel: dict[tuple[str, str], list[Line]] = {}
    for name, lines in _mean_lines(study, rows, _diagnostics).items():
        quantity, kind, where = _DIAGNOSTIC.fullmatch(name).groups()
        if quantity == "cosine":
            title = _COSINES.get(kind, kind)
        else:
            # Student and teacher are two lines of one panel.
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
      rows: rows of their probes, from `probe_rows`.
    """
    by_panel: dict[tuple[ProbeKey, float], _ProbeScores] = {}
    for row in rows:
        if row.layer and math.isfinite(row.test):  # 0 stands for features that are not of a block
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
      chance: level of the panel; None if the rows have none.
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
        """Means over seeds against layer, in the order of the arms."""
        lines = []
        for arm, kind in sorted(self.by_line, key=lambda line: (arms.index(line[0]), line[1])):
            by_layer = self.by_line[arm, kind]
            points = [Point(layer, *interval(by_layer[layer])) for layer in sorted(by_layer)]
            lines.append(Line(arm, kind, points))
        return lines


def _probe_title(key: ProbeKey, tau: float) -> str:
    """Title of a panel, such as "material from video + audio, tau 0.1: balanced accuracy"."""
    unit = "R²" if key.metric == "r2" else key.metric.replace("_", " ")
    probe = "" if key.probe in (END_OF_RUN, "logistic", "ridge") else f", {key.probe}"
    return f"{key.target} from {key.source.replace('+', ' + ')}, tau {tau:g}: {unit}{probe}"


def _losses(row: dict[str, Any]) -> dict[str, Any]:
    """Flow losses of a row of the metrics, by "component/modality"."""
    component = f"{row['component']}/" if row.get("component") else ""
    losses = {}
    for name, value in row.items():
        match = _LOSS.fullmatch(name)
        if match:
            losses[component + match[1]] = value
    return losses


def _diagnostics(row: dict[str, Any]) -> dict[str, Any]:
    """Diagnostics of the alignment in a row of the metrics, by their names in it."""
    return {name: value for name, value in row.items() if _DIAGNOSTIC.fullmatch(name)}


def _against_flops(line: Line, costs: list[StageCost]) -> Line:
    """Returns a line against step as a line against training compute, with the costs of `mean_flops`."""
    points = [point._replace(x=flops_of(costs, point.x)) for point in line.points]
    return line._replace(points=points)


@dataclass
class _Bin:
    """Values of a quantity in one bin of steps of one run."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


def _mean_lines(
    study: Study, rows: Rows, quantities: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, list[Line]]:
    """Lines by the name of a quantity: means over bins of steps, then over seeds.

    Args:
      study: the runs.
      rows: rows from `read_metrics`.
      quantities: selects {name: value} from a row.
    """
    last_steps = [rows_of_run[-1]["step"] for rows_of_run in rows.values() if rows_of_run]
    longest = max(last_steps, default=0)
    # Runs may log at different steps and losses of single steps are noisy: means over bins have common steps and less
    # noise. The bins are the same for all runs. Short runs have fewer, of at least 8 steps.
    width = longest / min(_BINS, max(1, longest // 8)) if longest else 1.0
    # By (quantity, line), by run, and by the number of the bin.
    bins: dict[tuple[str, str], dict[str, dict[int, _Bin]]] = {}
    for member in study.members:
        for row in rows.get(member.name, []):
            number = math.ceil(row["step"] / width)  # bin i has the steps above (i - 1) width, up to i width
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
    """Means over runs of their means in each bin. Bins that a run lacks are left out: points are of the same runs."""
    common = set(runs[0])
    for bins in runs:
        common &= set(bins)
    points = []
    for number in sorted(common):
        steps, means = [], []
        # Each run once, however many rows it logged: the interval is that over seeds.
        for bins in runs:
            values = bins[number].values
            steps += bins[number].steps
            means.append(sum(values) / len(values))
        points.append(Point(sum(steps) / len(steps), *interval(means)))
    return points
