"""Probes of one target: fitted on train, selected on validation, scored on test."""

from typing import Literal, NamedTuple

import numpy as np

from selfflow.representation.probes.attentive import attentive_probe
from selfflow.representation.probes.linear import linear_probe
from selfflow.representation.probes.logistic import few_shot, logistic_probe
from selfflow.representation.probes.neighbours import knn_probe
from selfflow.representation.probes.ridge import ridge_probe
from selfflow.representation.probes.split import Score, Split
from selfflow.representation.probes.targets import Target
from selfflow.representation.statistics import bootstrap

ProbeName = Literal["logistic", "linear", "knn", "attentive", "few-shot"]
CLASSIFIERS = {"logistic": logistic_probe, "linear": linear_probe, "knn": knn_probe, "attentive": attentive_probe}
_SHOTS = 5


class ProbeResult(NamedTuple):
    """Scores of one target.

    Attributes:
      probe: name of the probe; "ridge" for numbers.
      metric: "balanced_accuracy", or "r2" for numbers.
      setting: strength or number of neighbours chosen on validation; NaN if there is no choice, and for a target that
        is the mean of several probes.
      score: scores on test and validation; validation is NaN for probes that do not use it.
      low, high: 95 % bootstrap interval of the test score over test samples; NaN unless it is one balanced accuracy.
      chance: score of a constant prediction.
    """

    probe: str
    metric: Literal["balanced_accuracy", "r2"]
    setting: float
    score: Score
    low: float
    high: float
    chance: float


def fit_probe(target: Target, probe: ProbeName, splits: list[list[Split]]) -> ProbeResult:
    """Fits the probes of a target.

    Args:
      target: classes are read by `probe`, numbers by ridge regression.
      probe: name of the probe.
      splits: splits of train, validation and test, each with one `Split` per part of the target (see `ProbeLabels.of`),
        whose scores are averaged.

    Raises:
      UserError: for samples that a probe cannot be fitted to.
    """
    train, validation, test = splits
    nan = float("nan")
    if target.kind != "class":
        regressed = [ridge_probe(*parts) for parts in zip(train, validation, test)]
        score = _mean_score([result.r2 for result in regressed])
        # R^2 compares with the mean of the split, which is the best constant prediction.
        return ProbeResult("ridge", "r2", _setting(regressed), score, nan, nan, chance=0.0)

    # A constant prediction has recall 1 for one class and 0 for the others, whatever their frequencies.
    chance = float(np.mean([1 / len(np.unique(part.y)) for part in test]))
    if probe == "few-shot":
        means = [few_shot(a, b, (_SHOTS,))[_SHOTS].mean for a, b in zip(train, test)]
        score = Score(test=float(np.mean(means)), validation=nan)
        return ProbeResult(probe, "balanced_accuracy", _SHOTS, score, nan, nan, chance)

    classified = [CLASSIFIERS[probe](*parts) for parts in zip(train, validation, test)]
    low, high = nan, nan
    # Parts share clips, so their errors are not independent, and their mean has no interval.
    if len(classified) == 1:
        _, low, high, *_ = bootstrap(test[0].y, classified[0].predicted)
    score = _mean_score([result.balanced for result in classified])
    return ProbeResult(probe, "balanced_accuracy", _setting(classified), score, low, high, chance)


def _setting(results: list) -> float:
    """The setting chosen on validation; NaN if there is none, or one for each of several probes."""
    return float("nan") if len(results) > 1 or results[0].chosen is None else results[0].chosen


def _mean_score(scores: list[Score]) -> Score:
    test, validation = zip(*scores)
    return Score(test=float(np.mean(test)), validation=float(np.mean(validation)))
