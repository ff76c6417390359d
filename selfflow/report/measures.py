"""Measures of a report: scores of finished runs by arm and seed, and differences to the baseline."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from selfflow.errors import UserError
from selfflow.evaluation.metrics import metric_of
from selfflow.evaluation.metrics.metric import Metric
from selfflow.report.probes import END_OF_RUN, ProbeKey, describe, key_of
from selfflow.report.settings import differences, other_tasks
from selfflow.report.study import Member, Study
from selfflow.representation.comparison import Method, compare_to_baseline
from selfflow.representation.probes.probe_run import Row, best

FEW = 5
"""Number of seeds; results with fewer seeds are exploratory."""
# Rows in the tables of probes and of samples that are reference values and not results of the run.
_SUMMARY_REFERENCES = ("raw latents", "frame differences", "log-mel mean", "true kinematics, boosted trees")
_SAMPLE_REFERENCES = ("real clips", "real, decoded", "noise")


class Measure(NamedTuple):
    """One quantity of all finished runs.

    Attributes:
      group: title of the table.
      name: name of the column.
      detail: definition of the quantity in one line.
      better: direction of better values; empty if values are not comparable, such as losses of different tasks.
      methods: arms that have scores, in the order of the study.
      references: reference values by name, such as chance.
    """

    group: str
    name: str
    detail: str
    better: Literal["lower", "higher", ""]
    methods: list[Method]
    references: dict[str, float]


def verdict(measure: Measure, method: Method) -> str:
    """Returns the conclusion from the difference of an arm to the baseline; empty without a difference."""
    difference = method.difference
    if difference is None:
        return ""
    if difference.low is None:
        return "one seed: no interval"
    # If the difference is the same for all seeds, there is no t interval.
    if difference.low == difference.high:
        return "no difference shown" if difference.difference == 0 else "equal in every seed: no interval"
    if difference.low <= 0 <= difference.high:
        return "no difference shown"
    direction = "lower" if difference.high < 0 else "higher"
    if not measure.better:
        return direction
    return f"{direction} ({'better' if direction == measure.better else 'worse'})"


def is_exploratory(method: Method) -> bool:
    """Returns whether the difference, or without a difference the mean, is based on fewer than `FEW` seeds."""
    return (method.difference or method.mean).n < FEW


def excludes_zero(measure: Measure, method: Method) -> bool:
    """Returns whether the interval of the difference to the baseline excludes 0."""
    return verdict(measure, method).startswith(("lower", "higher"))


def measures(study: Study, rows: Iterable[Row]) -> tuple[list[Measure], list[str]]:
    """Returns all measures of the finished runs, and notes about omitted scores.

    Args:
      study: the study.
      rows: probe results, from `probe_rows`.

    Raises:
      UserError: if a file of a run is damaged.
    """
    notes: list[str] = []
    return [*_probes(study, list(rows), notes), *_losses(study, notes), *_evaluations(study, notes)], notes


def _compare(
    study: Study, measure: Measure, scores: Iterable[tuple[Member, float | None]], notes: list[str]
) -> Iterable[Measure]:
    """Yields the measure with the methods filled in if any score is finite; adds notes about non-finite scores."""
    by_arm: dict[str, dict[int, float]] = {}
    for member, score in scores:
        if score is None:
            continue
        if math.isfinite(score):
            by_arm.setdefault(member.arm, {})[member.seed] = score
        else:
            # The score would make the mean non-finite. It is omitted, and the note explains the lower number of seeds.
            notes.append(f"{member.name}: {measure.group.lower()}, {measure.name} is {score} and in no mean")
    if by_arm:
        # The order of the rows of the table: the baseline, then the other arms in the order of the study.
        ordered = {arm: by_arm[arm] for arm in study.arms if arm in by_arm}
        yield measure._replace(methods=compare_to_baseline(ordered, study.baseline))


def _losses(study: Study, notes: list[str]) -> Iterable[Measure]:
    """Yields normalised flow losses of the EMA for each component and modality."""
    differing = differences(study)
    names: dict[str, None] = {}  # an ordered set
    for member in study.done():
        names.update(dict.fromkeys(member.keys("flow_loss")))
    for name in names:
        scores = [(member, member.score("flow_loss", name, "normalised_loss")) for member in study.done()]
        detail = "flow loss of the EMA on held-out clips / flow loss of the best per-channel linear predictor"
        # If the tasks of the arms differ, a lower loss may be due to an easier task.
        tasks = other_tasks(differing, name.split("/")[0])
        if tasks:
            detail += f"; each arm on its own task, as they differ in {', '.join(tasks)}"
        measure = Measure("Flow loss", name, detail, "" if tasks else "lower", [], {"linear baseline": 1.0})
        yield from _compare(study, measure, scores, notes)


def _probes(study: Study, rows: list[Row], notes: list[str]) -> Iterable[Measure]:
    """Yields probe scores, with layer and tau chosen on the validation split for each run."""
    members = {member.name: member for member in study.done()}
    rows_by_key: dict[ProbeKey, list[Row]] = {}
    for row in rows:
        rows_by_key.setdefault(key_of(row), []).append(row)
    for key, rows_of_key in rows_by_key.items():
        name = f"{key.target} from {key.source.replace('+', ' + ')}"
        trained = _chosen([row for row in rows_of_key if row.weights == "ema"])
        if not trained:
            notes.append(f"{name}, {describe(key)}: no layer of the EMA was chosen on validation; see the probe curves")
            continue
        references = _probe_references(key, rows_of_key, study.done())
        measure = Measure("Probes", name, _probe_detail(key, rows_of_key), "higher", [], references)
        scores = [(members[row.run], row.test) for row in trained]
        yield from _compare(study, measure, scores, notes)


def _probe_references(key: ProbeKey, rows: list[Row], members: list[Member]) -> dict[str, float]:
    """Returns the means of chance, of the baselines in `summary.json`, and of the untrained network, if they exist."""
    # Chance is 0 for R^2 by definition, and is then omitted.
    references = {"chance": [row.chance for row in rows if row.chance > 0]}
    if key.probe == END_OF_RUN:
        column = f"{key.target}/{key.source.replace('video+audio', 'both')}"
        for kind in _SUMMARY_REFERENCES:
            references[kind] = []
            for member in members:
                value = member.score("probes", kind, column, "test")
                if value is not None:
                    references[kind].append(value)
    untrained = _chosen([row for row in rows if row.weights == "untrained"])
    references["untrained network"] = [row.test for row in untrained if math.isfinite(row.test)]
    return _means(references)


def _probe_detail(key: ProbeKey, rows: list[Row]) -> str:
    """Returns the definition of a probe score, with the noise levels from which the best was chosen on validation."""
    taus: set[float] = set()
    taus_by_run: dict[str, set[float]] = {}
    for row in rows:
        taus.add(row.tau)
        taus_by_run.setdefault(row.run, set()).add(row.tau)
    detail = f"{describe(key)}; layer chosen on validation, tau {', '.join(f'{tau:g}' for tau in sorted(taus))}"
    if min(map(len, taus_by_run.values())) < len(taus):
        detail += " (not all runs have all levels)"
    return detail


def _chosen(rows: list[Row]) -> list[Row]:
    """Returns one row of each run: the best on validation, or its only row if no row has a validation score."""
    chosen = best(rows)
    if chosen:
        return chosen
    # Few-shot probes have no validation score: a choice among several rows would have to use the test split.
    rows_by_run: dict[str, list[Row]] = {}
    for row in rows:
        rows_by_run.setdefault(row.run, []).append(row)
    return [rows_of_run[0] for rows_of_run in rows_by_run.values() if len(rows_of_run) == 1]


def _evaluations(study: Study, notes: list[str]) -> Iterable[Measure]:
    """Yields metrics of samples from `selfflow evaluate`, at the last step of each run."""
    members = {member.name: member for member in study.done()}
    # Results by kind and by name of the run.
    results_by_kind: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for member in members.values():
        for result in _results_of(member, notes):
            results_of_kind = results_by_kind.setdefault(_kind(result), {})
            if member.name in results_of_kind:
                _merge(results_of_kind[member.name], result)
            else:
                results_of_kind[member.name] = result
    own_layer = False
    for results in results_by_kind.values():
        names: dict[str, None] = {}
        for result in results.values():
            names.update(dict.fromkeys(result["rows"]["samples"]))
        for name in names:
            metric = metric_of(name)
            if metric is None:
                continue
            features = name.removeprefix(f"{metric.name}/").removeprefix("FD-")
            if metric.needs == "features" and features.startswith("layer"):
                # These distances use features of the evaluated run itself, so that their scale differs between runs.
                own_layer = True
            else:
                scores = []
                for run, result in results.items():
                    scores.append((members[run], _number(result["rows"]["samples"].get(name))))
                yield from _compare(study, _sample_measure(name, metric, list(results.values())), scores, notes)
    if own_layer:
        notes.append("distances between features of a run's own layer are not comparable between runs: in no table")


def _merge(earlier: dict[str, Any], later: dict[str, Any]) -> None:
    """Adds the numbers of a later evaluation to an earlier one of the same kind; they may differ in features."""
    for part in ("rows", "counts"):
        for row, numbers in later.get(part, {}).items():
            earlier.setdefault(part, {}).setdefault(row, {}).update(numbers)


def _sample_measure(name: str, metric: Metric, results: list[dict[str, Any]]) -> Measure:
    """Returns the measure for one key of an evaluation, without scores.

    Args:
      name: key of the evaluation.
      metric: metric of the key.
      results: results of all runs that have the same kind.
    """
    first = results[0]
    context = f", given {' '.join(map(str, first['context']))}" if first.get("context") else ""
    samples = f"{first['component']}: {first.get('modality') or 'all'}{context}"
    detail = f"{samples}; {metric.unit}; {first['samples']} samples of the {first['weights']}"
    counts = set()
    for result in results:
        count = result.get("counts", {}).get("samples", {}).get(name)
        if isinstance(count, int):
            counts.add(count)
    if counts:
        least, most = min(counts), max(counts)
        detail += f"; applies to {least}" if least == most else f"; applies to {least}-{most}"
    references: dict[str, list[float]] = {}
    for row in _SAMPLE_REFERENCES:
        references[row] = []
        for result in results:
            value = _number(result["rows"].get(row, {}).get(name))
            if value is not None:
                references[row].append(value)
    return Measure(f"Samples, {samples}", _label(name, metric), detail, metric.better, [], _means(references))


def _label(name: str, metric: Metric) -> str:
    """Returns the header of a column, such as "KID LogMel audio", "physics: time" or "audio match"."""
    part = name.removeprefix(metric.name).removeprefix("/")
    if metric.needs == "features":
        return f"{metric.title} {part.removeprefix('FD-').replace('/', ' ')}"
    return f"{metric.title}: {part}" if part else metric.title


def _results_of(member: Member, notes: list[str]) -> Iterable[dict[str, Any]]:
    """Yields the evaluations of the run's last step, oldest first, so that later numbers replace earlier ones."""
    folder = member.run.path / "evaluations"
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime):
        if path.name.startswith("calibration"):
            continue  # calibration of the physics verifier
        result = _read_result(path)
        step = result["step"]
        if step == member.summary["steps"]:
            yield result
        else:
            file = f"{member.name}/{path.relative_to(member.run.path)}"
            notes.append(f"{file}: of step {step}, not the last step of {member.name}")


def _read_result(path: Path) -> dict[str, Any]:
    """Reads a file of `selfflow evaluate`; raises `UserError` if a required field is missing."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        for name in ("step", "component", "samples", "weights"):
            result[name]
        result["rows"]["samples"]
        # Every row must be a dict; other types have no keys.
        for row in (*result["rows"].values(), *result.get("counts", {}).values()):
            row.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error!r}): evaluate the run again, or remove the file") from error
    return result


def _kind(result: dict[str, Any]) -> tuple[str, ...]:
    """Returns the fields that must be equal for results to be comparable, as JSON."""
    fields = ("component", "modality", "context", "samples", "seed", "weights", "sampler", "reference_set", "reference")
    return tuple(json.dumps(result.get(field), sort_keys=True) for field in fields)


def _means(values_by_name: Mapping[str, list[float]]) -> dict[str, float]:
    """Returns means by name; names without values are omitted."""
    return {name: sum(values) / len(values) for name, values in values_by_name.items() if values}


def _number(value: Any) -> float | None:
    """Returns a JSON number as float; None for other types, including booleans, which are instances of int."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
