"""Distances between two sets of features [n, D]: KID, Frechet distance, precision and recall.

Computed in float64, block by block: memory beyond the features themselves does not grow with n.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from selfflow.errors import UserError

_BLOCK = 1024  # rows and columns of a block of kernels or distances: 8 MiB


class Kid(NamedTuple):
    """Kernel distance and its standard error."""

    value: float
    error: float


class PrecisionRecall(NamedTuple):
    """Share of generated samples in the manifold of the real ones, and the converse for real samples."""

    precision: float
    recall: float


def kid(real: Float[np.ndarray, "m D"], generated: Float[np.ndarray, "n D"]) -> Kid:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3 (arXiv 1801.01401).

    The estimate over all pairs of samples is sum k(x, x') / m(m - 1) + sum k(y, y') / n(n - 1) - 2 sum k(x, y) / mn,
    where no sample is paired with itself. torch-fidelity prints the mean over random subsets, a less precise estimate
    of the same quantity, and the standard deviation of a subset of 1 000 samples, which does not shrink as samples are
    added. The error here is the standard error of the value, by the two-sample jackknife: (m - 1) / m sum (d_i - mean
    d)^2 over the estimates d_i without real sample i, plus the same over generated samples. It assumes independent
    samples. It is not too small on average (Efron and Stein, 1981), and about sqrt(2) too large if both sets have the
    same distribution.

    Returns:
      The estimate, which may be negative for similar distributions, and its standard error.

    Raises:
      UserError: fewer than three samples in a set, different widths, or values that are not finite.
    """
    _check(real, generated, 3)
    m, n = len(real), len(generated)
    # Overflow gives infinity or NaN, which is an error below.
    with np.errstate(over="ignore", invalid="ignore"):
        within_m, _ = _kernel_sums(real, real, within=True)
        within_n, _ = _kernel_sums(generated, generated, within=True)
        across_m, across_n = _kernel_sums(real, generated)
        xx, yy, xy = within_m.sum(), within_n.sum(), across_m.sum()
        value = xx / (m * (m - 1)) + yy / (n * (n - 1)) - 2 * xy / (m * n)
        # Estimates without sample i, up to terms that are the same for all i: these do not change the variance.
        without_m = (xx - 2 * within_m) / ((m - 1) * (m - 2)) - 2 * (xy - across_m) / ((m - 1) * n)
        without_n = (yy - 2 * within_n) / ((n - 1) * (n - 2)) - 2 * (xy - across_n) / (m * (n - 1))
        variance = (m - 1) * without_m.var() + (n - 1) * without_n.var()
    if not np.isfinite(variance):
        raise UserError("kid: features are so large that their third powers overflow; scale them down")
    return Kid(float(value), float(np.sqrt(variance)))


def frechet(
    mean_a: Float[np.ndarray, "D"],
    covariance_a: Float[np.ndarray, "D D"],
    mean_b: Float[np.ndarray, "D"],
    covariance_b: Float[np.ndarray, "D D"],
) -> float:
    """Squared Frechet distance of two Gaussians, |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) (arXiv 1706.08500).

    tr (A B)^(1/2) is the sum of the singular values of R^T S, where A = R R^T and B = S S^T; eigenvalues that are 0 up
    to rounding are left out of R and S. Nothing is added to the diagonals, so that the formula also holds for singular
    covariances, which result from few samples or constant features.

    Raises:
      UserError: if shapes disagree or a value is not finite.
    """
    mean_a, covariance_a = np.asarray(mean_a, np.float64), np.asarray(covariance_a, np.float64)
    mean_b, covariance_b = np.asarray(mean_b, np.float64), np.asarray(covariance_b, np.float64)
    for mean, covariance in ((mean_a, covariance_a), (mean_b, covariance_b)):
        if mean.ndim != 1 or covariance.shape != mean.shape * 2 or not len(mean):
            raise UserError(
                f"frechet: a mean of shape {mean.shape} with a covariance of shape {covariance.shape}: give [D], [D, D]"
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise UserError("frechet: a mean or a covariance has NaN or infinity; check the features")
    if mean_a.shape != mean_b.shape:
        raise UserError(f"frechet: features of {len(mean_a)} and {len(mean_b)} channels: use the same extractor")
    cross = np.linalg.svd(_root(covariance_a).T @ _root(covariance_b), compute_uv=False).sum()
    traces = np.trace(covariance_a), np.trace(covariance_b)
    # Rounding may leave a value just below 0 for equal Gaussians.
    return max(0.0, float(np.sum((mean_a - mean_b) ** 2) + traces[0] + traces[1] - 2 * cross))


def precision_recall(
    real: Float[np.ndarray, "m D"], generated: Float[np.ndarray, "n D"], k: int = 3
) -> PrecisionRecall:
    """Improved precision and recall (arXiv 1904.06991), as computed by the evaluator of ADM (arXiv 2105.05233).

    The manifold of a set is the union of balls around its samples, whose radius is the distance to the k-th nearest
    other sample. Precision is the share of generated samples in the manifold of the real ones, and recall the share of
    real samples in the manifold of the generated ones. Both depend on the sample counts: compare values of equal counts
    only.

    Raises:
      UserError: k samples or fewer in a set, different widths, or values that are not finite.
    """
    _check(real, generated, k + 1)
    # Centring does not change distances and reduces rounding.
    centre_D = real.mean(axis=0, dtype=np.float64)
    real_radii_m, generated_radii_n = _radii(real, centre_D, k), _radii(generated, centre_D, k)
    in_real_n, in_generated_m = np.zeros(len(generated), bool), np.zeros(len(real), bool)
    for rows, x_md in _blocks(real):
        for columns, y_nd in _blocks(generated):
            distances_mn = _squared_distances(x_md - centre_D, y_nd - centre_D)
            in_generated_m[rows] |= (distances_mn <= generated_radii_n[columns]).any(axis=1)
            in_real_n[columns] |= (distances_mn <= real_radii_m[rows, None]).any(axis=0)
    return PrecisionRecall(float(in_real_n.mean()), float(in_generated_m.mean()))


def check_features(features: np.ndarray, what: str) -> None:
    """Raises `UserError` unless features are finite floats [n, D].

    Args:
      features: any array.
      what: name of the set, for the message.
    """
    if features.ndim != 2 or not features.shape[1] or features.dtype.kind != "f":
        raise UserError(f"{what}: features are {features.dtype} of shape {list(features.shape)}; give floats [n, D]")
    finite_n = np.isfinite(features).all(axis=1)
    if not finite_n.all():
        raise UserError(
            f"{what}: features of sample {int(np.argmin(finite_n))} hold NaN or infinity, and {int((~finite_n).sum())} "
            f"of {len(features)} samples do; check the samples and the metrics of the run"
        )


def _check(real: np.ndarray, generated: np.ndarray, least: int) -> None:
    for what, features in (("real", real), ("generated", generated)):
        check_features(features, what)
        if len(features) < least:
            raise UserError(f"{what}: {len(features)} samples, but at least {least} are required; give more")
    if real.shape[1] != generated.shape[1]:
        raise UserError(
            f"real features have {real.shape[1]} channels and generated ones {generated.shape[1]}: "
            "use the same extractor for both"
        )


def _blocks(features: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields blocks of rows of the features, as slices and as float64 arrays."""
    for start in range(0, len(features), _BLOCK):
        rows = slice(start, start + _BLOCK)
        yield rows, features[rows].astype(np.float64)


def _kernel_sums(a: np.ndarray, b: np.ndarray, within: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Sums of k(a_i, b_j) over j and over i, [len(a)] and [len(b)]; `within` leaves out i = j."""
    over_b, over_a = np.zeros(len(a)), np.zeros(len(b))
    for rows, x in _blocks(a):
        for columns, y in _blocks(b):
            kernel = (x @ y.T / x.shape[1] + 1) ** 3
            if within and rows == columns:
                np.fill_diagonal(kernel, 0)
            over_b[rows] += kernel.sum(axis=1)
            over_a[columns] += kernel.sum(axis=0)
    return over_b, over_a


def _radii(features: np.ndarray, centre_D: np.ndarray, k: int) -> np.ndarray:
    """Squared distance from each sample to its k-th nearest neighbour, [n]."""
    radii = np.empty(len(features))
    for rows, x in _blocks(features):
        nearest = np.empty((len(x), 0))
        for _, y in _blocks(features):
            nearest = np.hstack([nearest, _squared_distances(x - centre_D, y - centre_D)])
            # The k + 1 nearest include the sample itself, at distance 0.
            if nearest.shape[1] > k + 1:
                nearest = np.partition(nearest, k, axis=1)[:, : k + 1]
        radii[rows] = nearest.max(axis=1)
    return radii


def _squared_distances(x_md: np.ndarray, y_nd: np.ndarray) -> np.ndarray:
    norms_mn = np.sum(x_md**2, axis=1)[:, None] + np.sum(y_nd**2, axis=1)
    distances_mn = norms_mn - 2 * (x_md @ y_nd.T)
    # The difference of equal vectors is rounding noise, which must not depend on their position in a block.
    return np.where(distances_mn > 1e-13 * norms_mn, distances_mn, 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Returns R [D, rank] with R R^T = covariance."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    nonzero = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, nonzero] * np.sqrt(values[nonzero])
