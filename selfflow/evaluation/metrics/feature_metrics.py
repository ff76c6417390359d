"""Distances of generated from real samples in a feature space."""

from typing import Literal

from selfflow.evaluation.accumulate import Statistics
from selfflow.evaluation.distances import frechet, kid
from selfflow.evaluation.metrics.metric import FeaturePair, Value


class KID:
    """Kernel distance of all kept features, with its standard error; the headline below 10 000 samples."""

    name = "kid"
    title = "KID"
    better: Literal["lower"] = "lower"
    needs: Literal["features"] = "features"
    unit = "squared maximum mean discrepancy"

    def compute(self, pair: FeaturePair) -> Value | None:
        """See `distances.kid`."""
        if pair.kept is None:
            return None
        distance = kid(*pair.kept)
        return Value(distance.value, distance.error)


class Frechet:
    """Frechet distance between the first n generated and the first n real samples, or the statistics of a reference."""

    name = "frechet"
    title = "FD"
    better: Literal["lower"] = "lower"
    needs: Literal["features"] = "features"
    unit = "squared distance of features, which depends on n"

    def compute(self, pair: FeaturePair) -> Value | None:
        """See `distances.frechet`. None if either set has fewer than n samples."""
        real, first = pair.real, pair.generated.first
        if first.count != pair.generated.samples:
            return None
        if isinstance(real, Statistics):
            return Value(frechet(real.mean, real.covariance, first.mean, first.covariance))
        if real.first.count != real.samples:
            return None
        return Value(frechet(real.first.mean, real.first.covariance, first.mean, first.covariance))


class Precision:
    """Share of generated samples in the manifold of the real ones."""

    name = "precision"
    title = "precision"
    better: Literal["higher"] = "higher"
    needs: Literal["features"] = "features"
    unit = "share of samples"

    def compute(self, pair: FeaturePair) -> Value | None:
        """See `distances.precision_recall`."""
        return None if pair.precision_recall is None else Value(pair.precision_recall.precision)


class Recall:
    """Share of real samples in the manifold of the generated ones."""

    name = "recall"
    title = "recall"
    better: Literal["higher"] = "higher"
    needs: Literal["features"] = "features"
    unit = "share of samples"

    def compute(self, pair: FeaturePair) -> Value | None:
        """See `distances.precision_recall`."""
        return None if pair.precision_recall is None else Value(pair.precision_recall.recall)
