import tracemalloc

import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.representation.probes.ridge import STRENGTHS, ridge_probe
from selfflow.representation.probes.split import Split
from tests.conftest import mentions
from tests.representation.test_probes import splits


def linear(random, n):
    x = random.standard_normal((n, 10)).astype(np.float32)
    return x, np.stack([x[:, 0] - 2 * x[:, 1], x[:, 2]], -1) + 0.1 * random.standard_normal((n, 2))


def wide(random, n):
    x = random.standard_normal((n, 300))
    return x, x[:, :3].sum(-1) + random.standard_normal(n)


def test_it_finds_what_is_there_and_nothing_else():
    train, validation, test = splits(linear)
    found = ridge_probe(train, validation, test)
    assert found.r2.test > 0.98
    predicted = found.predict(test.x)
    r2 = 1 - np.sum((test.y - predicted) ** 2) / np.sum((test.y - test.y.mean(0)) ** 2)
    assert found.r2.test == pytest.approx(r2, abs=1e-10)
    noise = lambda random, n: (random.standard_normal((n, 50)), random.standard_normal(n))
    assert ridge_probe(*splits(noise)).r2.test < 0.05


def test_strength_is_chosen_on_validation():
    """With more features than samples an unregularised fit is useless; validation must find a stronger one."""
    found = ridge_probe(*splits(wide, (150, 150, 1000)))
    assert found.r2.test > 0.15 and found.chosen > STRENGTHS[0]


@pytest.mark.parametrize("make", [wide, linear])
def test_it_agrees_with_scikit_learn(make):
    from sklearn.linear_model import Ridge

    train, validation, test = splits(make)
    mean, deviation = train.x.mean(0), train.x.std(0)
    pooled = lambda model, s: model.score((s.x - mean) / deviation, s.y)
    if make is linear:  # two targets, whose R^2 scikit-learn averages
        pooled = lambda model, s: (
            1 - np.sum((s.y - model.predict((s.x - mean) / deviation)) ** 2) / np.sum((s.y - s.y.mean(0)) ** 2)
        )
    best = max(
        (pooled(model, validation), pooled(model, test), strength)
        for strength in STRENGTHS
        for model in [Ridge(alpha=strength * 400).fit((train.x - mean) / deviation, train.y)]
    )
    found = ridge_probe(train, validation, test)
    assert (found.r2.validation, found.r2.test, found.chosen) == pytest.approx(best, abs=1e-6)


def test_features_may_be_constant_large_or_small():
    train, validation, test = splits(linear)
    expected = ridge_probe(train, validation, test).r2.test
    scale = 10.0 ** np.arange(-8, 12, 2)
    worse = lambda s: s._replace(x=np.concatenate([s.x * scale, np.full((len(s.x), 1), 1e6)], 1))
    found = ridge_probe(*map(worse, (train, validation, test)))
    assert found.r2.test == pytest.approx(expected, abs=1e-5)
    assert found.weights[-1].tolist() == [0, 0]


def test_parts_make_the_same_whole_in_little_memory():
    parts = lambda seed: (Split(*linear(np.random.default_rng([seed, i]), 2000)) for i in range(20))
    whole = [Split(*map(np.concatenate, zip(*((p.x, p.y) for p in parts(seed))))) for seed in range(3)]
    expected = ridge_probe(*whole)
    tracemalloc.start()
    found = ridge_probe(*map(parts, range(3)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-9, atol=1e-12)
    assert found.r2 == pytest.approx(expected.r2, abs=1e-12)
    assert peak < 1.5e6  # a whole split is 4 MB in float64


def test_hostile_numbers_are_named():
    train, validation, test = splits(linear, (50, 50, 50))
    broken = validation.x.copy()
    broken[3, 1] = np.nan
    for changes, words in (
        ({"validation": validation._replace(x=broken)}, "validation features sample 3 NaN 1 50"),
        ({"test": test._replace(y=np.full(50, np.inf))}, "test targets float64 [50] infinity"),
        ({"train": train._replace(y=np.full(50, "a"))}, "train targets <U1 [50]"),
        ({"test": test._replace(y=np.full((50, 2), 3.3))}, "test targets 50 same"),
        ({"validation": validation._replace(x=validation.x[:, :9])}, "validation [9, 2] [10, 2]"),
        ({"test": test._replace(y=test.y[:, 0])}, "test [10, 1] [10, 2]"),
        ({"validation": iter(())}, "validation no samples"),
        (
            {"train": iter([train._replace(ids=np.arange(50))]), "test": test._replace(ids=np.arange(49, 99))},
            "train test 1 49",
        ),
    ):
        with pytest.raises(UserError, match=mentions(words)):
            ridge_probe(**{"train": train, "validation": validation, "test": test} | changes)
