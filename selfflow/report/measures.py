"""What is compared: scores of members by arm and seed, each arm held against the baseline."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from selfflow.errors import UserError
from selfflow.report.probes import OWN, in_words, question_of
from selfflow.report.settings import differences, other_tasks
from selfflow.report.study import Member, Study
from selfflow.representation.comparison import Method, compare_to_baseline
from selfflow.representation.probes.probe_run import Row, best

FEW = 5  # seeds; an arm with fewer is exploratory
_LOWER = ("kid", "frechet")
_HIGHER = ("precision", "recall", "world", "synchrony")
_NAMED = {"physics/audio_match_auc": "own sound, not another's: AUC", "synchrony": "onsets with motion: correlation"}
_BESIDE = ("raw latents", "frame differences", "log-mel mean", "true kinematics, boosted trees")


class Measure(NamedTuple):
    """One number of every member.

    Attributes:
      group: the table that it stands in.
      name: of its column.
      detail: what it is, in a line.
      better: which way is better; empty where neither is, as between losses of two tasks.
      methods: arms with their scores, in the order of the study; those that have none are left out.
      beside: what it is to be held beside, such as chance, by name.
    """

    group: str
    name: str
    detail: str
    better: Literal["lower", "higher", ""]
    methods: list[Method]
    beside: dict[str, float]


def verdict(measure: Measure, method: Method) -> str:
    """What a difference to the baseline shows, in words; empty where there is none."""
    found = method.difference
    if found is None:
        return ""
    if found.low is None:
        return "one seed: no interval"
    if found.low == found.high:
        return "no difference shown" if found.difference == 0 else "the same in every seed: no interval"
    if found.low <= 0 <= found.high:
        return "no difference shown"
    way = "lower" if found.high < 0 else "higher"
    return f"{way} ({'better' if way == measure.better else 'worse'})" if measure.better else way


def exploratory(method: Method) -> bool:
    """Whether a mean or its difference is of too few seeds for a headline."""
    return (method.difference or method.mean).n < FEW  # of a difference fewer seeds than of its mean


def shown(measure: Measure, method: Method) -> bool:
    """Whether the interval of a difference excludes 0."""
    return verdict(measure, method).startswith(("lower", "higher"))


def measures(study: Study, rows: Iterable[Row]) -> tuple[list[Measure], list[str]]:
    """All that is measured of the members that are done; and what was left out, and why.

    Args:
      study: the runs.
      rows: of their probes, as `probe_rows` gives them.

    Raises:
      UserError: if a file of a member is damaged.
    """
    notes: list[str] = []
    found = [*_probes(study, rows, notes), *_losses(study, notes), *_evaluations(study, notes)]
    return found, notes


def _measure(
    study: Study,
    about: tuple[str, str, str, str],
    scores: Iterable[tuple[Member, float | None]],
    beside: dict[str, list[float]],
    notes: list[str],
) -> list[Measure]:
    """A measure of the scores that are numbers; none where there is none."""
    group, name, detail, better = about
    by_arm: dict[str, dict[int, float]] = {}
    for member, score in scores:
        if score is None:
            continue
        if not math.isfinite(score):
            notes.append(f"{member.name}: its {group.lower()}, {name}, is {score}, and in no mean")
            continue
        by_arm.setdefault(member.arm, {})[member.seed] = score
    if not by_arm:
        return []
    ordered = {arm: by_arm[arm] for arm in study.arms if arm in by_arm}
    methods = compare_to_baseline(ordered, study.baseline)
    means = {key: sum(values) / len(values) for key, values in beside.items() if values}
    return [Measure(group, name, detail, better, methods, means)]


def _losses(study: Study, notes: list[str]) -> Iterable[Measure]:
    """Flow losses of the EMA over their linear baselines, by set and modality."""
    told = (
        "flow loss of the EMA on held-out clips over its linear baseline, which the best guess without structure costs"
    )
    differing = differences(study)
    for name in dict.fromkeys(key for member in study.done() for key in member.keys("flow_loss")):
        scores = [(member, member.score("flow_loss", name, "normalised_loss")) for member in study.done()]
        # Less of a loss is no better where it is the loss of an easier task.
        tasks = other_tasks(differing, name.split("/")[0])
        detail = f"{told}; each arm on its own task, for they differ in {', '.join(tasks)}" if tasks else told
        about = ("Flow loss", name, detail, "" if tasks else "lower")
        yield from _measure(study, about, scores, {"linear_baseline": [1.0]}, notes)


def _probes(study: Study, rows: Iterable[Row], notes: list[str]) -> Iterable[Measure]:
    """Probe scores, the layer and the tau chosen on validation for each run."""
    members = {member.name: member for member in study.done()}
    rows = list(rows)
    for question in dict.fromkeys(map(question_of, rows)):
        asked = [row for row in rows if question_of(row) == question]
        of = {weights: _chosen([row for row in asked if row.weights == weights]) for weights in ("ema", "untrained")}
        name = f"{question.target} from {question.source.replace('+', ' + ')}"
        if not of["ema"]:
            notes.append(f"{name}, {in_words(question)}: validation chose no layer of the EMA; see the probe curves")
            continue
        taus = sorted({row.tau for row in asked})
        detail = f"{in_words(question)}; the layer chosen on validation, tau {', '.join(f'{tau:g}' for tau in taus)}"
        if len({frozenset(row.tau for row in asked if row.run == run) for run in {row.run for row in asked}}) > 1:
            detail += " (not of every run: validation chose from what there is)"
        beside = {"chance": [row.chance for row in asked if row.chance > 0]}
        column = f"{question.target}/{question.source.replace('video+audio', 'both')}"
        if question.probe == OWN:
            for kind in _BESIDE:
                values = [member.score("probes", kind, column, "test") for member in members.values()]
                beside[kind] = [value for value in values if value is not None]
        beside["untrained network"] = [row.test for row in of["untrained"] if math.isfinite(row.test)]
        scores = [(members[row.run], row.test) for row in of["ema"]]
        yield from _measure(study, ("Probes", name, detail, "higher"), scores, beside, notes)


def _chosen(rows: list[Row]) -> list[Row]:
    """One row of each run: that which validation chose, or the only one there is."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.run] = counts.get(row.run, 0) + 1
    return [*best([row for row in rows if not math.isnan(row.validation)])] or [
        row for row in rows if counts[row.run] == 1
    ]


def _evaluations(study: Study, notes: list[str]) -> Iterable[Measure]:
    """Distances and rates of `selfflow evaluate`, at the last step of each member."""
    found: dict[tuple, dict[str, dict[str, Any]]] = {}
    for member in study.done():
        for result in _evaluated(member, notes):
            # Evaluated again with other features it has other numbers, which stand beside those of before.
            known = found.setdefault(_kind(result), {}).setdefault(member.name, result)
            for part in ("rows", "checked"):
                for row, numbers in result.get(part, {}).items():
                    known.setdefault(part, {}).setdefault(row, {}).update(numbers)
    members = {member.name: member for member in study.done()}
    own_layer = False
    for by_member in found.values():
        first = next(iter(by_member.values()))
        given = f", given {' '.join(map(str, first['context']))}" if first.get("context") else ""
        about = f"{first['component']}: {first.get('modality') or 'all'}{given}"
        names = dict.fromkeys(name for one in by_member.values() for name in one["rows"]["samples"])
        for name in names:
            head, _, rest = name.partition("/")
            if "layer" in rest:
                own_layer = True  # the features of each run are others: no two runs can be compared
                continue
            if head not in (*_LOWER, *_HIGHER):
                continue
            checked = [one.get("checked", {}).get("samples", {}).get(rest) for one in by_member.values()]
            applies = sorted({n for n in checked if isinstance(n, int)})
            on = f", of {'-'.join(map(str, {applies[0]: 0, applies[-1]: 0}))} that it applies to" if applies else ""
            detail = f"{about}; {first['samples']} samples of the {first['weights']}{on}"
            looked = rest.removeprefix("FD-").replace("/", " ")
            label = {"kid": f"KID {looked}", "frechet": f"FD {looked}", "world": f"law: {rest}"}.get(
                head, f"{head} {looked}"
            )
            label = _NAMED.get(name, label)
            scores = [(members[run], _number(one["rows"]["samples"].get(name))) for run, one in by_member.items()]
            beside = {
                row: [v for one in by_member.values() if (v := _number(one["rows"].get(row, {}).get(name))) is not None]
                for row in ("real clips", "real, decoded", "noise")
            }
            better = "lower" if head in _LOWER else "higher"
            yield from _measure(study, (f"Samples, {about}", label, detail, better), scores, beside, notes)
    if own_layer:
        notes.append("distances between features of a run's own layer compare no two runs, and stand in no table")


def _evaluated(member: Member, notes: list[str]) -> Iterable[dict[str, Any]]:
    """What `RUN/evaluations` tells of the member's last step, oldest first."""
    files = sorted((member.run.path / "evaluations").glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in files:
        try:
            result = json.loads(path.read_text())
            if path.name.startswith("calibration"):
                continue  # of the verifier, and of no samples
            step = result["step"]
            for row in (*result["rows"].values(), *result.get("checked", {}).values()):
                row.keys()
            result["rows"]["samples"], result["component"], result["samples"], result["weights"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({error!r}): evaluate the run again, or take it away") from error
        if step == member.summary["steps"]:
            yield result
        else:
            notes.append(f"{_below(path, member)}: of step {step}, which is not the last step of {member.name}")


def _below(path: Path, member: Member) -> str:
    return f"{member.name}/{path.relative_to(member.run.path)}"


def _kind(result: dict[str, Any]) -> tuple:
    """What must be alike for numbers of samples to be compared; later ones of a kind take the place of earlier ones."""
    fields = ("component", "modality", "context", "samples", "seed", "weights", "sampler", "against", "reference")
    return tuple(json.dumps(result.get(field), sort_keys=True) for field in fields)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
