import jax.numpy as jnp
import numpy as np
import pytest

from selfflow.representation.collapse import effective_rank
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


def test_effective_rank_counts_directions():
    random = np.random.default_rng(0)
    q, _ = np.linalg.qr(random.standard_normal((200, 16)))
    assert effective_rank(jnp.asarray(q)) == pytest.approx(16, rel=1e-3)
    assert effective_rank(jnp.ones((50, 8))) == pytest.approx(1, abs=0.05)
    x = random.standard_normal((100, 6)) * [10, 5, 2, 1, 1, 0.1]
    s = np.linalg.svd(x, compute_uv=False)
    p = s / s.sum()
    assert effective_rank(jnp.asarray(x)) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-3)
