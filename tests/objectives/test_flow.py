import numpy as np
import pytest

from selfflow.noise import LogitNormalTau, UniformTau
from selfflow.objectives.flow import yardstick


def test_yardstick_of_uniform_tau_is_half_pi():
    assert yardstick(UniformTau()) == pytest.approx(np.pi / 2, rel=1e-4)


@pytest.mark.parametrize("tau", [UniformTau(shift=3.0), LogitNormalTau(mean=0.5)])
def test_yardstick_is_what_the_best_linear_guess_costs(tau):
    """Least squares on simulated whitened data, level by level."""
    random = np.random.default_rng(0)
    levels = np.asarray(tau.quantile((np.arange(200) + 0.5) / 200))
    x, eps = random.standard_normal((2, 200, 20_000))
    noisy = (1 - levels[:, None]) * x + levels[:, None] * eps
    v = eps - x
    slope = (v * noisy).sum(1) / (noisy**2).sum(1)
    assert yardstick(tau) == pytest.approx(np.mean((v - slope[:, None] * noisy) ** 2), rel=0.01)
