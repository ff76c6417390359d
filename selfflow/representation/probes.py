"""Probes: what can be read off features linearly. Strength of regularisation is chosen on validation."""

import warnings
from typing import NamedTuple

import numpy as np

_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)


class Split(NamedTuple):
    """Features [n, D] and targets [n] or [n, K] of one split."""

    x: np.ndarray
    y: np.ndarray


class Score(NamedTuple):
    """A probe's score on the test split, and on the validation split, by which it was chosen."""

    test: float
    validation: float


def classify(train: Split, validation: Split, test: Split) -> Score:
    """Balanced accuracy of multinomial logistic regression (scikit-learn) on standardised features.

    The L2 strength is the one that is best on validation; chance is one over the number of classes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from threadpoolctl import threadpool_limits

    train, validation, test = _standardised(train, validation, test)
    best = Score(-np.inf, -np.inf)
    for strength in _STRENGTHS:
        probe = LogisticRegression(C=strength, max_iter=200)
        # One thread: products this small spend most of their time waiting for a second.
        with warnings.catch_warnings(), threadpool_limits(1):
            # Weakly regularised fits may stop early; validation then prefers another strength.
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe.fit(train.x, train.y)
        scores = [balanced_accuracy_score(split.y, probe.predict(split.x)) for split in (test, validation)]
        if scores[1] > best.validation:
            best = Score(*map(float, scores))
    return best


def classify_with_trees(train: Split, validation: Split, test: Split) -> Score:
    """Balanced accuracy of gradient-boosted trees (scikit-learn), for few features that interact."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import balanced_accuracy_score
    from threadpoolctl import threadpool_limits

    # Its threads wait for each other on every small node: on busy cores one alone is many times faster.
    with threadpool_limits(1):
        probe = HistGradientBoostingClassifier(max_iter=100, random_state=0).fit(train.x, train.y)
        return Score(*(float(balanced_accuracy_score(s.y, probe.predict(s.x))) for s in (test, validation)))


def regress(train: Split, validation: Split, test: Split) -> Score:
    """R^2, pooled over targets, of ridge regression on standardised features; strength chosen on validation."""
    columns = lambda split: Split(split.x, split.y.reshape(len(split.y), -1).astype(np.float64))
    train, validation, test = _standardised(columns(train), columns(validation), columns(test))
    mean = train.y.mean(axis=0)
    gram, cross = train.x.T @ train.x / len(train.x), train.x.T @ (train.y - mean) / len(train.x)
    values, vectors = np.linalg.eigh(gram)
    best = Score(-np.inf, -np.inf)
    for strength in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        weights = vectors @ ((vectors.T @ cross) / (np.maximum(values, 0) + strength)[:, None])
        scores = [_r2(split.y, split.x @ weights + mean) for split in (test, validation)]
        if scores[1] > best.validation:
            best = Score(*scores)
    return best


def _r2(y: np.ndarray, predicted: np.ndarray) -> float:
    return float(1 - np.sum((y - predicted) ** 2) / np.sum((y - y.mean(axis=0)) ** 2))


def _standardised(*splits: Split) -> list[Split]:
    mean, deviation = splits[0].x.mean(axis=0), splits[0].x.std(axis=0)
    deviation = np.where(deviation > 1e-8, deviation, 1.0)
    return [Split((s.x - mean) / deviation, s.y) for s in splits]
