"""Curves of a study: what members logged against step and compute, and probes against layer, as means over seeds."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from selfflow.errors import UserError
from selfflow.planning.model_flops import flops_of, mean_flops
from selfflow.report.probes import OWN, question_of
from selfflow.report.settings import differences
from selfflow.report.study import Member, Study
from selfflow.representation.probes.probe_run import Row
from selfflow.representation.statistics import interval

_BINS = 30
_OWN_TASK = ("schedule", "separation", "mixture", "data.", "autoencoders.", "patch.", "exclude")
_LOSS, _HEALTH = re.compile(r"flow_loss/([^/]+)"), re.compile(r"(cosine|norm|rank)/([^/]+)/(.+)")
_NAMED = {
    "projected": "cosine, projected",
    "direct": "cosine, without the projector",
    "centred": "cosine, projected, less the mean over samples",
    "other_sample": "cosine, projected, with another sample",
}


class Point(NamedTuple):
    """A mean over the seeds of an arm, with its 95 % t interval; low and high are None where n is 1."""

    x: float
    mean: float
    low: float | None
    high: float | None
    n: int


class Line(NamedTuple):
    """One line of a panel.

    Attributes:
      arm: whose.
      kind: what tells it from the arm's other lines of the panel, such as teacher; empty where there is one.
      points: by x.
    """

    arm: str
    kind: str
    points: list[Point]


class Panel(NamedTuple):
    """One plot.

    Attributes:
      section: panels that belong together.
      title: what is plotted.
      x: against what.
      lines: of all arms.
      level: what a dotted line stands at, such as chance; None for none.
      log: whether y is logarithmic.
    """

    section: str
    title: str
    x: str
    lines: list[Line]
    level: float | None = None
    log: bool = False


def label(member: Member) -> str:
    """The line that a member is in: its arm's mean, or where it is not done one of its own."""
    return member.arm if member.done else f"{member.name}, not done"


def logged(study: Study) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The metrics of members by name; and of which there are none.

    Raises:
      UserError: if the metrics of a member are damaged, or end before it did.
    """
    found, notes = {}, []
    for member in study.members:
        if member.run is None:
            continue
        path, rows = member.run.path / "metrics.jsonl", member.run.metrics()
        if not path.is_file():
            notes.append(f"{member.name}: it has no metrics.jsonl, and is in no curve of training")
            continue
        steps = [row.get("step") if isinstance(row, dict) else None for row in rows]
        if not all(isinstance(step, int) for step in steps):
            raise UserError(f"{path} is damaged (line {steps.index(None) + 1} has no step): restore it from a copy")
        if member.done and (not steps or steps[-1] < member.summary["steps"]):
            last = steps[-1] if steps else 0
            raise UserError(f"{path} is damaged after step {last} of {member.summary['steps']}: restore it from a copy")
        found[member.name] = rows
    return found, notes


def learning(study: Study, rows: Mapping[str, list[dict[str, Any]]]) -> list[Panel]:
    """Flow losses against step and against compute: means over successive steps, then over seeds.

    Args:
      study: the runs.
      rows: metrics of members by name, as `logged` gives them.
    """
    lines = _lines(study, rows, _losses)
    # What training logs is the loss of each arm's own task, noise and attention included.
    own = any(name.startswith(_OWN_TASK) for name in differences(study))
    told = ", each arm with its own noise, attention or data: only its own course is to be read" if own else ""
    costs = {label(m): mean_flops(m.run.setup) for m in reversed(study.members) if m.run}
    panels = []
    for x in ("step", "FLOPs"):
        for name, some in lines.items():
            if x == "FLOPs":
                at = lambda line: [p._replace(x=flops_of(costs[line.arm], p.x)) for p in line.points]
                some = [line._replace(points=at(line)) for line in some]
            panels.append(Panel(f"Flow loss against {x}{told}", name, x, some, log=True))
    return panels


def health(study: Study, rows: Mapping[str, list[dict[str, Any]]]) -> list[Panel]:
    """Cosines of student and teacher, norms and effective ranks of their features, against step; by set and modality.

    Args:
      study: the runs.
      rows: metrics of members by name, as `logged` gives them.
    """
    lines = _lines(study, rows, _diagnostics)
    panels: dict[tuple[str, str], list[Line]] = {}
    for name, some in lines.items():
        quantity, kind, where = _HEALTH.fullmatch(name).groups()
        title = _NAMED.get(kind, kind) if quantity == "cosine" else f"{quantity} of features"
        own = "" if quantity == "cosine" else kind
        panels.setdefault((where, title), []).extend(line._replace(kind=own) for line in some)
    order = [*_NAMED.values(), "norm of features", "rank of features"]
    rank = lambda key: (key[0], order.index(key[1]) if key[1] in order else len(order))
    return [Panel(where, title, "step", panels[where, title]) for where, title in sorted(panels, key=rank)]


def layers(study: Study, rows: Iterable[Row]) -> list[Panel]:
    """Probe scores on the test split against layer, a panel for each question and noise level.

    Args:
      study: the runs.
      rows: of their probes, as `probe_rows` gives them.
    """
    panels: dict[tuple, dict[tuple[str, str], dict[int, list[float]]]] = {}
    chance: dict[tuple, float] = {}
    for row in rows:
        if row.layer and math.isfinite(row.test):
            key = question_of(row), row.tau
            kind = "" if row.weights == "ema" else row.weights
            panels.setdefault(key, {}).setdefault((row.method, kind), {}).setdefault(row.layer, []).append(row.test)
            if row.chance > 0:
                chance[key] = row.chance
    found = []
    for (asked, tau), by_line in panels.items():
        order = sorted(by_line, key=lambda key: (study.arms.index(key[0]), key[1]))
        lines = [Line(arm, kind, _points(by_line[arm, kind])) for arm, kind in order]
        which = "" if asked.probe in (OWN, "logistic", "ridge") else f", {asked.probe}"
        unit = "R²" if asked.metric == "r2" else asked.metric.replace("_", " ")
        title = f"{asked.target} from {asked.source.replace('+', ' + ')}, tau {tau:g}: {unit}{which}"
        found.append(Panel(f"Score on {asked.split}", title, "block", lines, chance.get((asked, tau))))
    return found


def _points(scores: Mapping[int, list[float]]) -> list[Point]:
    return [Point(x, *interval(scores[x])) for x in sorted(scores)]


def _losses(row: dict[str, Any]) -> dict[str, float]:
    of = f"{row['component']}/" if row.get("component") else ""
    return {f"{of}{match[1]}": row[name] for name in row if (match := _LOSS.fullmatch(name))}


def _diagnostics(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if _HEALTH.fullmatch(name)}


def _lines(
    study: Study, rows: Mapping[str, list[dict[str, Any]]], chosen: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, list[Line]]:
    """Lines by the name of what is chosen of each row: means over parts of the steps, then over seeds.

    A part that a member of an arm has no value in is left out, so that a line is of the same members everywhere.
    """
    longest = max((some[-1]["step"] for some in rows.values() if some), default=0)
    width = longest / min(_BINS, max(1, longest // 8)) if longest else 1.0
    sums: dict[str, dict[str, dict[str, dict[int, list[tuple[int, float]]]]]] = {}
    for member in study.members:
        for row in rows.get(member.name, []):
            part = math.ceil(row["step"] / width)
            for name, value in chosen(row).items():
                if isinstance(value, int | float) and math.isfinite(value):
                    parts = sums.setdefault(name, {}).setdefault(label(member), {}).setdefault(member.name, {})
                    parts.setdefault(part, []).append((row["step"], float(value)))
    found: dict[str, list[Line]] = {}
    for name in sums:
        for line, members in sums[name].items():
            shared = sorted(set.intersection(*(set(parts) for parts in members.values())))
            points = []
            for part in shared:
                steps = [step for parts in members.values() for step, _ in parts[part]]
                means = [sum(v for _, v in parts[part]) / len(parts[part]) for parts in members.values()]
                points.append(Point(sum(steps) / len(steps), *interval(means)))
            found.setdefault(name, []).append(Line(line, "", points))
    return found
