"""Confidence intervals: over seeds, of paired differences of methods, and over test samples."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from selfflow.errors import UserError

_LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate from n values and its 95 % interval; low and high are None where n is 1."""

    estimate: float
    low: float | None
    high: float | None
    n: int

    def summary(self) -> str:
        """Formats the estimate for a table: 0.512 [0.490, 0.534], n = 5."""
        return f"{_format(self.estimate, self.low, self.high)}, n = {self.n}"


class Paired(NamedTuple):
    """The mean difference of two methods over n seeds, its 95 % interval, and p of no difference (two-sided).

    The interval and p are None where n is 1, and p where all differences are the same.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    n: int

    def summary(self) -> str:
        """Formats the difference for a table: +0.051 [+0.032, +0.070], p = 0.0012, n = 5."""
        p = "" if self.p is None else f", p = {self.p:.2g}"
        return f"{_format(self.difference, self.low, self.high, '+')}{p}, n = {self.n}"


def interval(scores: Sequence[float] | Mapping[int, float]) -> Interval:
    """Computes the mean of a method's scores over seeds and Student's t interval, mean -+ t(n - 1) s / sqrt(n).

    Args:
      scores: scores by seed, or a sequence with one per seed.

    Raises:
      UserError: if there are no scores, or one is not a finite number.
    """
    values = _finite("interval", scores.values() if isinstance(scores, Mapping) else scores)
    return Interval(float(values.mean()), *_t_interval(values), len(values))


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Paired:
    """Applies the paired t test to the differences b - a by seed.

    Seeds that share initialisation, data and noise take out what both methods have in common, so the interval is
    narrower than for two separate means.

    Args:
      a, b: score by seed.

    Raises:
      UserError: if a seed occurs in only one of the two, there are no seeds, or a score is not a finite number.
    """
    from scipy.stats import t

    unpaired = []
    for name, seeds in (("a", a.keys() - b), ("b", b.keys() - a)):
        if seeds:
            unpaired.append(f"{sorted(seeds)} in {name} only")
    if unpaired:
        raise UserError(f"paired: seeds {' and '.join(unpaired)}: run the missing ones, or leave these out")
    differences = _finite("paired", [b[seed] - a[seed] for seed in a])
    low, high = _t_interval(differences)
    # Equal differences have no variance, and no t.
    p, n = None, len(differences)
    error = differences.std(ddof=1) / np.sqrt(n) if n > 1 else 0.0
    if error > 0:
        p = float(2 * t.sf(abs(differences.mean()) / error, n - 1))
    return Paired(float(differences.mean()), low, high, p, n)


class Resampled(NamedTuple):
    """A score on n test samples and its 95 % bootstrap interval over them: of one probe of one run, not of a method."""

    estimate: float
    low: float
    high: float
    n: int

    def summary(self) -> str:
        """Formats the score for a table: 0.512 [0.490, 0.534] over 1024 test samples of this run."""
        return f"{_format(*self[:3])} over {self.n} test samples of this run"


def bootstrap(y: np.ndarray, predicted: np.ndarray, draws: int = 2000, seed: int = 0) -> Resampled:
    """Percentile interval of balanced accuracy over test samples (Efron and Tibshirani, 1993, chapter 13).

    The interval is that of one probe of one run over test samples. It does not contain the variance over seeds, which
    comparisons of methods need: see `interval` and `paired`. The score of a resample depends only on the numbers of
    right and wrong predictions of each class, which are multinomial, so that these are drawn instead of samples.

    Args:
      y, predicted: classes of independent samples [n]; tokens of one clip are not independent.
      draws: number of resamples of n samples. Classes without a sample in a resample are left out of its mean.
      seed: seed of the draws.

    Raises:
      UserError: if there are no samples, or the numbers of samples and predictions differ.
    """
    y, predicted = np.asarray(y), np.asarray(predicted)
    if y.ndim != 1 or not len(y) or y.shape != predicted.shape:
        raise UserError(f"bootstrap: classes of shape {list(y.shape)}, predicted {list(predicted.shape)}: give n each")
    # Counts of right and wrong predictions of each of K classes, and S resamples of them.
    _, index = np.unique(y, return_inverse=True)
    right_wrong_2K = np.stack([np.bincount(index, y == predicted), np.bincount(index, y != predicted)])
    counts = np.random.default_rng(seed).multinomial(len(y), right_wrong_2K.ravel() / len(y), size=draws)
    right_SK, wrong_SK = np.moveaxis(counts.reshape(draws, *right_wrong_2K.shape), 1, 0)
    # Recall of a class without a sample in a resample is 0 here, and not counted in the mean.
    has_samples_SK = right_SK + wrong_SK > 0
    scores_S = np.sum(right_SK / np.maximum(right_SK + wrong_SK, 1), axis=1) / has_samples_SK.sum(axis=1)
    low, high = np.quantile(scores_S, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    right_K, wrong_K = right_wrong_2K
    return Resampled(float(np.mean(right_K / (right_K + wrong_K))), float(low), float(high), len(y))


def _format(value: float, low: float | None, high: float | None, sign: str = "") -> str:
    shown = f"{value:{sign}.3f}"
    return shown if low is None else f"{shown} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _t_interval(values: np.ndarray) -> tuple[float | None, float | None]:
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return None, None  # the variance over seeds is unknown
    half = t.ppf((1 + _LEVEL) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
    return float(values.mean() - half), float(values.mean() + half)


def _finite(what: str, scores) -> np.ndarray:
    values = np.array(list(scores), np.float64)
    if not len(values):
        raise UserError(f"{what}: no scores: give one per seed")
    if not np.isfinite(values).all():
        raise UserError(
            f"{what}: {int((~np.isfinite(values)).sum())} of {len(values)} scores are NaN or infinite: leave those "
            "seeds out"
        )
    return values
