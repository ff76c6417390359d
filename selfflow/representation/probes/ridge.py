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
      r2: R^2, pooled over targets: one minus the sum of all squared errors over that of all squared differences from
        the means of the split.
      weights: of unscaled features [D, K].
      offset: [K].
      chosen: strength chosen on validation.
    """

    r2: Score
    weights: np.ndarray
    offset: np.ndarray
    chosen: float

    def predict(self, x: Float[np.ndarray, "... D"]) -> Float[np.ndarray, "... K"]:
        """Predictions from features."""
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
    """The best strength on validation; `width` is the number of features."""
    for name, m in moments.items():
        stds = np.sqrt(np.diag(m.scatter)[width:] / m.count)
        if not (stds > 1e-9 * np.abs(m.mean[width:])).any():
            raise UserError(f"{name}: targets are the same for all {m.count} samples: R^2 needs numbers that vary")
    train = moments["train"]
    covariance = train.scatter / train.count
    std = np.sqrt(np.diag(covariance)[:width])
    # The variance of a constant feature is rounding; it gets no weight.
    std = np.where(std > 1e-9 * np.abs(train.mean[:width]), std, np.inf)
    # One eigendecomposition serves all strengths.
    values, vectors = np.linalg.eigh(covariance[:width, :width] / np.outer(std, std))
    cross = vectors.T @ (covariance[:width, width:] / std[:, None])
    best = None
    for strength in STRENGTHS:
        weights = vectors @ (cross / (np.maximum(values, 0) + strength)[:, None]) / std[:, None]
        offset = train.mean[width:] - train.mean[:width] @ weights
        score = Score(*(_r2(moments[name], weights, offset) for name in ("test", "validation")))
        if best is None or score.validation > best.r2.validation:
            best = Regressed(score, weights, offset, strength)
    return best


def _r2(moments: Moments, weights: np.ndarray, offset: np.ndarray) -> float:
    width = len(weights)
    spread = np.trace(moments.scatter[width:, width:])
    # y - x W - offset is linear in [x, y], so that the moments give the sum of its squares.
    error = np.concatenate([-weights, np.eye(len(offset))])
    bias = moments.mean @ error - offset
    return float(1 - (np.sum(error * (moments.scatter @ error)) + moments.count * np.sum(bias**2)) / spread)
