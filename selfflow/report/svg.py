"""Panels as SVG that stands inside a page: its text is text, and its colours are the page's."""

import math
from collections.abc import Callable
from html import escape

from selfflow.report.curves import Line, Panel, Point
from selfflow.report.measures import FEW

COLOURS = 12  # that the page's style names --c0 to --c11
_WIDTH, _HEIGHT = 340, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 16, 8, 36
_FEW = 12  # points of a line that are also marked
_Place = Callable[[float], float]  # of a value, in the units of the picture
_DASHES = ("", "5 3", "1.5 3")


def draw(panel: Panel, colours: dict[str, int]) -> str:
    """A panel as an SVG element; lines are means, bands their 95 % t intervals.

    Args:
      panel: what to plot.
      colours: number of each arm's colour.
    """
    lines = [line for line in panel.lines if line.points]
    points = [point for line in lines for point in line.points]
    log = panel.log and min((point.mean for point in points), default=0) > 0
    xs = [point.x for point in points] or [0.0]
    # Beside the bands of three or four seeds nothing else could be seen: they are cut off at the edge.
    bands = [y for point in points if point.n >= FEW for y in (point.low, point.high)]
    ys = [y for y in (*(point.mean for point in points), *bands) if not log or y > 0]
    ys += [panel.level] if panel.level is not None and not log else []
    x_from, x_to = (0.0, 1.02 * max(xs)) if panel.x != "block" else (min(xs), max(xs))
    x_to = x_to if x_to > x_from else x_from + 1
    y_from, y_to = _limits(ys or [0.0, 1.0], log)
    scale = math.log if log else lambda y: y
    across = lambda x: _LEFT + (x - x_from) / (x_to - x_from) * (_WIDTH - _LEFT - _RIGHT)
    share = lambda y: (scale(y) - scale(y_from)) / (scale(y_to) - scale(y_from))
    down = lambda y: _TOP + (1 - share(min(max(y, y_from), y_to))) * (_HEIGHT - _TOP - _BOTTOM)
    x_ticks = sorted(set(xs)) if panel.x == "block" else _ticks(x_from, x_to, 4)
    if len(x_ticks) > 12:
        x_ticks = x_ticks[:: math.ceil(len(x_ticks) / 12)]
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(panel.title)}">']
    for y in _log_ticks(y_from, y_to) if log else _ticks(y_from, y_to, 5):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{down(y) + 3.5:.1f}" text-anchor="end">{_number(y)}</text>')
    for x in x_ticks:
        at = min(across(x), _WIDTH - 3.2 * len(_number(x)))  # a long number at the right edge stays inside
        parts.append(f'<text x="{at:.1f}" y="{_HEIGHT - 21}" text-anchor="middle">{_number(x)}</text>')
    if panel.level is not None and not log:
        y = down(panel.level)
        parts.append(f'<line class="level" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 5}" text-anchor="middle">{escape(panel.x)}</text>')
    kinds = list(dict.fromkeys(line.kind for line in lines))
    for line in lines:
        parts += _drawn(line, colours[line.arm] % COLOURS, _DASHES[kinds.index(line.kind) % 3], across, down)
    return "".join([*parts, "</svg>"])


def _drawn(line: Line, colour: int, dash: str, across: _Place, down: _Place) -> list[str]:
    at = lambda points: " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
    named = f"{line.arm}, {line.kind}" if line.kind else line.arm
    band = [point for point in line.points if point.n > 2]  # of two seeds it is 13 standard errors wide either way
    parts = []
    if band:
        edge = [(p.x, p.high) for p in band] + [(p.x, p.low) for p in reversed(band)]
        parts.append(f'<polygon class="band" fill="var(--c{colour})" points="{at(edge)}"/>')
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    path = at((point.x, point.mean) for point in line.points)
    told = f"<title>{escape(named)}: {_last(line.points[-1])}</title>"
    parts.append(f'<polyline class="line" stroke="var(--c{colour})"{dashed} points="{path}">{told}</polyline>')
    if len(line.points) <= _FEW:
        parts += [
            f'<circle r="2.4" fill="var(--c{colour})" cx="{across(p.x):.1f}" cy="{down(p.mean):.1f}"/>'
            for p in line.points
        ]
    return parts


def _last(point: Point) -> str:
    return f"{point.mean:.4g} at {point.x:.4g}, n = {point.n}"


def _limits(values: list[float], log: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        return low / 1.1, high * 1.1
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from low to high, about `count` of them."""
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next((m * size for m in (1, 2, 2.5, 5) if m * size >= rough), 10 * size)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Of 1, 2 and 5 times powers of ten those in between; where they are few, round numbers."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**e for e in decades for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    return found if len(found) > 2 else [tick for tick in _ticks(low, high, 5) if tick > 0]


def _number(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        digits, power = f"{value:.2g}".partition("e")[::2] if "e" in f"{value:.2g}" else f"{value:.1e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:.4g}"
