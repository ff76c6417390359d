import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.evaluation import distances
from selfflow.evaluation.distances import frechet, kid, precision_recall
from tests.conftest import mentions
from tests.evaluation import made

RECORDED = {name: float(value) for name, value in np.load(made.GOLDENS / "evaluation_distances.npz").items()}


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(axis=0), np.cov(x, rowvar=False)


@pytest.mark.parametrize("case", made.CASES)
def test_distances_are_those_of_torch_fidelity_and_adm(case, monkeypatch):
    monkeypatch.setattr(distances, "_BLOCK", 32)  # so that there are several, and an incomplete one
    real, generated = made.feature_sets(case)
    assert frechet(*moments(real), *moments(generated)) == pytest.approx(RECORDED[f"{case}/frechet"], rel=1e-6)
    found = precision_recall(real, generated)
    assert tuple(found) == pytest.approx((RECORDED[f"{case}/precision"], RECORDED[f"{case}/recall"]), abs=1e-12)
    if case != "unequal":
        assert kid(real, generated).value == pytest.approx(RECORDED[f"{case}/kid"], rel=1e-6)


def brute_kid(real: np.ndarray, generated: np.ndarray) -> float:
    k = lambda a, b: (np.dot(a, b) / len(a) + 1) ** 3
    within = lambda x: np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    return within(real) + within(generated) - 2 * np.mean([k(a, b) for a in real for b in generated])


def test_kid_of_unequal_numbers_and_its_error_are_the_definitions():
    real, generated = (x[:n] for x, n in zip(made.feature_sets("unequal"), (9, 6)))
    without = lambda x, i: np.delete(x, i, axis=0)
    jackknife = lambda values: (len(values) - 1) * np.var(values)
    left_out = [brute_kid(without(real, i), generated) for i in range(9)]
    variance = jackknife(left_out) + jackknife([brute_kid(real, without(generated, i)) for i in range(6)])
    assert kid(real, generated) == pytest.approx((brute_kid(real, generated), np.sqrt(variance)), rel=1e-9)
    assert kid(real.astype(np.float32), generated).value == pytest.approx(brute_kid(real, generated), rel=1e-4)


@pytest.mark.parametrize("apart, m, n", [(0.0, 60, 60), (0.4, 60, 60), (0.5, 40, 80)])
def test_the_standard_error_is_the_std_of_the_estimate(apart, m, n):
    """Of 300 repetitions 95 % lie within 1.96 errors; an error that were a third too small would give 81 %."""
    rng = np.random.default_rng(7)
    found = [kid(rng.standard_normal((m, 8)), rng.standard_normal((n, 8)) + apart) for _ in range(300)]
    values, errors = np.array(found).T
    many = [kid(rng.standard_normal((400, 8)), rng.standard_normal((400, 8)) + apart).value for _ in range(40)]
    truth, scatter = np.mean(many), values.std()
    assert abs(values.mean() - truth) < 4 * scatter / np.sqrt(300)  # unbiased
    assert 0.91 < np.mean(abs(values - truth) < 1.96 * errors)
    ratio = np.sqrt(np.mean(errors**2)) / scatter
    assert (1.2 < ratio < 1.7) if apart == 0 else (0.85 < ratio < 1.25)


def test_the_frechet_distance_of_diagonal_covariances_is_known():
    a, b = np.array([1.0, 4.0, 0.0]), np.array([9.0, 4.0, 1.0])
    found = frechet(np.zeros(3), np.diag(a), np.array([0.0, 2.0, 0.0]), np.diag(b))
    assert found == pytest.approx(4 + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2), rel=1e-12)


def test_few_samples_in_many_channels_are_far_from_others_and_not_from_themselves():
    """Rank 4 of 200, where a matrix square root of the product is unstable."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 200)), rng.standard_normal((5, 200))
    assert frechet(*moments(a), *moments(a)) < 1e-10
    # The trace norm of the product of two factors, without any covariance.
    factors = [(x - x.mean(axis=0)) / 2 for x in (a, b)]
    cross = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + sum(np.sum(f**2) for f in factors) - 2 * cross
    assert frechet(*moments(a), *moments(b)) == pytest.approx(expected, rel=1e-10)


def test_constant_features_are_a_case_like_any_other():
    ones, others = np.ones((6, 4)), np.full((5, 4), 3.7)
    assert frechet(*moments(ones), *moments(ones)) == 0
    assert frechet(*moments(ones), *moments(others)) == pytest.approx(4 * 2.7**2, rel=1e-12)
    assert kid(ones, ones) == (0, 0)
    assert kid(ones, others).value == pytest.approx(2**3 + (3.7**2 + 1) ** 3 - 2 * 4.7**3, rel=1e-12)
    assert precision_recall(others, others) == (1, 1)
    assert precision_recall(ones, others) == (0, 0)


def test_precision_measures_fidelity_and_recall_coverage():
    rng = np.random.default_rng(0)
    real = np.concatenate([rng.standard_normal((100, 3)), rng.standard_normal((100, 3)) + 50])
    found = precision_recall(real, rng.standard_normal((100, 3)))  # one of two modes
    assert found.precision > 0.9 and 0.4 < found.recall < 0.5


@pytest.mark.parametrize("function", [kid, precision_recall])
def test_features_that_cannot_be_compared_are_refused_by_name(function):
    good = np.random.default_rng(0).standard_normal((8, 3))
    nan = good.copy()
    nan[5, 1] = np.nan
    for real, generated, words in [
        (good[:0], good, "real 0 samples"),
        (good, good[:1], "generated 1 samples"),
        (nan, good, "real sample 5 NaN 1 8"),
        (good, good[:, :2], "real 3 channels generated 2"),
        (good, good.astype(int), "generated int64"),
        (good[:, 0], good, "real float64 [8]"),
    ]:
        with pytest.raises(UserError, match=mentions(words)):
            function(real, generated)


def test_frechet_and_kid_refuse_other_shapes_and_values_that_are_not_finite():
    mean, covariance = moments(made.feature_sets("many")[0])
    with pytest.raises(UserError, match=mentions("frechet 16 channels 15")):
        frechet(mean, covariance, mean[1:], covariance[1:, 1:])
    with pytest.raises(UserError, match=mentions("frechet NaN")):
        frechet(mean * np.nan, covariance, mean, covariance)
    with pytest.raises(UserError, match=mentions("frechet mean (16,) covariance (16, 15)")):
        frechet(mean, covariance[:, 1:], mean, covariance)
    with pytest.raises(UserError, match=mentions("kid overflow")):
        kid(np.full((4, 2), 1e200), np.ones((4, 2)))
