"""Figures that compare methods seed by seed."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfflow.representation.comparison import Method
from selfflow.representation.statistics import Interval

_LEAST = 0.02  # minimum height of a panel, so that a difference of one or two samples looks small


def comparison_figure(panels: Mapping[str, Sequence[Method]]) -> Figure:
    """Plots scores of methods by seed, and below them the paired differences to the baseline.

    A dot is a run and a line joins runs of one seed; bars are 95 % t intervals over seeds.

    Args:
      panels: methods by title of the panel, from `compare_methods`.
    """
    most = max(len(methods) for methods in panels.values())
    figure = Figure(figsize=((0.75 * most + 1.2) * len(panels) + 0.3, 5.0), layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False, height_ratios=(3, 2))
    for (title, methods), scores, differences in zip(panels.items(), *axes):
        # For each seed, the positions and scores of the methods that have it.
        dots: dict[int, tuple[list[int], list[float]]] = {}
        for i, method in enumerate(methods):
            for seed, score in method.scores.items():
                places, scores_of_seed = dots.setdefault(seed, ([], []))
                places.append(i)
                scores_of_seed.append(score)
        for shade, (seed, (places, scores_of_seed)) in enumerate(sorted(dots.items())):
            # The brightest sixth of the colour map is too pale on white.
            colour = matplotlib.colormaps["viridis"](shade / max(1, len(dots) - 1) * 0.85)
            scores.plot(places, scores_of_seed, marker="o", ms=3.5, lw=0.6, color=colour, label=f"seed {seed}")
        baseline = next(i for i, method in enumerate(methods) if method.difference is None)
        for i, method in enumerate(methods):
            _bar(scores, i + 0.22, method.mean)
            difference = method.difference
            if difference is not None:
                _bar(differences, i, Interval(difference.difference, difference.low, difference.high, difference.n))
        differences.axhline(0, color="0.6", lw=1, ls=(0, (1, 2)))
        differences.annotate("baseline", (baseline, 0), (0, 4), textcoords="offset points", ha="center", fontsize=7)
        differences.set_ylabel("difference")
        scores.set_title(title, fontsize=9)
        scores.set_ylabel("score")
        for axis in (scores, differences):
            names = [method.name.replace("_", "\n") if axis is differences else "" for method in methods]
            axis.set_xticks(range(len(methods)), names, fontsize=7)
            axis.set_xlim(-0.5, len(methods) - 0.5)
            low, high = axis.get_ylim()
            missing = max(0.0, _LEAST - (high - low)) / 2
            axis.set_ylim(low - missing, high + missing)
            axis.ticklabel_format(axis="y", useOffset=False)
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", alpha=0.25, lw=0.5)
    axes[0, 0].legend(fontsize=6, frameon=False)
    return figure


def loss_curves(runs: Mapping[str, Any]) -> Figure:
    """Plots flow losses of runs by step, one panel per modality: medians over 20 logged steps, and dots for single
    steps.

    Args:
      runs: opened runs by name.
    """
    metrics, keys = {}, set()
    for name, run in runs.items():
        metrics[name] = run.metrics()
        for row in metrics[name]:
            keys.update(row)
    kinds = sorted(key for key in keys if re.fullmatch(r"flow_loss/[^/]+", key))
    figure = Figure(figsize=(4.2 * len(kinds) + 0.6, 3.4), layout="constrained")
    axes = figure.subplots(1, len(kinds), squeeze=False)[0]
    shades = dict(zip(runs, matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(runs)))))
    for axis, kind in zip(axes, kinds):
        for name, rows in metrics.items():
            logged = [(row["step"], row[kind]) for row in rows if kind in row]
            if not logged:
                continue  # an arm without this modality
            steps, values = np.array(logged).T
            wide = min(20, len(steps))
            # Medians, since losses of single batches at high noise levels are far above the others.
            medians = np.median(np.lib.stride_tricks.sliding_window_view(values, wide), axis=1)
            axis.plot(steps, values, ".", ms=2, alpha=0.3, color=shades[name])
            axis.plot(steps[wide - 1 :], medians, lw=1.3, color=shades[name], label=name)
        axis.set(title=kind, xlabel="step", yscale="log")
        axis.title.set_fontsize(9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
        axis.legend(fontsize=7, frameon=False)
    return figure


def _bar(axis: Axes, x: float, interval: Interval) -> None:
    errors = None
    if interval.low is not None:
        errors = [[interval.estimate - interval.low], [interval.high - interval.estimate]]
    axis.errorbar(x, interval.estimate, errors, fmt="D", ms=4, color="black", capsize=3, lw=1.2)
