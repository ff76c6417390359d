"""From noise to data along the velocity."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

Tokens = TypeVar("Tokens")
Condition = TypeVar("Condition")
Velocity = Callable[[Tokens, Float[Array, ""]], Tokens]

# Where Euler-Maruyama takes its last step: at tau = 0 the score has no value.
LAST_TAU = 0.04


def euler(velocity: Velocity, noise: Tokens, steps: int) -> Tokens:
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


def euler_maruyama(
    velocity: Velocity,
    noise: Tokens,
    steps: int,
    *,
    noises: Tokens | None = None,
    keys_B: Key[Array, "B"] | None = None,
) -> Tokens:
    """Integrates the reverse SDE whose marginals are those of the velocity (arXiv 2401.08740, diffusion 2 tau).

    tau runs over linspace(1, 0.04, steps). Each of the steps - 1 noisy steps of size d = 0.96 / (steps - 1) is
    x <- x + (-v + tau s) d + sqrt(2 tau d) z, where s = -(x + (1 - tau) v) / tau is the score and z standard normal.
    One last step of size 0.04 from tau = 0.04 has the same drift and no noise.

    Args:
      velocity: (x, tau) -> predicted eps - x0, of the structure of x.
      noise: x at tau = 1.
      steps: number of evaluations, at least 2.
      noises: z of every noisy step: the structure of x with a leading axis of length steps - 1.
      keys_B: or a key for each sample, from which z is drawn; sample i's depends on `keys_B[i]` alone.

    Returns:
      x at tau = 0.

    Raises:
      ValueError: if there are fewer than 2 steps, not one of `noises` and `keys_B` is given, or `noises` are of another
        number of steps.
    """
    if steps < 2:
        raise ValueError(f"steps is {steps}: Euler-Maruyama needs at least 2")
    if (noises is None) == (keys_B is None):
        raise ValueError("give either noises or keys_B")
    noisy = steps - 1
    for z in jax.tree.leaves(noises):
        if len(z) != noisy:
            raise ValueError(f"noises of {len(z)} steps: {steps} evaluations have {noisy} noisy steps")

    def draw(i, x):
        if noises is not None:
            # The last step has none: whichever stands here is multiplied by 0.
            return jax.tree.map(lambda z: jnp.asarray(z)[jnp.minimum(i, noisy - 1)], noises)
        return _normal(jax.vmap(lambda key: jax.random.fold_in(key, i))(keys_B), x)

    def step(x, at):
        i, tau, size, noise_scale = at
        # tau s = -(x + (1 - tau) v): no division, whatever tau is.
        move = lambda a, v, z: a - (a + (2 - tau) * v) * size + noise_scale * z
        return jax.tree.map(move, x, velocity(x, tau), draw(i, x)), None

    tau = np.linspace(1.0, LAST_TAU, steps)
    size = np.append(np.full(noisy, (1.0 - LAST_TAU) / noisy), LAST_TAU)
    noise_scale = np.append(np.sqrt(2 * tau * size)[:-1], 0.0)
    # One loop over all steps: the model is compiled once.
    at = (jnp.arange(steps), *(jnp.asarray(a, jnp.float32) for a in (tau, size, noise_scale)))
    return jax.lax.scan(step, noise, at)[0]


def _normal(keys_B: Key[Array, "B"], x: Tokens) -> Tokens:
    leaves, structure = jax.tree.flatten(x)
    draw = lambda number, leaf: jax.vmap(
        lambda key: jax.random.normal(jax.random.fold_in(key, number), leaf.shape[1:], leaf.dtype)
    )(keys_B)
    return jax.tree.unflatten(structure, [draw(number, leaf) for number, leaf in enumerate(leaves)])


def guided(
    velocity: Callable[[Tokens, Float[Array, ""], Condition], Tokens],
    condition: Condition,
    null: Condition,
    scale: float,
    low: float = 0.0,
    high: float = 1.0,
) -> Velocity:
    """The velocity of classifier-free guidance (arXiv 2207.12598) in an interval of tau (arXiv 2404.07724).

    v_null + scale (v_condition - v_null) where low <= tau <= high, which evaluates the model twice, and v_condition
    elsewhere, which evaluates it once.

    Args:
      velocity: (x, tau, condition) -> predicted eps - x0, of the structure of x.
      condition: what to sample, such as labels [B].
      null: the condition that stands for none, of the same form.
      scale: 1 is no guidance, 0 no condition.
      low, high: ends of the interval.

    Returns:
      (x, tau) -> velocity, as solvers take it; tau is a scalar.
    """

    def both(x, tau):
        toward = lambda away, v: away + scale * (v - away)
        return jax.tree.map(toward, velocity(x, tau, null), velocity(x, tau, condition))

    def call(x, tau):
        inside = (tau >= low) & (tau <= high)
        return jax.lax.cond(inside, both, lambda x, tau: velocity(x, tau, condition), x, tau)

    return call
