"""Formatting of results: the summary of all comparisons, and the cells of the tables."""

import math
from typing import NamedTuple

from selfflow.report.measures import FEW, Measure, excludes_zero, is_exploratory, verdict
from selfflow.report.study import Study
from selfflow.representation.comparison import Method
from selfflow.representation.statistics import Interval, Paired

_LISTED = 12  # maximum number of differences in the summary


class Summary(NamedTuple):
    """Summary of all differences to the baseline.

    Attributes:
      single: number of differences of one seed, which have no interval.
      compared: number of differences with an interval.
      significant: number of differences whose interval excludes 0.
      listed: the first differences whose interval excludes 0, one per line.
    """

    single: int
    compared: int
    significant: int
    listed: list[str]


class Cell(NamedTuple):
    """Table cell with the text for one measure of one arm.

    Attributes:
      mean: mean over seeds; empty without scores.
      interval: interval of the mean; empty for one seed.
      remark: number of seeds.
      difference: difference to the baseline, with its interval; empty without a difference.
      verdict: conclusion from the difference, or the reason why there is no difference.
      significant: whether the interval of the difference excludes 0.
    """

    mean: str = ""
    interval: str = ""
    remark: str = ""
    difference: str = ""
    verdict: str = ""
    significant: bool = False


def summarise(measures: list[Measure]) -> Summary:
    """Counts the differences to the baseline, and lists those whose interval excludes 0."""
    single, compared, significant, listed = 0, 0, 0, []
    for measure in measures:
        for method in measure.methods:
            if method.difference is None:
                continue
            if method.difference.low is None:
                single += 1
                continue
            compared += 1
            if excludes_zero(measure, method):
                significant += 1
                listed.append(_sentence(measure, method))
    return Summary(single, compared, significant, listed[:_LISTED])


def cell_of(study: Study, measure: Measure, arm: str) -> Cell:
    """Returns the cell of a measure and an arm; empty if the arm has no scores."""
    methods = {method.name: method for method in measure.methods}
    if arm not in methods:
        return Cell()
    method = methods[arm]
    mean, decimals = method.mean, _decimals_of(measure)
    # The interval of a mean is over seeds and does not exist for one seed.
    remark = f"n = {mean.n}" if mean.n > 1 else f"n = {mean.n}: no interval"
    # For an arm with few runs the page has this remark next to the name of the arm.
    if is_exploratory(method) and len(study.done(arm)) >= FEW:
        remark += ", exploratory"
    cell = Cell(_format(mean.estimate, decimals), _format_interval(mean, decimals), remark)
    if method.difference is not None:
        # The difference is over the seeds that both arms have in common.
        paired = method.difference.n
        remark = "" if paired == mean.n else f", {paired} seeds in common"
        return cell._replace(
            difference=_format_difference(measure, method),
            verdict=f"{verdict(measure, method)}{remark}",
            significant=excludes_zero(measure, method),
        )
    if study.baseline and arm != study.baseline:
        reason = "no seed in common" if study.baseline in methods else "the baseline has no such score"
        return cell._replace(verdict=reason)
    return cell


def reference_rows(columns: list[Measure], group: list[Measure]) -> dict[str, list[str]]:
    """Returns table rows of reference values by name, such as chance, with one cell for each column.

    Args:
      columns: measures of the table.
      group: measures of all tables of the group, which determine the order of the rows.
    """
    names: dict[str, None] = {}  # an ordered set
    for measure in group:
        names.update(dict.fromkeys(measure.references))
    rows = {}
    for name in names:
        row = []
        for measure in columns:
            value = measure.references.get(name)
            row.append("" if value is None else _format(value, _decimals_of(measure)))
        if any(row):
            rows[name] = row
    return rows


def arms_in(study: Study, measures: list[Measure]) -> list[str]:
    """Returns the arms that have scores in any of the measures, in the order of the study."""
    names: set[str] = set()
    for measure in measures:
        names.update(method.name for method in measure.methods)
    return [arm for arm in study.arms if arm in names]


def count_of(n: int, noun: str) -> str:
    """Formats a number and a noun, as in "1 seed" and "2 seeds"."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _sentence(measure: Measure, method: Method) -> str:
    """Formats a difference to the baseline as a line of the summary."""
    n = method.difference.n
    remark = "" if n >= FEW else f"; exploratory, {count_of(n, 'seed')}"
    where = f"{method.name}, {measure.group.lower()}, {measure.name}"
    return f"{where}: {_format_difference(measure, method)}, {verdict(measure, method)}{remark}"


def _format_difference(measure: Measure, method: Method) -> str:
    difference = method.difference
    numbers = [x for x in (difference.difference, difference.low, difference.high) if x is not None]
    # At most one digit more than the scores have.
    decimals = min(_decimals(max(map(abs, numbers))), _decimals_of(measure) + 1)
    interval = _format_interval(difference, decimals, "+")
    return f"{_format(difference.difference, decimals, '+')} {interval}".rstrip()


def _format_interval(estimate: Interval | Paired, decimals: int, sign: str = "") -> str:
    """Formats the interval of an estimate, such as "[0.42, 0.47]"; empty for one seed."""
    if estimate.low is None:
        return ""
    return f"[{_format(estimate.low, decimals, sign)}, {_format(estimate.high, decimals, sign)}]"


def _decimals_of(measure: Measure) -> int:
    """Returns the number of decimals of a column, which is the same for all arms."""
    return _decimals(max(abs(method.mean.estimate) for method in measure.methods))


def _decimals(size: float) -> int:
    """Returns the number of decimals for three significant digits of a number, at most 6."""
    return 3 if not size else min(6, max(0, 2 - math.floor(math.log10(size))))


def _format(value: float, decimals: int, sign: str = "") -> str:
    value = round(value, decimals) + 0.0  # turns -0 into 0
    return f"{value:{sign},.{decimals}f}".replace("-", "\N{MINUS SIGN}").replace(",", "\N{THIN SPACE}")
