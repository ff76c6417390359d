"""Figures of probes, for the command line, notebooks and reports."""

from collections.abc import Iterable

import numpy as np
from matplotlib.figure import Figure

from selfflow.representation.probing import Row
from selfflow.representation.statistics import interval

_METRICS = {"balanced_accuracy": "balanced accuracy", "r2": "R$^2$"}


def probe_curves(rows: Iterable[Row], columns: int = 3) -> Figure:
    """Test score against layer: a panel for each target and source, a line for each method and noise level.

    Over several seeds lines are means and bands their 95 % t intervals.

    Args:
      rows: of one run or of several; those that are of no layer are left out.
      columns: panels in a row, at most.
    """
    rows = [row for row in rows if row.layer]
    panels = list(dict.fromkeys((row.target, row.source) for row in rows))
    methods, taus = list(dict.fromkeys(r.method for r in rows)), sorted({r.tau for r in rows})
    wide = min(columns, len(panels))
    figure = Figure(figsize=(4.2 * wide + 0.6, 3.2 * -(-len(panels) // wide) + 0.5), layout="constrained")
    axes = np.atleast_1d(figure.subplots(-(-len(panels) // wide), wide, squeeze=False)).ravel()
    # One method is told apart by its noise levels, several by themselves; colours that print in grey too.
    colour = _colours(methods if len(methods) > 1 else taus)
    dashes = ["-", "--", ":", "-."]
    for axis, (target, source) in zip(axes, panels):
        some = [row for row in rows if (row.target, row.source) == (target, source)]
        for method in methods:
            for i, tau in enumerate(taus):
                cells: dict[int, list[float]] = {}
                for row in some:
                    if (row.method, row.tau) == (method, tau):
                        cells.setdefault(row.layer, []).append(row.test)
                if not cells:
                    continue
                layers = sorted(cells)
                means = [interval(cells[layer]) for layer in layers]
                several = len(methods) > 1
                line = {"color": colour[method if several else tau], "ls": dashes[i % 4] if several else "-"}
                name = ", ".join(
                    filter(None, [method if several else "", f"$\\tau$ = {tau:g}" if len(taus) > 1 else ""])
                )
                axis.plot(layers, [m.estimate for m in means], marker="o", ms=3.5, lw=1.5, label=name or method, **line)
                if means[0].low is not None:
                    axis.fill_between(layers, [m.low for m in means], [m.high for m in means], alpha=0.15,
                                      color=line["color"], lw=0)  # fmt: skip
        if some[0].chance > 0:
            axis.axhline(some[0].chance, color="0.6", lw=1, ls=(0, (1, 2)))
        axis.set_title(f"{target} from {source.replace('+', ' + ')}", fontsize=10)
        axis.set_xlabel("block")
        axis.set_ylabel(_METRICS[some[0].metric])
        axis.set_xticks(sorted({row.layer for row in some}))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    axes[0].legend(fontsize=7, frameon=False)
    return figure


def _colours(names: list) -> dict:
    import matplotlib

    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(names)))
    return dict(zip(names, shades))
