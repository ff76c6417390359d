"""Ridge regression of numbers, from moments of features and targets."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from selfflow.errors import UserError
from selfflow.representation.moments import Moments
from selfflow.representation.probes.split import Score, Split, checked_numbers, refuse_shared

STRENGTHS = tuple(10.0**power for power in range(-5, 4))
_ROWS = 4096


class Regressed(NamedTuple):
    """Result of a probe of numbers.

    Attributes:
      r2: R^2, pooled over targets: one minus the ratio of all squared errors to all squared differences from the means
        of the split.
      weights: weights of unscaled features [D, K].
      offset: intercept [K].
      chosen: strength chosen on validation.
    """

    r2: Score
    weights: np.ndarray
    offset: np.ndarray
    chosen: float

    def predict(self, x: Float[np.ndarray, "... D"]) -> Float[np.ndarray, "... K"]:
        """Predicts targets from features."""
        return np.asarray(x, np.float64) @ self.weights + self.offset


def ridge_probe(
    train: Split | Iterable[Split], validation: Split | Iterable[Split], test: Split | Iterable[Split]
) -> Regressed:
    """Ridge regression on standardised features, its strength chosen on validation by R^2 pooled over targets.

    It minimises the mean squared error plus strength |W|^2 (Hoerl and Kennard, 1970; scikit-learn's `Ridge` with alpha
    = n strength) for strengths in `STRENGTHS`, targets not standardised. Rows are clips, tokens or time steps. Gram
    and cross products are accumulated in float64, and R^2 of a split is computed from them, so that each split is read
    once and memory does not grow with its rows.

    Args:
      train, validation, test: splits with numbers [n] or [n, K], or iterables that yield such splits part by part.

    Raises:
      UserError: see `checked_numbers`; or if a split is empty, or its targets are constant.
    """
    # Moments of features and targets, concatenated.
    streams = {"train": train, "validation": validation, "test": test}
    moments, ids, width = {}, {}, None
    for name, stream in streams.items():
        for part in (stream,) if isinstance(stream, Split) else stream:
            (part,) = checked_numbers(**{name: part})
            shape = part.x.shape[1], part.y.shape[1]
            width = width or shape
            if shape != width:
                raise UserError(
                    f"{name}: features and targets of widths {list(shape)}, and {list(width)} before: take all splits "
                    "from the same layer, with the same targets"
                )
            of_split = moments.setdefault(name, Moments(sum(shape)))
            for start in range(0, len(part.x), _ROWS):
                rows = slice(start, start + _ROWS)
                of_split.add(np.concatenate([part.x[rows], part.y[rows]], axis=1, dtype=np.float64))
            if part.ids is not None:
                ids.setdefault(name, set()).update(part.ids.ravel().tolist())
        if name not in moments:
            raise UserError(f"{name}: no samples: give at least one")
    refuse_shared(ids)
    return _solved(moments, width[0])


def _solved(moments: dict[str, Moments], width: int) -> Regressed:
    """Solves ridge regression for the best strength on validation.

    Args:
      moments: moments of [features, targets], D + K channels, by split.
      width: number of features, D.
    """
    for name, m in moments.items():
        std_K = np.sqrt(np.diag(m.scatter)[width:] / m.count)
        if not (std_K > 1e-9 * np.abs(m.mean[width:])).any():
            raise UserError(f"{name}: targets are the same for all {m.count} samples: R^2 needs numbers that vary")
    train = moments["train"]
    covariance = train.scatter / train.count
    # Scale features, since the penalty applies to weights, and large features need only small weights.
    std_D = np.sqrt(np.diag(covariance)[:width])
    # The variance of a constant feature is rounding error; the feature gets no weight.
    std_D = np.where(std_D > 1e-9 * np.abs(train.mean[:width]), std_D, np.inf)
    # The correlations of features are V diag(e) V^T, and weights of standardised features V (e + strength)^-1 V^T C
    # with the covariances C of features and targets. All strengths share one eigendecomposition.
    values_D, vectors_DD = np.linalg.eigh(covariance[:width, :width] / np.outer(std_D, std_D))
    cross_DK = vectors_DD.T @ (covariance[:width, width:] / std_D[:, None])
    best = None
    for strength in STRENGTHS:
        # Eigenvalues of fewer rows than features are 0 up to rounding, which may be negative.
        weights_DK = vectors_DD @ (cross_DK / (np.maximum(values_D, 0) + strength)[:, None]) / std_D[:, None]
        offset_K = train.mean[width:] - train.mean[:width] @ weights_DK
        score = Score(
            test=_r2(moments["test"], weights_DK, offset_K), validation=_r2(moments["validation"], weights_DK, offset_K)
        )
        if best is None or score.validation > best.r2.validation:
            best = Regressed(score, weights_DK, offset_K, strength)
    return best


def _r2(moments: Moments, weights_DK: np.ndarray, offset_K: np.ndarray) -> float:
    width = len(weights_DK)
    spread = np.trace(moments.scatter[width:, width:])
    # The error y - x W - offset is [x, y] E - offset with E = [-W; I], so that its sum of squares follows from the
    # moments: tr(E^T scatter E) about its mean, and n times the square of the mean.
    error_DK = np.concatenate([-weights_DK, np.eye(len(offset_K))])  # D + K rows
    bias_K = moments.mean @ error_DK - offset_K
    return float(1 - (np.sum(error_DK * (moments.scatter @ error_DK)) + moments.count * np.sum(bias_K**2)) / spread)
