"""Computes metrics of accumulated samples against accumulated real clips."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from selfflow.errors import UserError
from selfflow.evaluation import metrics
from selfflow.evaluation.accumulate import Accumulator, Statistics
from selfflow.evaluation.distances import frechet
from selfflow.evaluation.metrics.metric import FeaturePair, Value
from selfflow.evaluation.samples import SampleAccumulator

# The Frechet distance is biased by a term of order 1 / n, which dominates below this number (arXiv 1801.01401).
MIN_FRECHET_SAMPLES = 10_000

Reference = Mapping[str, Accumulator | Statistics]
"""Features of real samples by the name of the feature space."""


@dataclass(frozen=True)
class Comparison:
    """Distances of a generated set from a real one in one feature space.

    Attributes:
      features: name of the Frechet distance in this space, such as "FID" or "FD-EffNet".
      identity: identity of the extractor.
      real, generated: samples; None for a reference of statistics.
      compared: samples (real, generated) in KID, precision and recall.
      samples: n of the Frechet distances.
      values: values by the name of the metric; metrics that need more samples are left out.
      frechet_real: Frechet distance between the first n real samples and the next n, the value of a perfect model;
        None if there are fewer samples, and for statistics.
      headline: the metric to report: "kid" below 10 000 real or generated samples, otherwise "frechet" with n = 10 000;
        None if that metric has no value.
    """

    features: str
    identity: str
    real: int | None
    generated: int
    compared: tuple[int, int]
    samples: int
    values: dict[str, Value]
    frechet_real: float | None
    headline: Literal["kid", "frechet"] | None

    def to_json(self) -> dict[str, Any]:
        """Returns all fields except the values, as JSON data."""
        fields = asdict(self)
        del fields["values"]
        return fields


def compare(real: Accumulator | Statistics, generated: Accumulator) -> Comparison:
    """Computes all feature metrics of two sets in one feature space.

    Raises:
      UserError: fewer than two samples in a set, features of different extractors, or different n.
    """
    pair = FeaturePair(real, generated)
    values = {}
    for metric in metrics.METRICS:
        if metric.needs == "features":
            value = metric.compute(pair)
            if value is not None:
                values[metric.name] = value

    # Statistics have no features, and their number of samples is unknown.
    n, has_features = generated.samples, isinstance(real, Accumulator)
    frechet_real = None
    if has_features and real.second.count == n:
        first, second = real.first, real.second
        frechet_real = frechet(first.mean, first.covariance, second.mean, second.covariance)
    least = min(real.count if has_features else MIN_FRECHET_SAMPLES, generated.count, n)
    headline = "frechet" if least >= MIN_FRECHET_SAMPLES else "kid"
    return Comparison(
        features=generated.features,
        identity=generated.identity,
        real=real.count if has_features else None,
        generated=generated.count,
        compared=(len(real.kept) if has_features else 0, len(generated.kept)),
        samples=n,
        values=values,
        frechet_real=frechet_real,
        headline=headline if headline in values else None,
    )


@dataclass(frozen=True)
class SampleMetrics:
    """All metrics of a set of samples.

    Attributes:
      values: values by key, such as `kid/LogMel/audio` or `physics/bodies`.
      comparisons: comparisons by the name of the feature space.
    """

    values: dict[str, Value]
    comparisons: dict[str, Comparison]

    def numbers(self) -> dict[str, float]:
        """Returns the finite values and their standard errors by key, for JSON files and `metrics.jsonl`."""
        numbers = {}
        for key, value in self.values.items():
            numbers[key] = value.value
            if value.error is not None:
                name, _, rest = key.partition("/")
                numbers[f"{name}_error/{rest}" if rest else f"{name}_error"] = value.error
        # JSON has no NaN.
        return {key: number for key, number in numbers.items() if math.isfinite(number)}

    def counts(self) -> dict[str, int]:
        """Returns the number of clips behind each value, by key, for metrics that do not apply to all samples."""
        return {key: value.count for key, value in self.values.items() if value.count is not None}


def sample_metrics(reference: Reference, accumulated: SampleAccumulator) -> SampleMetrics:
    """Computes `METRICS` of accumulated samples.

    Args:
      reference: features of real samples; feature spaces without a reference are left out.
      accumulated: accumulated samples.

    Raises:
      UserError: if a metric needs an input other than features, media or clips.
    """
    comparisons, values = {}, {}
    for space, features in accumulated.features.items():
        if space in reference:
            comparisons[space] = compare(reference[space], features)
            # "FD-EffNet video" becomes "EffNet/video".
            suffix = space.removeprefix("FD-").replace(" ", "/")
            for name, value in comparisons[space].values.items():
                values[f"{name}/{suffix}"] = value
    for metric in metrics.METRICS:
        if metric.needs not in ("features", "media", "clips"):
            raise UserError(f"metric {metric.name}: needs is {metric.needs!r}: give 'features', 'media' or 'clips'")
        if metric.needs == "clips" and accumulated.clips is not None and accumulated.clips.tracked:
            values |= metric.compute(accumulated.clips)
        elif metric.needs == "media" and metric.name in accumulated.per_clip:
            known = [value for value in accumulated.per_clip[metric.name] if math.isfinite(value)]
            values[metric.name] = Value(float(np.mean(known)) if known else math.nan, count=len(known))
    return SampleMetrics(values, comparisons)
