"""The flow-matching loss, and the yardstick to read it by."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from selfflow.noise import LogitNormalTau, UniformTau


def flow_error(
    velocity: dict[str, Float[Array, "B N P"]], target: dict[str, Float[Array, "B N P"]]
) -> dict[str, Float[Array, "B N"]]:
    """Mean over a token's elements of (v - (eps - x0))^2, per modality (arXiv 2603.06507)."""
    return {m: jnp.mean(jnp.square(velocity[m] - target[m]), axis=-1) for m in velocity}


def yardstick(tau: UniformTau | LogitNormalTau) -> float:
    """The flow loss of the best per-channel linear guess on whitened latents; a model above it learned no structure.

    E[1 / (1 - 2 tau + 2 tau^2)] over p(tau), where var(eps - x0) - cov(eps - x0, x_tau)^2 / var(x_tau)
    is the expression for independent x0 and eps of variance 1; pi / 2 for uniform tau.
    """
    u = (np.arange(100_000) + 0.5) / 100_000
    t = np.asarray(tau.quantile(jnp.asarray(u)), np.float64)
    return float(np.mean(1 / (1 - 2 * t + 2 * t**2)))
