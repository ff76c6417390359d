"""From noise to data along the velocity."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Tokens = TypeVar("Tokens")


def euler(velocity: Callable[[Tokens, Float[Array, ""]], Tokens], noise: Tokens, steps: int) -> Tokens:
    """Integrates dx / dtau = v(x, tau) from tau = 1 (noise) to 0 (data) in equal Euler steps.

    Args:
      velocity: (x, tau) -> predicted eps - x0, of the structure of x.
      noise: x at tau = 1.
      steps: number of evaluations.

    Returns:
      x at tau = 0.
    """

    def step(x, tau):
        return jax.tree.map(lambda a, v: a - v / steps, x, velocity(x, tau)), None

    taus = 1 - jnp.arange(steps, dtype=jnp.float32) / steps
    return jax.lax.scan(step, noise, taus)[0]
