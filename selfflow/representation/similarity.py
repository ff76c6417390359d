"""Similarity of two representations of the same samples: linear CKA, CKNNA and mutual nearest neighbours.

The measures take arrays [n, D1] and [n, D2] of the same n samples in the same order. They are computed in
float64 on all samples. Time grows with n^2 for measures with neighbours, memory with n.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from selfflow.errors import UserError
from selfflow.representation.features.extract import Features

_BLOCK = 1024  # rows of similarities at a time: 80 MB for n = 10 000
_ROUNDING = 1e-6  # float32 features that differ by less, relative to their size, differ by their rounding


def linear_cka(a: Float[np.ndarray, "n D1"], b: Float[np.ndarray, "n D2"], debiased: bool = False) -> float:
    """Linear centred kernel alignment, HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = a a^T (arXiv 1905.00414).

    With the biased HSIC this is |a^T b|^2 / (|a^T a| |b^T b|) of centred features, in Frobenius norms. It is 1 for
    features that are alike up to rotation, isotropic scale and translation, and for independent ones far above 0
    where there are not many more samples than channels: about sqrt(D1 D2 / ((n + D1) (n + D2))) for white noise.
    Debiased, with the unbiased HSIC (Song et al., JMLR 13, 2012, equation 5), it is about 0 for independent features,
    also below. Memory is that of the features in float64 and of a matrix [D1, D2].

    Args:
      a, b: features of the same samples.
      debiased: whether to use the unbiased HSIC.

    Raises:
      UserError: fewer than 2 samples, or than 4 debiased, another number in `a` than in `b`, features that are not
        finite or the same for all samples; debiased, samples that are all equally far from each other.
    """
    x, y = map(_centred, _checked(a, b, 4 if debiased else 2))
    hsic = _unbiased_hsic if debiased else _biased_hsic
    return _normalised(hsic(x, y), hsic(x, x), hsic(y, y))


def mutual_knn(a: Float[np.ndarray, "n D1"], b: Float[np.ndarray, "n D2"], k: int = 10) -> float:
    """Mutual k-NN alignment: the share of a sample's k nearest others that `a` and `b` agree on (arXiv 2405.07987).

    Nearness is the cosine, as there: samples are scaled to length 1 and not centred. From 0 to 1; about k / (n - 1)
    for independent features, so compare only what was computed with the same n and k. The paper also clips features
    at a quantile of their absolute values beforehand, which is left to the caller.

    Args:
      a, b: features of the same samples.
      k: number of neighbours.

    Raises:
      UserError: fewer than k + 1 samples, another number in `a` than in `b`, features that are not finite, the same for
        all samples, or 0 in all channels of a sample.
    """
    x, y = map(_unit, _checked(a, b, _least(k)))
    return len(_shared(_neighbours(x, k), _neighbours(y, k))) / (len(x) * k)


def cknna(
    a: Float[np.ndarray, "n D1"],
    b: Float[np.ndarray, "n D2"],
    k: int = 10,
    form: Literal["released", "paper"] = "released",
) -> float:
    """Centred kernel nearest-neighbour alignment (arXiv 2405.07987), CKA over pairs that are near in both.

    Align(K, L) / sqrt(Align(K, K) Align(L, L)), where K and L are cosines and a pair (i, j) counts if j is among the k
    nearest others of i in both. What Align is has two published forms, whose values differ by up to a factor:
      `released`: that of the authors' code, which the figures of other papers come from. The unbiased HSIC of K and L
        with all other pairs set to 0, by the formula for symmetric matrices, which these are not: exchanging `a` and
        `b` moves the value, by 0.006 in a case of 60 samples and hardly for hundreds. Their code adds 1e-6 to the
        denominator, this function does not.
      `paper`: that of equation 16, the sum over those pairs of (K_ij - mean_l K_il) (L_ij - mean_l L_il).
    With k = n - 1 the first is the debiased CKA of features of length 1. Independent features give about k / (n - 1)
    or less.

    Args:
      a, b: features of the same samples.
      k: number of neighbours; 10 in most figures.
      form: which of the two definitions of Align to use.

    Raises:
      UserError: as `mutual_knn`; fewer than 4 samples; features so alike for all samples, or so few for k, that they do
        not align with themselves.
    """
    if form not in ("released", "paper"):
        raise UserError(f"cknna: form is {form!r}; give released or paper")
    x, y = map(_unit, _checked(a, b, max(4, _least(k))))
    align = _released if form == "released" else _of_paper
    near_x, near_y = _neighbours(x, k), _neighbours(y, k)
    return _normalised(
        align(x, y, _shared(near_x, near_y)),
        align(x, x, _shared(near_x, near_x)),
        align(y, y, _shared(near_y, near_y)),
    )


def layer_similarity(
    a: tuple[Features, str], b: tuple[Features, str], measure: Callable[[np.ndarray, np.ndarray], float]
) -> Float[np.ndarray, "La Lb"]:
    """A measure of the features after each block of `a` (down) and those after each block of `b` (across).

    Args:
      a, b: features of the same clips, means over tokens, and which of their modalities; of one network or of two.
        Features of another encoder are compared as `Features(ids, {}, {1: {modality: [n, D]}}, {}, {})`.
      measure: one of the above.

    Raises:
      UserError: if the clips are not the same in the same order, and as the measure.
    """
    (first, m), (second, n) = a, b
    if first.ids != second.ids:
        i = next((i for i, (x, y) in enumerate(zip(first.ids, second.ids)) if x != y), None)
        differ = f"sample {i} is {first.ids[i]!r} and {second.ids[i]!r}" if i is not None else "one holds more"
        raise UserError(
            f"features of {len(first.ids)} and {len(second.ids)} different samples ({differ}): give "
            "features of the same samples in the same order"
        )
    values = np.empty((len(first.layers), len(second.layers)))
    for i, down in enumerate(first.layers.values()):
        for j, across in enumerate(second.layers.values()):
            values[i, j] = measure(down[m], across[n])
    return values


def _checked(a: np.ndarray, b: np.ndarray, least: int) -> list[np.ndarray]:
    arrays = []
    for which, features in (("first", a), ("second", b)):
        if features.ndim != 2 or not features.shape[1] or features.dtype.kind not in "fiu":
            raise UserError(
                f"{which} features are {features.dtype} of shape {list(features.shape)}; give numbers [n, D]"
            )
        x = features.astype(np.float64)
        finite_n = np.isfinite(x).all(axis=1)
        if not finite_n.all():
            raise UserError(
                f"{which} features of sample {int(np.argmin(finite_n))} hold NaN or infinity, and those of "
                f"{int((~finite_n).sum())} of {len(x)} samples do; look at the numbers of the run"
            )
        # A scale that keeps squares of squares finite; similarity does not depend on it.
        arrays.append(x / (np.abs(x).max(initial=0.0) or 1.0))
    if len(a) != len(b):
        raise UserError(f"{len(a)} samples in the first features and {len(b)} in the second: give the same samples")
    if len(a) < least:
        raise UserError(f"{len(a)} samples, and at least {least} are needed: give more, or fewer neighbours")
    for which, x in zip(("first", "second"), arrays):
        if np.linalg.norm(_centred(x)) <= _ROUNDING * np.linalg.norm(x):
            raise UserError(f"{which} features are the same for all {len(x)} samples: their similarity is undefined")
    return arrays


def _least(k: int) -> int:
    if k < 1:
        raise UserError(f"k is {k}: give at least 1 neighbour")
    return k + 1


def _centred(x: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n D"]:
    return x - x.mean(axis=0)


def _unit(x: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n D"]:
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    if not norm.all():
        raise UserError(f"features of sample {int(np.argmin(norm))} are all 0: it has no direction and no neighbours")
    unit = x / norm
    if np.linalg.norm(_centred(unit)) <= _ROUNDING * np.sqrt(len(x)):
        raise UserError(f"features of all {len(x)} samples have the same direction: nearest neighbours are undefined")
    return unit


def _normalised(across: float, within_a: float, within_b: float) -> float:
    if min(within_a, within_b) <= 0:
        raise UserError("features do not align with themselves: give more samples, fewer neighbours or other features")
    # Two roots, since the product of the two may overflow.
    return float(across / np.sqrt(within_a) / np.sqrt(within_b))


def _neighbours(x: Float[np.ndarray, "n D"], k: int) -> Int[np.ndarray, "n*k"]:
    """Pairs i n + j of each sample i and its k nearest others j, sorted; the first of equally near ones."""
    n = len(x)
    pairs = []
    for start in range(0, n, _BLOCK):
        similar_bn = x[start : start + _BLOCK] @ x.T
        rows = np.arange(len(similar_bn))
        similar_bn[rows, start + rows] = -np.inf  # a sample is not its own neighbour
        kth_b1 = np.partition(similar_bn, n - k, axis=1)[:, n - k, None]
        # If several samples are as near as the k-th, the last of them are dropped.
        near_bn, equal_bn = similar_bn >= kth_b1, similar_bn == kth_b1
        for row in np.flatnonzero(near_bn.sum(axis=1) > k):
            last = np.flatnonzero(equal_bn[row])
            near_bn[row, last[len(last) - (near_bn[row].sum() - k) :]] = False
        i, j = np.nonzero(near_bn)
        pairs.append((start + i) * n + j)
    return np.concatenate(pairs)


def _shared(pairs_a: Int[np.ndarray, "p"], pairs_b: Int[np.ndarray, "q"]) -> Int[np.ndarray, "r"]:
    return np.intersect1d(pairs_a, pairs_b, assume_unique=True)


def _of_paper(x: np.ndarray, y: np.ndarray, pairs: Int[np.ndarray, "p"]) -> float:
    i, j = np.divmod(pairs, len(x))
    # <x_i, x_j> - mean_l <x_i, x_l>

    def above(z: np.ndarray) -> np.ndarray:
        return _products(z, i, z - z.mean(axis=0), j)

    return float(np.sum(above(x) * above(y)))


def _released(x: np.ndarray, y: np.ndarray, pairs: Int[np.ndarray, "p"]) -> float:
    """n (n - 3) times the unbiased HSIC of the kernels, of which only `pairs` are not 0."""
    n = len(x)
    i, j = np.divmod(pairs, n)
    kernel_x, kernel_y = _products(x, i, x, j), _products(y, i, y, j)
    # tr(KL) multiplies K_ij by L_ji, and (j, i) need not be a pair where (i, j) is one.
    _, there, back = np.intersect1d(pairs, j * n + i, assume_unique=True, return_indices=True)
    trace = np.sum(kernel_x[there] * kernel_y[back])
    # 1'K and L1, of which 1'KL1 is the product.
    columns, rows = np.bincount(j, kernel_x, n), np.bincount(i, kernel_y, n)
    return _song(trace, kernel_x.sum(), kernel_y.sum(), columns @ rows, n)


def _products(x: np.ndarray, i: np.ndarray, y: np.ndarray, j: np.ndarray) -> Float[np.ndarray, "p"]:
    """<x_i, y_j> of every pair."""
    out = np.empty(len(i))
    for start in range(0, len(i), _BLOCK):
        block = slice(start, start + _BLOCK)
        out[block] = np.einsum("pd,pd->p", x[i[block]], y[j[block]])
    return out


def _biased_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """(n - 1)^2 times the biased HSIC of linear kernels of centred features."""
    return np.sum(np.square(x.T @ y))


def _unbiased_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """n (n - 3) times the unbiased HSIC of linear kernels, without forming them."""
    # The diagonals of K = x x^T and L = y y^T are set to 0: their part is subtracted from tr(KL) = |x^T y|^2 and from
    # the sums of rows, x (x^T 1).
    diagonal_x, diagonal_y = np.sum(x**2, axis=1), np.sum(y**2, axis=1)
    trace = np.sum(np.square(x.T @ y)) - diagonal_x @ diagonal_y
    rows_x = x @ x.sum(axis=0) - diagonal_x
    rows_y = y @ y.sum(axis=0) - diagonal_y
    return _song(trace, rows_x.sum(), rows_y.sum(), rows_x @ rows_y, len(x))


def _song(trace: float, sum_x: float, sum_y: float, sum_product: float, n: int) -> float:
    """tr(KL) + 1'K1 1'L1 / ((n - 1) (n - 2)) - 2 1'KL1 / (n - 2) of kernels without their diagonals."""
    terms = np.array([trace, sum_x * sum_y / ((n - 1) * (n - 2)), -2 * sum_product / (n - 2)])
    # Samples that are all equally far from each other, as corners of a simplex, leave nothing but rounding.
    return float(terms.sum()) if abs(terms.sum()) > 1e-12 * np.abs(terms).max() else 0.0
