import numpy as np
import pytest

from selfflow.data.collisions.targets import body_in_token, clip_targets
from selfflow.representation.probes import Split, classify, classify_with_trees, regress


def splits(make, sizes=(400, 200, 1000)):
    random = np.random.default_rng(0)
    return [Split(*make(random, n)) for n in sizes]


def test_probes_find_what_is_there():
    def separable(random, n):
        y = random.integers(0, 3, n)
        return np.eye(3)[y] * 4 + random.standard_normal((n, 3)), y

    assert classify(*splits(separable)).test > 0.95
    assert classify_with_trees(*splits(separable)).test > 0.95

    def linear(random, n):
        x = random.standard_normal((n, 10))
        return x, np.stack([x[:, 0] - 2 * x[:, 1], x[:, 2]], -1) + 0.1 * random.standard_normal((n, 2))

    assert regress(*splits(linear)).test > 0.98


def test_probes_find_nothing_where_there_is_nothing():
    noise = lambda random, n: (random.standard_normal((n, 50)), random.integers(0, 4, n))
    found = classify(*splits(noise)).test
    assert abs(found - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 1000)
    numbers = lambda random, n: (random.standard_normal((n, 50)), random.standard_normal(n))
    assert regress(*splits(numbers)).test < 0.05


def test_accuracy_is_balanced():
    """A probe that always names the common class is no better than chance."""
    rare = lambda random, n: (random.standard_normal((n, 2)), (random.random(n) < 0.05).astype(int))
    assert classify(*splits(rare)).test == pytest.approx(0.5, abs=0.05)


def test_strength_is_chosen_on_validation():
    """With more features than samples an unregularised fit is useless; validation must find a stronger one."""

    def wide(random, n):
        x = random.standard_normal((n, 300))
        return x, x[:, :3].sum(-1) + random.standard_normal(n)

    assert regress(*splits(wide, (150, 150, 1000))).test > 0.15


def test_regression_agrees_with_scikit_learn():
    from sklearn.linear_model import Ridge

    train, validation, test = splits(lambda r, n: ((x := r.standard_normal((n, 5))), x[:, 0] + r.standard_normal(n)))
    mean, deviation = train.x.mean(0), train.x.std(0)
    best = max(
        (
            (
                model.score((validation.x - mean) / deviation, validation.y),
                model.score((test.x - mean) / deviation, test.y),
            )
            for strength in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
            for model in [Ridge(alpha=strength * 400).fit((train.x - mean) / deviation, train.y)]
        )
    )
    found = regress(train, validation, test)
    assert (found.validation, found.test) == pytest.approx(best, abs=1e-6)


def test_targets_of_a_clip():
    record = {
        "material": 2,
        "count": 2,
        "shapes": np.array([0, 2, -1, -1]),
        "contacts": {"time": np.zeros(5)},
        "positions": np.full((25, 4, 2), 0.0),
    }
    record["positions"][:, 0] = [10, 20]  # right 10, down 20: upper left token of 2 x 2, whose centre is (16, 16)
    record["positions"][:, 1] = [60, 50]
    found = clip_targets(record)
    assert found == {
        "material": 2,
        "count": 2,
        "shape/circle": 1,
        "shape/square": 0,
        "shape/triangle": 1,
        "contacts": 5.0,
    }
    holds, offset = body_in_token(record, (25, 2, 2))
    assert holds[:2].tolist() == [0, 3] and len(holds) == 50
    np.testing.assert_array_equal(offset[:2], [[-6, 4], [12, 2]])
