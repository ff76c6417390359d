"""A real set against a generated one, in numbers."""

from dataclasses import dataclass
from typing import Literal

from selfflow.errors import UserError
from selfflow.evaluation.accumulate import Accumulator, Statistics, check_same
from selfflow.evaluation.distances import frechet, kid, precision_recall

# Frechet distances of fewer samples tell more of the number of samples than of the sets (arXiv 1801.01401).
ENOUGH = 10_000
NEIGHBOURS = 3


@dataclass(frozen=True)
class Comparison:
    """Distances of a generated set from a real one; None where the samples do not suffice for it.

    Attributes:
      features: what a Frechet distance on these features is called, such as "FID" or "FD-EffNet".
      identity: of the extractor.
      real, generated: samples seen; None for a reference that does not tell.
      compared: samples (real, generated) in KID, precision and recall.
      kid, kid_error: KID and its standard error.
      precision, recall: with k = 3.
      samples: n of the Frechet distances.
      frechet: of the first n generated samples from the first n real ones, or from a reference's statistics.
      frechet_real: of the next n real samples from the first n: what a perfect model would reach. None for statistics.
      headline: "kid" below 10 000 real or generated samples; "frechet" from there on, where n is 10 000 too; None where
        that number is not to be had.
    """

    features: str
    identity: str
    real: int | None
    generated: int
    compared: tuple[int, int]
    kid: float | None
    kid_error: float | None
    precision: float | None
    recall: float | None
    samples: int
    frechet: float | None
    frechet_real: float | None
    headline: Literal["kid", "frechet"] | None


def compare(real: Accumulator | Statistics, generated: Accumulator) -> Comparison:
    """Compares two sets; the Frechet distance is that of the n the generated set was gathered for, or None.

    Raises:
      UserError: if a set has fewer than two samples, or they hold features of different extractors, or were gathered
        for Frechet distances of different n.
    """
    n = generated.samples
    known = isinstance(real, Accumulator)
    for what, each in (("real", real), ("generated", generated)):
        if isinstance(each, Accumulator) and each.count < 2:
            raise UserError(f"{what}: {each.count} samples, which are no set to compare; give more")
    if known:
        check_same(generated, real, "the real set")
        if real.samples != n:
            raise UserError(
                f"Frechet distances of {real.samples} real and {n} generated samples depend on the numbers: "
                "gather both for the same n"
            )
    kernel = manifold = distance = between = None
    if known and min(len(real.kept), len(generated.kept)) > NEIGHBOURS:
        kernel = kid(real.kept, generated.kept)
        manifold = precision_recall(real.kept, generated.kept, NEIGHBOURS)
    if generated.first.count == n:
        mean, covariance = generated.first.mean, generated.first.covariance
        if not known:
            distance = frechet(real.mean, real.covariance, mean, covariance)
        elif real.first.count == n:
            distance = frechet(real.first.mean, real.first.covariance, mean, covariance)
    if known and real.second.count == n:
        first, second = real.first, real.second
        between = frechet(first.mean, first.covariance, second.mean, second.covariance)
    many = min(real.count if known else ENOUGH, generated.count, n) >= ENOUGH
    headline = "frechet" if many else "kid"
    if (distance if many else kernel) is None:
        headline = None
    return Comparison(
        features=generated.features,
        identity=generated.identity,
        real=real.count if known else None,
        generated=generated.count,
        compared=(len(real.kept) if known else 0, len(generated.kept)),
        kid=kernel and kernel.value,
        kid_error=kernel and kernel.error,
        precision=manifold and manifold.precision,
        recall=manifold and manifold.recall,
        samples=n,
        frechet=distance,
        frechet_real=between,
        headline=headline,
    )
