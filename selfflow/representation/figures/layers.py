"""Figures of layers: probes, similarity and health."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfflow.representation.features.extract import Features
from selfflow.representation.health import Health, LayerHealth
from selfflow.representation.probes.probe_run import Row
from selfflow.representation.similarity import cknna, layer_similarity, linear_cka
from selfflow.representation.statistics import Interval, interval

_METRICS = {"balanced_accuracy": "balanced accuracy", "r2": "R$^2$"}
_DASHES = ("-", "--", ":", "-.")


def probe_curves(rows: Iterable[Row], columns: int = 3) -> Figure:
    """Plots test score against layer: one panel per target and source, one line per method and noise level.

    Over several seeds lines are means and bands their 95 % t intervals.

    Args:
      rows: rows of one run or of several; rows of layer 0 are left out.
      columns: maximum number of panels in a row.
    """
    table = _ProbeTable([row for row in rows if row.layer])
    panels, methods, taus = table.questions, table.methods, table.taus
    several = len(methods) > 1
    wide = min(columns, len(panels))
    high = -(-len(panels) // wide)  # rounded up
    figure = Figure(figsize=(4.2 * wide + 0.6, 3.2 * high + 0.5), layout="constrained")
    axes = np.atleast_1d(figure.subplots(high, wide, squeeze=False)).ravel()
    # Colours distinguish noise levels of one method, or several methods, whose levels then differ by dashes.
    colours = _colours(methods if several else taus)
    for axis, ((target, source), shown) in zip(axes, panels.items()):
        for method in methods:
            for i, tau in enumerate(taus):
                scores = table.scores_by_layer((target, source), method, tau)
                if not scores:
                    continue
                parts = [method] if several else []
                if len(taus) > 1:
                    parts.append(f"$\\tau$ = {tau:g}")
                label = ", ".join(parts) or method
                colour, dash = (colours[method], _DASHES[i % 4]) if several else (colours[tau], "-")
                layers = sorted(scores)
                draw_means(axis, layers, [interval(scores[layer]) for layer in layers], colour, label, dash)
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


class _ProbeTable:
    """Rows of probes by their axes in a figure.

    Attributes:
      questions: rows by (target, source).
      methods: methods in the order of the rows.
      layers, taus: layers and noise levels in ascending order.
    """

    def __init__(self, rows: Iterable[Row]):
        self.questions: dict[tuple[str, str], list[Row]] = {}
        methods, layers, taus = {}, set(), set()
        for row in rows:
            self.questions.setdefault((row.target, row.source), []).append(row)
            methods[row.method] = None
            layers.add(row.layer)
            taus.add(row.tau)
        self.methods, self.layers, self.taus = list(methods), sorted(layers), sorted(taus)

    def scores_by_layer(self, question: tuple[str, str], method: str, tau: float) -> dict[int, list[float]]:
        """Returns test scores over seeds by layer; layers without scores are left out."""
        scores: dict[int, list[float]] = {}
        for row in self.questions[question]:
            if (row.method, row.tau) == (method, tau):
                scores.setdefault(row.layer, []).append(row.test)
        return scores


def draw_means(
    axis: Axes, layers: Sequence[int], means: Sequence[Interval], colour: Any, label: str, dash: str = "-"
) -> None:
    """Draws means against blocks, with a band of their intervals if there are several values each."""
    axis.plot(layers, [mean.estimate for mean in means], marker="o", ms=3.5, lw=1.5, label=label, color=colour, ls=dash)
    if means[0].low is not None:
        lows, highs = [mean.low for mean in means], [mean.high for mean in means]
        axis.fill_between(layers, lows, highs, alpha=0.15, color=colour, lw=0)


def _colours(names: list) -> dict:
    # The colour map gets brighter along its length, so that lines differ in grey print; its end is too pale on white.
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(names)))
    return dict(zip(names, shades))


def probe_map(rows: Iterable[Row]) -> Figure:
    """Plots test score by layer and noise level as colours: one row of panels per method, one column per question.

    Over several seeds colours are means. Panels of one question share their colours.

    Args:
      rows: rows of one run or of several, of several noise levels.
    """
    table = _ProbeTable(rows)
    questions, methods, layers, taus = table.questions, table.methods, table.layers, table.taus
    size = (2.6 * len(questions) + 0.6, (0.45 * len(taus) + 1.0) * len(methods) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(methods), len(questions), squeeze=False, sharex=True, sharey=True)
    for column, ((target, source), shown) in enumerate(questions.items()):
        scores_of_all = [row.test for row in shown]
        limits = min(scores_of_all), max(scores_of_all)
        for axis, method in zip(axes[:, column], methods):
            mean_TL = np.full((len(taus), len(layers)), np.nan)
            for i, tau in enumerate(taus):
                for layer, scores in table.scores_by_layer((target, source), method, tau).items():
                    mean_TL[i, layers.index(layer)] = np.mean(scores)
            image = _cells(axis, mean_TL, layers, taus, "viridis", limits)
            axis.set_title(f"{method}\n{target} from {source.replace('+', ' + ')}", fontsize=8)
        figure.colorbar(image, ax=axes[:, column], aspect=30).ax.tick_params(labelsize=6)
    figure.supxlabel("block", fontsize=9)
    figure.supylabel("$\\tau$", fontsize=9)
    return figure


def similarity_figure(features: Mapping[str, tuple[Features, str]], k: int = 10) -> Figure:
    """Plots the similarity of layers, within each network or modality and between them.

    Linear CKA (debiased) above, CKNNA below.

    Args:
      features: (features, modality) of the same clips, by name in the figure; see `layer_similarity`.
      k: number of neighbours of CKNNA.
    """
    names = list(features)
    pairs = [(a, a) for a in names] + list(combinations(names, 2))
    figure = Figure(figsize=(3.4 * len(pairs) + 0.4, 6.2), layout="constrained")
    axes = figure.subplots(2, len(pairs), squeeze=False)
    measures = {"linear CKA": partial(linear_cka, debiased=True), f"CKNNA, k = {k}": partial(cknna, k=k)}
    for row, (name, measure) in zip(axes, measures.items()):
        for axis, (a, b) in zip(row, pairs):
            value_LL = layer_similarity(features[a], features[b], measure)
            # Both measures are 1 between a layer and itself. Between networks they may be small everywhere.
            limits = (min(0.0, float(value_LL.min())), 1.0 if a == b else max(0.05, float(value_LL.max())))
            image = _cells(axis, value_LL, list(features[b][0].layers), list(features[a][0].layers), "magma", limits)
            axis.set(xlabel=f"block, {b}", ylabel=f"block, {a}")
            axis.set_title(f"{name}: {a if a == b else f'{a} and {b}'}", fontsize=9)
            figure.colorbar(image, ax=axis).ax.tick_params(labelsize=6)
    return figure


def health_figure(health: Health) -> Figure:
    """Plots cosines of pairs of blocks at the lowest noise level, and norms and effective ranks by block and level.

    Each modality has a row: cosines between student blocks (down) and teacher blocks (across), direct, centred and with
    another sample; then the student's norms and ranks.
    """
    by_line: dict[tuple[str, float], dict[int, LayerHealth]] = {}
    for row in health.layers:
        by_line.setdefault((row.modality, row.tau), {})[row.layer] = row
    names = list(dict.fromkeys(m for m, _ in by_line))
    taus = sorted({tau for _, tau in by_line})
    layers = sorted(by_line[names[0], taus[0]])
    figure = Figure(figsize=(15, 2.9 * len(names) + 0.3), layout="constrained")
    axes = figure.subplots(len(names), 5, squeeze=False)
    kinds = {"direct": "cosine", "direct_centred": "cosine, centred", "direct_other_sample": "cosine, another sample"}
    colour = _colours(taus)
    for m, row in zip(names, axes):
        for axis, (kind, title) in zip(row, kinds.items()):
            cosine_LL = np.empty((len(layers), len(layers)))
            for pair in health.pairs:
                if (pair.modality, pair.tau) == (m, taus[0]):
                    student, teacher = layers.index(pair.student_layer), layers.index(pair.teacher_layer)
                    cosine_LL[student, teacher] = getattr(pair, kind)
            image = _cells(axis, cosine_LL, layers, layers, "RdBu_r", (-1.0, 1.0))
            axis.set(xlabel="teacher's block", ylabel="student's block")
            axis.set_title(f"{m}: {title}, $\\tau$ = {taus[0]:g}", fontsize=9)
        figure.colorbar(image, ax=row[2])
        for axis, (kind, title) in zip(row[3:], {"student_norm": "norm", "student_rank": "RankMe"}.items()):
            for tau in taus:
                values = [getattr(by_line[m, tau][layer], kind) for layer in layers]
                axis.plot(layers, values, color=colour[tau], marker="o", ms=3, label=f"$\\tau$ = {tau:g}")
            axis.set(xlabel="block", xticks=layers)
            axis.set_ylim(bottom=0)
            axis.set_title(f"{m}: {title} of the student's tokens", fontsize=9)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 3].legend(fontsize=7, frameon=False)
    return figure


def _cells(axis: Axes, cells: np.ndarray, columns: list, rows: list, colours: str, limits: tuple[float, float]) -> Any:
    """Draws a table as colours, with its numbers if it is small."""
    image = axis.imshow(cells, aspect="auto", cmap=colours, vmin=limits[0], vmax=limits[1])
    axis.set_xticks(range(len(columns)), columns, fontsize=7)
    axis.set_yticks(range(len(rows)), [f"{value:g}" for value in rows], fontsize=7)
    if cells.size <= 64:
        for (i, j), value in np.ndenumerate(cells):
            # Text contrasts with the colour of its cell.
            dark = sum(image.cmap(image.norm(value))[:3]) < 1.5
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color="white" if dark else "black")
    return image
