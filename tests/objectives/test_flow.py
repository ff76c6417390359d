import numpy as np
import pytest

from selfflow.noise import LogitNormalTau, UniformTau
from selfflow.objectives.flow import linear_baseline


def test_linear_baseline_of_uniform_tau_is_half_pi():
    assert linear_baseline(UniformTau()) == pytest.approx(np.pi / 2, rel=1e-4)


@pytest.mark.parametrize("tau", [UniformTau(shift=3.0), LogitNormalTau(mean=0.5)])
def test_linear_baseline_is_what_the_best_linear_guess_costs(tau):
    """Least squares on simulated whitened data, level by level."""
    random = np.random.default_rng(0)
    levels = np.asarray(tau.quantile((np.arange(200) + 0.5) / 200))
    x, eps = random.standard_normal((2, 200, 20_000))
    noisy = (1 - levels[:, None]) * x + levels[:, None] * eps
    v = eps - x
    slope = (v * noisy).sum(1) / (noisy**2).sum(1)
    assert linear_baseline(tau) == pytest.approx(np.mean((v - slope[:, None] * noisy) ** 2), rel=0.01)


def test_the_linear_baseline_of_latents_that_are_not_white_is_what_the_best_guess_costs():
    """Against least squares on drawn latents: a guess a x_tau + b per channel and noise level."""
    random = np.random.default_rng(0)
    std = np.array([0.3, 1.0, 2.5])
    cost = []
    for t in (np.arange(50) + 0.5) / 50:
        x0 = 4.0 + std * random.standard_normal((20_000, 3))  # the mean of a channel can be guessed for nothing
        eps = random.standard_normal(x0.shape)
        seen, target = (1 - t) * x0 + t * eps, eps - x0
        for c in range(3):
            design = np.stack([seen[:, c], np.ones(len(seen))], axis=1)
            guess = design @ np.linalg.lstsq(design, target[:, c], rcond=None)[0]
            cost.append(np.mean(np.square(guess - target[:, c])))
    assert linear_baseline(UniformTau(), std) == pytest.approx(np.mean(cost), rel=0.01)
    assert linear_baseline(UniformTau(), np.ones(7)) == pytest.approx(np.pi / 2, rel=1e-4)
    assert linear_baseline(UniformTau(), np.zeros(2)) == 0.0
