"""Probes from scikit-learn: logistic regression, few-shot logistic regression and gradient-boosted trees."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from selfflow.errors import UserError
from selfflow.representation.probes.split import (
    Classified,
    Split,
    accuracy,
    balanced_accuracy,
    checked_classes,
    classified,
    unit_vectors,
)

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def logistic_probe(train: Split, validation: Split, test: Split) -> Classified:
    """Multinomial logistic regression on standardised features, its L2 strength chosen on validation.

    This is the usual comparison of features for few samples, after CLIP (arXiv 2103.00020, appendix A.3). CLIP also
    selects the strength on validation, among 96 values from 1e-6 to 1e6, with 1000 steps on unscaled features, and then
    fits again with validation added. This one minimises |W|^2 / 2 + C sum of cross-entropies with L-BFGS, at most 200
    steps, for C in `STRENGTHS`, each from the weights of the previous one; `chosen` is the C with the best balanced
    accuracy.

    Raises:
      UserError: see `checked_classes`.
    """
    from sklearn.linear_model import LogisticRegression

    train, validation, test = checked_classes(train=train, validation=validation, test=test)
    # Scale channels, since the L2 penalty applies to weights, and large channels need only small weights.
    # Statistics come from train only, so that validation and test do not affect the fit.
    mean_D = train.x.mean(axis=0, dtype=np.float64)
    std_D = train.x.std(axis=0, dtype=np.float64)
    # The deviation of a constant feature is rounding.
    std_D = np.where(std_D > 1e-6 * np.abs(mean_D), std_D, np.inf)

    def standardised(x_nD: np.ndarray) -> np.ndarray:
        return ((x_nD - mean_D) / std_D).astype(np.float32)

    x_train, x_validation, x_test = standardised(train.x), standardised(validation.x), standardised(test.x)
    probe = LogisticRegression(max_iter=200, warm_start=True)
    best, predictions, chosen = -np.inf, None, None
    with _plain_fits():
        for strength in STRENGTHS:
            predicted = probe.set_params(C=strength).fit(x_train, train.y).predict(x_validation)
            score = balanced_accuracy(validation.y, predicted)
            if score > best:
                # Predict now, since the next fit changes the weights.
                best, predictions, chosen = score, (predicted, probe.predict(x_test)), strength
    return classified(validation, test, predictions, chosen)


def tree_probe(train: Split, validation: Split, test: Split) -> Classified:
    """Gradient-boosted trees (scikit-learn, 100 rounds), for few features that interact.

    Raises:
      UserError: see `checked_classes`.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    train, validation, test = checked_classes(train=train, validation=validation, test=test)
    # Threads wait for each other on every small node: on busy cores a single one is many times faster.
    with threadpool_limits(1):
        probe = HistGradientBoostingClassifier(max_iter=100, random_state=0).fit(train.x, train.y)
        return classified(validation, test, (probe.predict(validation.x), probe.predict(test.x)))


class FewShot(NamedTuple):
    """Test scores of probes fitted on k samples of each class.

    Attributes:
      balanced: balanced accuracy of each draw [draws].
      plain: accuracy of each draw [draws].
    """

    balanced: np.ndarray
    plain: np.ndarray

    @property
    def mean(self) -> float:
        """Mean balanced accuracy over draws."""
        return float(self.balanced.mean())

    @property
    def deviation(self) -> float:
        """Standard deviation of balanced accuracy over draws; NaN for one draw."""
        return float(self.balanced.std(ddof=1)) if len(self.balanced) > 1 else float("nan")


def few_shot(
    train: Split, test: Split, shots: tuple[int, ...] = (1, 2, 5, 10), draws: int = 10, seed: int = 0
) -> dict[int, FewShot]:
    """Logistic regression on k samples of each class, drawn several times.

    As in MSN (arXiv 2204.07141, released `logistic_eval.py`): every feature vector is centred over its channels and
    scaled to length 1; logistic regression without intercept, L2 strength 0.00025 over the number of samples (of the
    mean cross-entropy; C = 4000), at most 300 steps. Validation is not used, which would be more than few shots. MSN
    uses cyanure, this function L-BFGS.

    Args:
      train: the samples that are drawn, without replacement in a draw.
      test: scores all draws.
      shots: numbers of samples of each class.
      draws: number of draws.
      seed: seed of the draws. A draw of more shots contains those of fewer.

    Raises:
      UserError: see `checked_classes`; or if a class has fewer samples than shots.
    """
    from sklearn.linear_model import LogisticRegression

    train, test = checked_classes(train=train, test=test)
    classes, counts = np.unique(train.y, return_counts=True)
    if not shots or min(shots) < 1 or draws < 1:
        raise UserError(f"few shots: {shots} of each class, drawn {draws} times: give at least 1 of both")
    if max(shots) > counts.min():
        raise UserError(
            f"train: class {classes[counts.argmin()]} has {counts.min()} samples, fewer than {max(shots)} shots: use "
            "fewer shots or more samples"
        )
    # Normalise each vector separately, since statistics over so few samples would be noise.
    x_train = unit_vectors(train.x - train.x.mean(axis=1, keepdims=True))
    x_test = unit_vectors(test.x - test.x.mean(axis=1, keepdims=True))
    random = np.random.default_rng(seed)
    balanced, plain = np.empty((len(shots), draws)), np.empty((len(shots), draws))
    probe = LogisticRegression(C=4000, max_iter=300, fit_intercept=False)
    with _plain_fits():
        for draw in range(draws):
            # One order for all numbers of shots, so that their scores differ by the shots and not by the samples.
            orders = [random.permutation(np.flatnonzero(train.y == c)) for c in classes]
            for i, k in enumerate(shots):
                rows = np.concatenate([order[:k] for order in orders])
                predicted = probe.fit(x_train[rows], train.y[rows]).predict(x_test)
                balanced[i, draw] = balanced_accuracy(test.y, predicted)
                plain[i, draw] = accuracy(test.y, predicted)
    return {k: FewShot(balanced[i], plain[i]) for i, k in enumerate(shots)}


@contextmanager
def _plain_fits() -> Iterator[None]:
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # One thread: with products this small, threads mostly wait for each other.
    with warnings.catch_warnings(), threadpool_limits(1):
        # Weakly regularised fits may stop early; another strength is then better on validation.
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
