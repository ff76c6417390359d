"""The results of a report as HTML: what was found in a few sentences, and the tables."""

import math
from html import escape

from selfflow.report.measures import FEW, Measure, exploratory, shown, verdict
from selfflow.report.study import Study
from selfflow.representation.comparison import Method

_LISTED = 12
_ACROSS = 6  # measures that stand side by side


def in_short(study: Study, measures: list[Measure]) -> str:
    """How many differences were looked at, how many are shown, and what that is worth."""
    if not study.done():
        return "<p>No member was trained to its end: there is no result yet.</p>"
    if not study.baseline:
        return (
            f"<p>One arm, of {_seeds(len(study.done()))}: nothing is held against it. Brackets are 95 % intervals over "
            "seeds, and one seed has none.</p>"
        )
    held = [(m, method) for m in measures for method in m.methods if method.difference is not None]
    sure = [(m, method) for m, method in held if method.difference.low is not None]
    clear = [(m, method) for m, method in sure if shown(m, method)]
    baseline = escape(study.baseline)
    parts = []
    if not sure:
        parts.append(
            f"<p><strong>No difference can be shown yet:</strong> none of the {len(held)} differences to {baseline} is "
            "of two seeds or more, and one seed has no interval.</p>"
        )
    elif not clear:
        parts.append(
            f"<p><strong>A null result.</strong> {len(sure)} differences to {baseline} were compared, paired by seed, "
            "and the 95 % interval of each holds 0: no difference is shown. That is not to say that there is none: an "
            "interval tells how large it may be.</p>"
        )
    else:
        rest = len(sure) - len(clear)
        parts.append(
            f"<p>{len(sure)} differences to {baseline} were compared, paired by seed. The 95 % interval of "
            f"<strong>{len(clear)}</strong> excludes 0; for the other <strong>{rest}</strong> no difference is "
            "shown.</p>"
        )
        items = [
            f"<li>{escape(method.name)}, {escape(m.group.lower())}, {escape(m.name)}: {_difference(m, method)}, "
            f"{escape(verdict(m, method))}{_few(method.difference.n)}</li>"
            for m, method in clear[:_LISTED]
        ]
        more = f"<li>and {len(clear) - _LISTED} more, in the tables</li>" if len(clear) > _LISTED else ""
        parts.append(f"<ul>{''.join(items)}{more}</ul>")
    if sure:
        parts.append(
            f"<p>No correction is made for their number: were there no difference anywhere, about "
            f"{0.05 * len(sure):.2g} of {len(sure)} intervals would be expected to exclude 0. Where a study named one "
            "number beforehand, that one counts, and the others explore.</p>"
        )
    if sure and (single := len(held) - len(sure)):
        parts.append(f"<p>Of one seed, which gives no interval: {single} more.</p>")
    return "".join(parts)


def tables(study: Study, measures: list[Measure]) -> str:
    """A table for each group of measures: arms down, measures across.

    Args:
      study: the runs.
      measures: as `measures.measures` gives them.
    """
    if not measures:
        return "<p>Nothing was measured of members that are done.</p>"
    held = "; below, the difference to the baseline, paired by seed" if study.baseline else ""
    parts = [f"<p>Means over seeds with 95 % t intervals{held}. <em>Exploratory</em>: fewer than {FEW} seeds.</p>"]
    for group in dict.fromkeys(m.group for m in measures):
        some = [m for m in measures if m.group == group]
        parts.append(f"<h3>{escape(group)}</h3>")
        beside = list(dict.fromkeys(name for m in some for name in m.beside))
        parts += [_table(study, some[i : i + _ACROSS], beside) for i in range(0, len(some), _ACROSS)]
        details = dict.fromkeys(m.detail for m in some)
        if len(details) == 1:
            parts.append(f"<p><small>{escape(next(iter(details)))}</small></p>")
        else:
            items = "".join(f"<li><small>{escape(m.name)}: {escape(m.detail)}</small></li>" for m in some)
            parts.append(f"<details><summary>What each column is</summary><ul>{items}</ul></details>")
    return "".join(parts)


def _table(study: Study, measures: list[Measure], beside: list[str]) -> str:
    way = lambda m: f"{m.better} is better" if m.better else "of each arm's own task"
    head = "".join(f"<th scope=col>{escape(m.name)}<small>{way(m)}</small></th>" for m in measures)
    there = {method.name for m in measures for method in m.methods}
    rows = [_row(study, arm, measures) for arm in study.arms if arm in there]
    rows += [_beside(name, measures) for name in beside if any(name in m.beside for m in measures)]
    return (
        f"<div class=wide><table class=cards><thead><tr><th scope=col>arm</th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(study: Study, arm: str, measures: list[Measure]) -> str:
    n = len(study.done(arm))
    few = "" if n >= FEW else " <span class=tag>exploratory</span>"
    held = "<small>baseline</small>" if arm == study.baseline else ""
    head = f"<th scope=row>{escape(arm)}{few}<small>{_seeds(n)}</small>{held}</th>"
    return f"<tr>{head}{''.join(_cell(study, m, arm) for m in measures)}</tr>"


def _cell(study: Study, m: Measure, arm: str) -> str:
    method = next((method for method in m.methods if method.name == arm), None)
    if method is None:
        return f'<td class=none data-label="{escape(m.name)}">&ndash;</td>'
    digits = _digits(max(abs(one.mean.estimate) for one in m.methods))
    mean = method.mean
    parts = [f"<b>{_number(mean.estimate, digits)}</b>"]
    if mean.low is not None:
        parts.append(f" [{_number(mean.low, digits)}, {_number(mean.high, digits)}]")
    few = ", exploratory" * (exploratory(method) and len(study.done(arm)) >= FEW)  # where the arm's row does not say it
    parts.append(f"<small>n = {mean.n}{'' if mean.n > 1 else ': no interval'}{few}</small>")
    if method.difference is not None:
        told = f"<span class=shown>{escape(verdict(m, method))}</span>" if shown(m, method) else verdict(m, method)
        against = f"to {escape(study.baseline)}: {told}{_paired(method)}"
        parts.append(f"<div>{_difference(m, method)}<small>{against}</small></div>")
    elif study.baseline and arm != study.baseline:
        held = any(method.name == study.baseline for method in m.methods)
        why = "no seed in common with the baseline" if held else "the baseline has no such score"
        parts.append(f"<div><small>{why}</small></div>")
    return f'<td data-label="{escape(m.name)}">{"".join(parts)}</td>'


def _beside(name: str, measures: list[Measure]) -> str:
    cells = []
    for m in measures:
        value = m.beside.get(name)
        digits = _digits(max(abs(one.mean.estimate) for one in m.methods))
        found = "&ndash;" if value is None else _number(value, digits)
        cells.append(f'<td{" class=none" if value is None else ""} data-label="{escape(m.name)}">{found}</td>')
    return f"<tr class=beside><th scope=row>{escape(name)}</th>{''.join(cells)}</tr>"


def _difference(m: Measure, method: Method) -> str:
    d = method.difference
    digits = _digits(max(abs(x) for x in (d.difference, d.low, d.high) if x is not None))
    digits = min(digits, _digits(max(abs(one.mean.estimate) for one in m.methods)) + 1)
    number = _number(d.difference, digits, "+")
    return number if d.low is None else f"{number} [{_number(d.low, digits, '+')}, {_number(d.high, digits, '+')}]"


def _paired(method: Method) -> str:
    n = method.difference.n
    return "" if n == method.mean.n else f", {n} seeds in common"


def _few(n: int) -> str:
    return "" if n >= FEW else f"; exploratory, {_seeds(n)}"


def _seeds(n: int) -> str:
    return f"{n} seed{'' if n == 1 else 's'}"


def _digits(size: float) -> int:
    """Decimals that give three figures of the largest number that stands beside."""
    return 3 if not size else min(6, max(0, 2 - math.floor(math.log10(size))))


def _number(value: float, digits: int, sign: str = "") -> str:
    value = round(value, digits) + 0.0  # which is no -0
    return f"{value:{sign},.{digits}f}".replace("-", "\N{MINUS SIGN}").replace(",", "\N{THIN SPACE}")
