"""Figures of layers: probes, similarity and health."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfflow.representation.features.extract import Features
from selfflow.representation.health import Health
from selfflow.representation.probes.probe_run import Row
from selfflow.representation.similarity import cknna, layer_similarity, linear_cka
from selfflow.representation.statistics import interval

_METRICS = {"balanced_accuracy": "balanced accuracy", "r2": "R$^2$"}


def probe_curves(rows: Iterable[Row], columns: int = 3) -> Figure:
    """Test score against layer: a panel for each target and source, a line for each method and noise level.

    Over several seeds lines are means and bands their 95 % t intervals.

    Args:
      rows: of one run or of several; rows of layer 0 are left out.
      columns: panels in a row, at most.
    """
    rows = [row for row in rows if row.layer]
    panels = list(dict.fromkeys((row.target, row.source) for row in rows))
    methods, taus = list(dict.fromkeys(r.method for r in rows)), sorted({r.tau for r in rows})
    wide = min(columns, len(panels))
    figure = Figure(figsize=(4.2 * wide + 0.6, 3.2 * -(-len(panels) // wide) + 0.5), layout="constrained")
    axes = np.atleast_1d(figure.subplots(-(-len(panels) // wide), wide, squeeze=False)).ravel()
    # Colours distinguish the noise levels of one method, or several methods; they differ in grey print, too.
    colour = _colours(methods if len(methods) > 1 else taus)
    dashes = ["-", "--", ":", "-."]
    for axis, (target, source) in zip(axes, panels):
        shown = [row for row in rows if (row.target, row.source) == (target, source)]
        for method in methods:
            for i, tau in enumerate(taus):
                cells: dict[int, list[float]] = {}
                for row in shown:
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
        if shown[0].chance > 0:
            axis.axhline(shown[0].chance, color="0.6", lw=1, ls=(0, (1, 2)))
        axis.set_title(f"{target} from {source.replace('+', ' + ')}", fontsize=10)
        axis.set_xlabel("block")
        axis.set_ylabel(_METRICS[shown[0].metric])
        axis.set_xticks(sorted({row.layer for row in shown}))
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


def probe_map(rows: Iterable[Row]) -> Figure:
    """Test score by layer and noise level as colours: a row of panels for each method, a column for each question.

    Over several seeds colours are means. Panels of one question share their colours.

    Args:
      rows: of one run or of several, of several noise levels.
    """
    rows = list(rows)
    questions = list(dict.fromkeys(_question(row) for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    layers, taus = sorted({r.layer for r in rows}), sorted({r.tau for r in rows})
    size = (2.6 * len(questions) + 0.6, (0.45 * len(taus) + 1.0) * len(methods) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(methods), len(questions), squeeze=False, sharex=True, sharey=True)
    for column, question in enumerate(questions):
        shown = [row for row in rows if _question(row) == question]
        low, high = min(row.test for row in shown), max(row.test for row in shown)
        for axis, method in zip(axes[:, column], methods):
            cells = np.full((len(taus), len(layers)), np.nan)
            for i, tau in enumerate(taus):
                for j, layer in enumerate(layers):
                    scores = [row.test for row in shown if (row.method, row.tau, row.layer) == (method, tau, layer)]
                    cells[i, j] = np.mean(scores) if scores else np.nan
            image = _cells(axis, cells, layers, taus, "viridis", (low, high))
            axis.set_title(f"{method}\n{question[0]} from {question[1].replace('+', ' + ')}", fontsize=8)
        figure.colorbar(image, ax=axes[:, column], aspect=30).ax.tick_params(labelsize=6)
    figure.supxlabel("block", fontsize=9)
    figure.supylabel("$\\tau$", fontsize=9)
    return figure


def similarity_figure(features: Mapping[str, tuple[Features, str]], k: int = 10) -> Figure:
    """Similarity of layers, within each network or modality and between them.

    Linear CKA (debiased) above, CKNNA below.

    Args:
      features: (features, modality) of the same clips by their name in the figure, see `layer_similarity`.
      k: number of neighbours of CKNNA.
    """
    names = list(features)
    pairs = [(a, a) for a in names] + [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    figure = Figure(figsize=(3.4 * len(pairs) + 0.4, 6.2), layout="constrained")
    axes = figure.subplots(2, len(pairs), squeeze=False)
    measures = {"linear CKA": partial(linear_cka, debiased=True), f"CKNNA, k = {k}": partial(cknna, k=k)}
    for row, (name, measure) in zip(axes, measures.items()):
        for axis, (a, b) in zip(row, pairs):
            cells = layer_similarity(features[a], features[b], measure)
            limits = (min(0.0, float(cells.min())), 1.0 if a == b else max(0.05, float(cells.max())))
            image = _cells(axis, cells, list(features[b][0].layers), list(features[a][0].layers), "magma", limits)
            axis.set(xlabel=f"block, {b}", ylabel=f"block, {a}")
            axis.set_title(f"{name}: {a if a == b else f'{a} and {b}'}", fontsize=9)
            figure.colorbar(image, ax=axis).ax.tick_params(labelsize=6)
    return figure


def health_figure(health: Health) -> Figure:
    """Cosines of pairs of blocks at the lowest noise level, and norms and effective ranks by block and noise level.

    A row for each modality: cosines of the student's features (down) and the teacher's (across), direct, centred and
    with another sample; then the student's norms and ranks.
    """
    names = list(dict.fromkeys(row.modality for row in health.layers))
    taus = sorted({row.tau for row in health.layers})
    layers = sorted({row.layer for row in health.layers})
    figure = Figure(figsize=(15, 2.9 * len(names) + 0.3), layout="constrained")
    axes = figure.subplots(len(names), 5, squeeze=False)
    kinds = {"direct": "cosine", "direct_centred": "cosine, centred", "direct_other_sample": "cosine, another sample"}
    colour = _colours(taus)
    for m, row in zip(names, axes):
        pairs = [pair for pair in health.pairs if (pair.modality, pair.tau) == (m, taus[0])]
        for axis, (kind, title) in zip(row, kinds.items()):
            cells = np.empty((len(layers), len(layers)))
            for pair in pairs:
                cells[layers.index(pair.student_layer), layers.index(pair.teacher_layer)] = getattr(pair, kind)
            image = _cells(axis, cells, layers, layers, "RdBu_r", (-1.0, 1.0))
            axis.set(xlabel="teacher's block", ylabel="student's block")
            axis.set_title(f"{m}: {title}, $\\tau$ = {taus[0]:g}", fontsize=9)
        figure.colorbar(image, ax=row[2])
        for axis, (kind, title) in zip(row[3:], {"student_norm": "norm", "student_rank": "RankMe"}.items()):
            for tau in taus:
                cells = {one.layer: getattr(one, kind) for one in health.layers if (one.modality, one.tau) == (m, tau)}
                axis.plot(layers, [cells[layer] for layer in layers], color=colour[tau], marker="o", ms=3,
                          label=f"$\\tau$ = {tau:g}")  # fmt: skip
            axis.set(xlabel="block", xticks=layers)
            axis.set_ylim(bottom=0)
            axis.set_title(f"{m}: {title} of the student's tokens", fontsize=9)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 3].legend(fontsize=7, frameon=False)
    return figure


def _question(row: Row) -> tuple[str, str]:
    return row.target, row.source


def _cells(axis: Axes, cells: np.ndarray, columns: list, rows: list, colours: str, limits: tuple[float, float]) -> Any:
    """A table as colours with its numbers."""
    image = axis.imshow(cells, aspect="auto", cmap=colours, vmin=limits[0], vmax=limits[1])
    axis.set_xticks(range(len(columns)), columns, fontsize=7)
    axis.set_yticks(range(len(rows)), [f"{value:g}" for value in rows], fontsize=7)
    if cells.size <= 64:
        for (i, j), value in np.ndenumerate(cells):
            # Text contrasts with the colour of its cell.
            dark = sum(image.cmap(image.norm(value))[:3]) < 1.5
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color="white" if dark else "black")
    return image
