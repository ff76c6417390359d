"""Charts of a report: figures of matplotlib as inline SVG, in the colours of the page."""

import io
import re

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from selfflow.report.curves import Line, Panel
from selfflow.report.measures import FEW

COLOURS = 12  # style.css defines --c0 to --c11
_DASHES = ("-", "--", ":")
_STEPS = [1, 2, 5, 10]  # distances between ticks, up to powers of ten
_MARKED = 12  # maximum number of points of a line with markers


def _placeholder(index: int) -> str:
    """Returns the colour of arm `index` in the figure, which is replaced by a CSS variable in the SVG."""
    return f"#c0ff{index:02x}"


# The page uses CSS variables for its light and dark themes; matplotlib does not support them.
_DIM, _RULE = "#c0ff0d", "#c0ff0e"
_VARIABLES = {_DIM: "var(--dim)", _RULE: "var(--rule)"}
_VARIABLES |= {_placeholder(index): f"var(--c{index})" for index in range(COLOURS)}
_STYLE = {
    "axes.edgecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": _DIM,
    "axes.xmargin": 0.02,
    "font.sans-serif": ["DejaVu Sans"],  # only for the layout: the page sets the font
    "font.size": 8,
    "grid.color": _RULE,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 3,
    "svg.fonttype": "none",  # <text> elements instead of outlines
    "xtick.labelcolor": _DIM,
    "xtick.major.size": 0,
    "ytick.labelcolor": _DIM,
    "ytick.major.size": 0,
}

_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def draw(panel: Panel, colours: dict[str, int]) -> Markup:
    """Draws a panel as an SVG element. Lines are means, and bands their 95 % t intervals.

    Args:
      panel: panel to draw.
      colours: colour index of each arm.
    """
    lines = [line for line in panel.lines if line.points]
    kinds = list(dict.fromkeys(line.kind for line in lines))
    # Identifiers in the SVG are salted hashes, which must be unique in the page and reproducible.
    salt = f"{panel.section} {panel.title} {panel.x}"
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": salt}):
        figure = Figure(figsize=(3.4, 2.2))
        axes = figure.add_axes((0.14, 0.17, 0.81, 0.8), xlabel=panel.x)
        for number, line in enumerate(lines):
            dash = _DASHES[kinds.index(line.kind) % len(_DASHES)]
            _plot(axes, line, _placeholder(colours[line.arm] % COLOURS), dash, f"curve-{number}")
        _scale(axes, panel, lines)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata=_NO_METADATA)
    svg = _as_element(file.getvalue())
    # Browsers show a <title> as the tooltip of a line.
    for number, line in enumerate(lines):
        name = f"{line.arm}, {line.kind}" if line.kind else line.arm
        last = line.points[-1]
        label = escape(f"{name}: {last.mean:.4g} at {last.x:.4g}, n = {last.n}")
        svg = svg.replace(f'<g id="curve-{number}">', f'<g class="line"><title>{label}</title>')
    return Markup(svg)


def _plot(axes: Axes, line: Line, colour: str, dash: str, gid: str) -> None:
    """Plots the means of a line, and the band of their intervals."""
    x, mean, *_ = zip(*line.points)
    marker = "o" if len(x) <= _MARKED else ""
    axes.plot(x, mean, color=colour, linestyle=dash, marker=marker, gid=gid)
    band_x, low, high = [], [], []
    for point in line.points:
        # Without two seeds, whose 95 % t interval extends to 13 standard errors on either side.
        if point.n > 2:
            band_x.append(point.x)
            low.append(point.low)
            high.append(point.high)
    axes.fill_between(band_x, low, high, color=colour, alpha=0.16, linewidth=0)


def _scale(axes: Axes, panel: Panel, lines: list[Line]) -> None:
    """Sets limits and ticks of the axes, and draws the horizontal line."""
    means, bounds = [], []
    for line in lines:
        for point in line.points:
            means.append(point.mean)
            # Intervals of few seeds are so wide that the lines would appear flat, so the axis may cut them off.
            if point.n >= FEW:
                bounds += [point.low, point.high]
    ys = means + bounds
    if panel.log and min(means, default=0) > 0:
        ys = [y for y in ys if y > 0]  # a lower bound may be negative
        axes.set_yscale("log")
        axes.set_ylim(min(ys) / 1.1, max(ys) * 1.1)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        if panel.level is not None:
            ys.append(panel.level)
            axes.axhline(panel.level, color=_DIM, linestyle=":", linewidth=1)
        low, high = min(ys, default=0.0), max(ys, default=1.0)
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    if panel.x == "block":
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS, integer=True))
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=_STEPS))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")


def _as_element(svg: str) -> str:
    """Extracts the root element from an SVG file of matplotlib, without style and repeated identifiers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r' id="[^"]*_\d+"', "", svg)  # such as axes_1, which every chart contains
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg
