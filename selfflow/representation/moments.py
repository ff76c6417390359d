"""Moments of features, accumulated batch by batch."""

import numpy as np
from jaxtyping import Float

from selfflow.errors import UserError


class Moments:
    """Count, mean [D] and scatter matrix [D, D] of features, in float64."""

    def __init__(self, width: int):
        self.count = 0
        self.mean = np.zeros(width)
        self.scatter = np.zeros((width, width))

    def add(self, features: Float[np.ndarray, "n D"]) -> None:
        """Adds features of n samples."""
        if not len(features):
            return
        batch = Moments(len(self.mean))
        batch.count = len(features)
        batch.mean = features.mean(axis=0, dtype=np.float64)
        centred_nD = features.astype(np.float64) - batch.mean
        batch.scatter = centred_nD.T @ centred_nD
        self.join(batch)

    def join(self, other: "Moments") -> None:
        """Adds the samples of other moments (Chan, Golub and LeVeque, 1979)."""
        if not other.count:
            return
        # Differences of means instead of sums of squares, which lose precision if means are far above deviations.
        count = self.count + other.count
        difference = other.mean - self.mean
        self.scatter += other.scatter + np.outer(difference, difference) * (self.count * other.count / count)
        self.mean = self.mean + difference * (other.count / count)
        self.count = count

    @property
    def covariance(self) -> Float[np.ndarray, "D D"]:
        """Unbiased covariance, as numpy.cov.

        Raises:
          UserError: fewer than two samples.
        """
        if self.count < 2:
            raise UserError(f"a covariance of {self.count} samples: give at least 2")
        return self.scatter / (self.count - 1)
