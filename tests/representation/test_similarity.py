"""Likeness of representations against the released estimators, slow loops over the published formulas, and theory.

`tests/goldens/similarity.npz` holds two small pairs of features and what the estimators of the authors of arXiv
2405.07987 (github.com/minyoungg/platonic-rep, metrics.py at 07ef02a) give for them: cka, unbiased_cka, mutual_knn and
cknna, run with torch in float64, for the latter two on features of length 1, with the 1e-6 in denominators left out.
"""

import math
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from selfflow.errors import UserError
from selfflow.representation import similarity
from selfflow.representation.similarity import cknna, linear_cka, mutual_knn
from tests.conftest import mentions

RECORDED = dict(np.load(Path(__file__).parents[1] / "goldens" / "similarity.npz"))
CASES = ("few", "many")
MEASURES = {
    "cka": linear_cka,
    "debiased": lambda a, b: linear_cka(a, b, debiased=True),
    "mutual": lambda a, b: mutual_knn(a, b, 3),
    "cknna": lambda a, b: cknna(a, b, 3),
    "cknna of the paper": lambda a, b: cknna(a, b, 3, form="paper"),
}


def recorded(case):
    return (RECORDED[f"{case}/{name}"] for name in ("a", "b", "k"))


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    monkeypatch.setattr(similarity, "_BLOCK", 16)
    # Products this small spend most of their time waiting for a second thread.
    with threadpool_limits(1):
        yield


@pytest.mark.parametrize("case", CASES)
def test_measures_are_those_of_the_released_estimators(case):
    a, b, k = recorded(case)
    expect = lambda name: pytest.approx(float(RECORDED[f"{case}/{name}"]), rel=1e-9)
    assert linear_cka(a, b) == expect("linear_cka")
    assert linear_cka(a, b, debiased=True) == expect("linear_cka_debiased")
    assert mutual_knn(a, b, k) == expect("mutual_knn")
    assert cknna(a, b, k) == expect("cknna")
    assert cknna(b, a, k) == expect("cknna_swapped")


# The formulas, term by term, in plain Python.


def kernel(x):
    return [[math.fsum(u * v for u, v in zip(p, q)) for q in x.tolist()] for p in x.tolist()]


def ratio(align, a, b):
    return align(a, b) / math.sqrt(align(a, a) * align(b, b))


def biased_hsic(x, y):
    """sum_ij of the kernels centred in rows and columns, (n - 1)^2 times equation 3 of arXiv 1905.00414."""

    def centred(k):
        n = len(k)
        row, column = [sum(r) / n for r in k], [sum(k[i][j] for i in range(n)) / n for j in range(n)]
        return [[k[i][j] - row[i] - column[j] + sum(row) / n for j in range(n)] for i in range(n)]

    k, w = centred(kernel(x)), centred(kernel(y))
    return math.fsum(k[i][j] * w[j][i] for i in range(len(k)) for j in range(len(k)))


def unbiased(k, w):
    """Equation 5 of Song et al. (JMLR 13, 2012) without n (n - 3), of any two matrices."""
    n = len(k)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    trace = math.fsum(k[i][j] * w[j][i] for i, j in pairs)
    sums = math.fsum(k[i][j] for i, j in pairs) * math.fsum(w[i][j] for i, j in pairs)
    chain = math.fsum(k[i][j] * w[j][q] for i, j in pairs for q in range(n) if q != j)
    return trace + sums / ((n - 1) * (n - 2)) - 2 * chain / (n - 2)


def near(k_matrix, i, k):
    """The k nearest others of sample i."""
    return set(sorted((j for j in range(len(k_matrix)) if j != i), key=lambda j: -k_matrix[i][j])[:k])


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def alpha(x, y, k):
    """Equation 17 of arXiv 2405.07987."""
    kx, ky = kernel(x), kernel(y)
    return [[float(j in near(kx, i, k) & near(ky, i, k)) for j in range(len(kx))] for i in range(len(kx))]


def released(k):
    def align(x, y):
        weight = alpha(x, y, k)
        masked = lambda m: [[w * v for w, v in zip(*rows)] for rows in zip(weight, m)]
        return unbiased(masked(kernel(x)), masked(kernel(y)))

    return align


def of_paper(k):
    def align(x, y):
        """Equation 16."""
        weight, kx, ky = alpha(x, y, k), kernel(x), kernel(y)
        n = len(kx)
        above = lambda m, i, j: m[i][j] - sum(m[i]) / n
        return math.fsum(weight[i][j] * above(kx, i, j) * above(ky, i, j) for i in range(n) for j in range(n))

    return align


@pytest.mark.parametrize("k", [2, 3, 7])
def test_measures_are_the_published_formulas(k):
    a, b, _ = (x.astype(np.float64) for x in recorded("few"))
    expect = lambda align, x, y: pytest.approx(ratio(align, x, y), rel=1e-9)
    assert linear_cka(a, b) == expect(biased_hsic, a, b)
    assert linear_cka(a, b, debiased=True) == expect(lambda x, y: unbiased(kernel(x), kernel(y)), a, b)
    u, v = unit(a), unit(b)
    assert mutual_knn(a, b, k) == pytest.approx(np.sum(alpha(u, v, k)) / (k * len(a)), rel=1e-12)
    assert cknna(a, b, k) == expect(released(k), u, v)
    assert cknna(a, b, k, form="paper") == expect(of_paper(k), u, v)


def test_all_neighbours_are_debiased_cka_of_features_of_length_1():
    a, b, _ = recorded("many")
    assert cknna(a, b, len(a) - 1) == pytest.approx(linear_cka(unit(a), unit(b), debiased=True), rel=1e-5)
    assert mutual_knn(a, b, len(a) - 1) == 1


@pytest.mark.parametrize("measure", MEASURES)
def test_rotation_and_scale_change_nothing_and_a_stretch_does(measure):
    measure = MEASURES[measure]
    a, b, _ = recorded("many")
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((b.shape[1],) * 2))
    assert measure(a, (b @ turn) * 1e-3) == pytest.approx(measure(a, b), rel=1e-6)
    assert measure(1e150 * a.astype(np.float64), b) == pytest.approx(measure(a, b), rel=1e-6)
    assert measure(a, a) == pytest.approx(1, abs=1e-12)
    assert measure(a, 7.0 * a[:, ::-1]) == pytest.approx(1, abs=1e-12)
    assert abs(measure(a, b * np.logspace(0, 2, b.shape[1])) - measure(a, b)) > 0.01


def test_neighbours_do_not_depend_on_blocks_and_ties_are_the_first(monkeypatch):
    a, b, k = recorded("many")
    found = mutual_knn(a, b, k), cknna(a, b, k)
    monkeypatch.setattr(similarity, "_BLOCK", 7)
    assert (mutual_knn(a, b, k), cknna(a, b, k)) == pytest.approx(found, rel=1e-12)
    corners = np.eye(4)[[0, 1, 2, 3, 0, 1]]  # samples 0 and 4, 1 and 5 are equal; all others are equally far
    assert (similarity._neighbours(corners, 2) % 6).reshape(6, 2).tolist() == [
        [1, 4], [0, 5], [0, 1], [0, 1], [0, 1], [0, 1],
    ]  # fmt: skip


def test_independent_features_give_chance_and_the_known_bias(monkeypatch):
    monkeypatch.setattr(similarity, "_BLOCK", 1024)
    n, p, q, k = 200, 60, 100, 10
    found = {"mutual": [], "cka": [], "debiased": [], "cknna": [], "paper": []}
    for seed in range(6):
        a, b = np.split(np.random.default_rng(seed).standard_normal((n, p + q)), [p], axis=1)
        found["mutual"].append(mutual_knn(a, b, k))
        found["cka"].append(linear_cka(a, b))
        found["debiased"].append(linear_cka(a, b, debiased=True))
        found["cknna"].append(cknna(a, b, k))
        found["paper"].append(cknna(a, b, k, form="paper"))
    mean = {name: np.mean(values) for name, values in found.items()}
    error = {name: np.std(values) / np.sqrt(len(values)) for name, values in found.items()}
    assert abs(mean["mutual"] - k / (n - 1)) < 4 * error["mutual"]
    # m = n - 1 degrees of freedom: E |X^T Y|^2 = m p q, E |X^T X|^2 = m p (m + p + 1).
    bias = np.sqrt(p * q / ((n + p) * (n + q)))
    assert abs(mean["cka"] - bias) < 4 * error["cka"] + 1e-3
    assert abs(mean["debiased"]) < 4 * error["debiased"]
    assert 0 < mean["cknna"] < 1.5 * k / (n - 1) and 0 < mean["paper"] < 1.5 * k / (n - 1)


A, B = np.random.default_rng(3).standard_normal((2, 20, 5))


def broken(x, value):
    return np.where((np.arange(20) == 4)[:, None], value, x)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    "a, b, words",
    [
        (A, B[:19], "20 first 19 second"),
        (A, broken(B, np.nan), "second sample 4 NaN 1 20"),
        (broken(A, np.inf), B, "first sample 4 infinity 1 20"),
        (A, np.ones((20, 5)) + 1e-9 * B, "second all 20"),
        (np.zeros((20, 3)), B, "first all 20"),
        (A[:1], B[:1], "1 samples least"),
        (A[:0], B[:0], "0 samples least"),
        (A[0], B[0], "first float64 [5] [n, D]"),
        (A[:, :0], B, "first float64 [20, 0] [n, D]"),
        (A.astype(str), B, "first <U32 [20, 5] [n, D]"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(measure, a, b, words):
    with pytest.raises(UserError, match=mentions(words)):
        MEASURES[measure](a, b)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: mutual_knn(A, B, 20), "20 samples 21"),
        (lambda: cknna(A, B, 20), "20 samples 21"),
        (lambda: cknna(A[:3], B[:3], 1), "3 samples 4"),
        (lambda: linear_cka(A[:3], B[:3], debiased=True), "3 samples 4"),
        (lambda: linear_cka(np.eye(7), B[:7], debiased=True), "align themselves"),
        (lambda: cknna(B[:7], np.eye(7), 6), "align themselves"),
        (lambda: mutual_knn(A, B, 0), "k 0 1"),
        (lambda: cknna(A, B, 3, form="other"), "form other released paper"),
        (lambda: mutual_knn(broken(A, 0), B, 3), "sample 4 0"),
        (lambda: mutual_knn(np.arange(1, 21)[:, None] * np.ones(3), B, 3), "features 20 direction"),
        (lambda: cknna(np.arange(1, 21)[:, None] * np.ones(3), B, 3), "features 20 direction"),
    ],
)
def test_settings_that_cannot_be_are_refused(call, words):
    with pytest.raises(UserError, match=mentions(words)):
        call()


def test_half_precision_and_integers_are_numbers():
    half = (A * 300).astype(np.float16)
    assert linear_cka(half, B) == pytest.approx(linear_cka(A, B), rel=1e-2)
    assert linear_cka((A * 100).astype(np.int32), B) == pytest.approx(linear_cka(A, B), rel=5e-2)
