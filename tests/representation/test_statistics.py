import numpy as np
import pytest
from scipy import stats

from selfflow.errors import UserError
from selfflow.representation.probes.split import balanced_accuracy
from selfflow.representation.statistics import bootstrap, interval, paired
from tests.conftest import mentions


def test_intervals_are_those_of_scipy():
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, 6)) + [[0], [0.7]]
    found = interval(a)
    expected = stats.t.interval(0.95, 5, a.mean(), stats.sem(a))
    assert (found.estimate, found.low, found.high, found.n) == pytest.approx((a.mean(), *expected, 6))
    assert interval(dict(enumerate(a))) == found
    # By seed, whatever the order in which they come.
    found = paired(dict(enumerate(a)), dict(reversed(list(enumerate(b)))))
    test = stats.ttest_rel(b, a)
    expected = test.confidence_interval(0.95)
    assert (found.difference, found.low, found.high, found.p, found.n) == pytest.approx(
        ((b - a).mean(), expected.low, expected.high, test.pvalue, 6)
    )


def test_intervals_have_their_nominal_coverage():
    """2000 sets of five seeds that share much of their noise: the paired interval holds the difference in 95 %."""
    random = np.random.default_rng(0)
    held, narrower = [], []
    for _ in range(2000):
        shared = 3 * random.standard_normal(5)
        a, b = (dict(enumerate(shared + random.standard_normal(5) + shift)) for shift in (0, 0.5))
        found, alone = paired(a, b), interval(b)
        held.append((found.low < 0.5 < found.high, alone.low < 0.5 < alone.high))
        narrower.append(found.high - found.low < alone.high - alone.low)
    error = np.sqrt(0.95 * 0.05 / 2000)
    assert np.mean(held, axis=0) == pytest.approx([0.95, 0.95], abs=4 * error)
    assert np.mean(narrower) > 0.8


def test_one_seed_gives_no_interval():
    assert interval([0.5]) == (0.5, None, None, 1)
    assert paired({3: 0.5}, {3: 0.75}) == (0.25, None, None, None, 1)


def test_equal_differences_give_no_p():
    assert paired({0: 0.5, 1: 0.25}, {0: 0.75, 1: 0.5}) == (0.25, 0.25, 0.25, None, 2)


def test_hostile_scores_are_named():
    for function, arguments, words in (
        (paired, [{0: 1.0, 2: 1.0}, {0: 1.0, 7: 1.0, 9: 1.0}], "paired seeds [2] a [7, 9] b"),
        (paired, [{}, {}], "paired no scores"),
        (interval, [[]], "interval no scores"),
        (interval, [[0.5, np.nan]], "interval 1 2 scores NaN"),
        (paired, [{0: 0.5, 1: np.inf}, {0: 1.0, 1: 1.0}], "paired 1 2 scores NaN"),
        (bootstrap, [[], []], "bootstrap [0]"),
        (bootstrap, [1, 1], "bootstrap []"),
        (bootstrap, [[1, 2], [1]], "bootstrap [2] [1]"),
    ):
        with pytest.raises(UserError, match=mentions(words)):
            function(*arguments)


def test_bootstrap_is_that_of_scipy():
    """Of samples in classes of unlike sizes, some rare: half of the interval hangs on the rare one's few samples."""
    random = np.random.default_rng(0)
    y = random.choice(3, 500, p=[0.6, 0.34, 0.06])
    predicted = np.where(random.random(500) < 0.7, y, 0)
    found = bootstrap(y, predicted)
    expected = stats.bootstrap(
        (y, predicted), balanced_accuracy, n_resamples=2000, method="percentile", paired=True, vectorized=False, rng=1
    ).confidence_interval
    assert found.estimate == pytest.approx(balanced_accuracy(y, predicted)) and found.n == 500
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.008)
    assert bootstrap(y, predicted) == found and bootstrap(y, predicted, seed=1) != found
    assert mentions("500").search(found.summary())
