"""From noise to data along the velocity.

Every solver walks down a grid of taus in one loop that holds the model once, whatever the number of steps.
"""

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


def time_grid(steps: int, shift: float = 1.0, start: float = 1.0, last: float | None = None) -> np.ndarray:
    """The taus that a solver visits, from `start` down to 0, in float64 [steps + 1].

    Args:
      steps: number of steps.
      shift: sigma in tau' = sigma tau / (1 + (sigma - 1) tau), which maps a uniform grid; above 1 the steps are short
        near noise (arXiv 2403.03206, section 5.3.2).
      start: where to begin; 1 is noise.
      last: the tau of the last step, if it is not to follow from the others: these are then spaced from `start` to it.

    Raises:
      ValueError: if these make no grid.
    """
    if steps < 1 or shift <= 0 or not 0 < start <= 1 or (last is not None and (steps < 2 or not 0 < last < start)):
        raise ValueError(f"no grid has steps {steps}, shift {shift}, start {start} and last {last}")
    uniform = lambda tau: tau / (shift - (shift - 1) * tau)
    if last is None:
        even = np.linspace(uniform(start), 0.0, steps + 1)
    else:
        even = np.append(np.linspace(uniform(start), uniform(last), steps), 0.0)
    return shift * even / (1 + (shift - 1) * even)


def euler(velocity: Velocity, noise: Tokens, taus: np.ndarray) -> Tokens:
    """Integrates dx / dtau = v(x, tau) by Euler steps.

    Args:
      velocity: (x, tau) -> predicted eps - x0, of the structure of x.
      noise: x at the first tau.
      taus: the grid, falling, [steps + 1]; the model is evaluated at all but the last.

    Returns:
      x at the last tau.
    """

    def step(x, at):
        tau, size = at
        return jax.tree.map(lambda a, v: a - size * v, x, velocity(x, tau)), None

    return jax.lax.scan(step, noise, _float32(taus[:-1], -np.diff(taus)))[0]


def heun(velocity: Velocity, noise: Tokens, taus: np.ndarray) -> Tokens:
    """Integrates dx / dtau = v(x, tau) by Heun's method of second order, with a last step of Euler.

    A step evaluates the velocity at its two ends and goes along their mean; the last one, whose end is tau = 0,
    once (arXiv 2206.00364, algorithm 1): 2 steps - 1 evaluations.

    Args, returns: as `euler`.
    """
    steps = len(taus) - 1
    # One turn of the loop is one evaluation, at the start of a step or at its end, so that the model stands in it once.
    second = np.tile([False, True], steps)[:-1]
    step = np.repeat(np.arange(steps), 2)[:-1]

    def evaluate(carry, at):
        x, start, first = carry
        tau, size, second = at
        v = velocity(x, tau)
        base = jax.tree.map(lambda a, b: jnp.where(second, b, a), x, start)
        slope = jax.tree.map(lambda a, b: jnp.where(second, (a + b) / 2, a), v, first)
        return (jax.tree.map(lambda a, b: a - size * b, base, slope), base, v), None

    at = (*_float32(taus[step + second], -np.diff(taus)[step]), jnp.asarray(second))
    zeros = jax.tree.map(jnp.zeros_like, noise)
    return jax.lax.scan(evaluate, (noise, noise, zeros), at)[0][0]


def euler_maruyama(
    velocity: Velocity,
    noise: Tokens,
    taus: np.ndarray,
    *,
    noises: Tokens | None = None,
    keys_B: Key[Array, "B"] | None = None,
) -> Tokens:
    """Integrates the reverse SDE whose marginals are those of the velocity (arXiv 2401.08740, diffusion 2 tau).

    Each step of size d but the last is noisy: x <- x + (-v + tau s) d + sqrt(2 tau d) z, where
    s = -(x + (1 - tau) v) / tau is the score and z standard normal. The last step has the same drift and no noise.

    Args:
      velocity: (x, tau) -> predicted eps - x0, of the structure of x.
      noise: x at the first tau.
      taus: the grid, falling, [steps + 1]; that of the paper is `time_grid(steps, last=LAST_TAU)`.
      noises: z of every noisy step: the structure of x with a leading axis of length steps - 1.
      keys_B: or a key for each sample, from which z is drawn; sample i's depends on `keys_B[i]` alone.

    Returns:
      x at the last tau.

    Raises:
      ValueError: if there are fewer than 2 steps, not one of `noises` and `keys_B` is given, or `noises` are of another
        number of steps.
    """
    steps = len(taus) - 1
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

    size = -np.diff(taus)
    noise_scale = np.append(np.sqrt(2 * taus[:-1] * size)[:-1], 0.0)
    return jax.lax.scan(step, noise, (jnp.arange(steps), *_float32(taus[:-1], size, noise_scale)))[0]


def _float32(*arrays: np.ndarray) -> tuple[Float[Array, "steps"], ...]:
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


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

    def call(x, tau):
        toward = velocity(x, tau, condition)

        def guide(x, toward):
            return jax.tree.map(lambda away, v: away + scale * (v - away), velocity(x, tau, null), toward)

        return jax.lax.cond((tau >= low) & (tau <= high), guide, lambda x, toward: toward, x, toward)

    return call
