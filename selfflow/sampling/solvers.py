"""Solvers of the ODE and the SDE from noise to data, given a velocity.

Every solver is one loop over a decreasing grid of taus, whose program contains the model once for any number of steps.
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

# tau of the last step of Euler-Maruyama: at tau = 0 the score is undefined.
LAST_TAU = 0.04


def time_grid(steps: int, shift: float = 1.0, start: float = 1.0, last: float | None = None) -> np.ndarray:
    """Returns the grid of taus from `start` down to 0, float64 [steps + 1].

    Args:
      steps: number of steps.
      shift: sigma in tau' = sigma tau / (1 + (sigma - 1) tau), which maps a uniform grid; above 1 steps are short near
        noise (arXiv 2403.03206, section 5.3.2).
      start: first tau; 1 is noise.
      last: tau at which the last step begins, if fixed; earlier steps are then spaced from `start` to it.

    Raises:
      ValueError: if there is no such grid.
    """
    if steps < 1 or shift <= 0 or not 0 < start <= 1 or (last is not None and (steps < 2 or not 0 < last < start)):
        raise ValueError(f"no grid has steps {steps}, shift {shift}, start {start} and last {last}")

    def inverse(tau: float) -> float:
        return tau / (shift - (shift - 1) * tau)

    if last is None:
        uniform = np.linspace(inverse(start), 0.0, steps + 1)
    else:
        uniform = np.append(np.linspace(inverse(start), inverse(last), steps), 0.0)
    return shift * uniform / (1 + (shift - 1) * uniform)


def euler(velocity: Velocity, noise: Tokens, taus: np.ndarray) -> Tokens:
    """Integrates dx / dtau = v(x, tau) by Euler steps.

    Args:
      velocity: (x, tau) -> predicted eps - x0, of the structure of x.
      noise: x at the first tau.
      taus: decreasing grid [steps + 1]; the model is evaluated at all taus except the last.

    Returns:
      x at the last tau.
    """

    def step(x, at):
        tau, size = at
        return jax.tree.map(lambda a, v: a - size * v, x, velocity(x, tau)), None

    return jax.lax.scan(step, noise, _float32(taus[:-1], -np.diff(taus)))[0]


def heun(velocity: Velocity, noise: Tokens, taus: np.ndarray) -> Tokens:
    """Integrates dx / dtau = v(x, tau) by Heun's second-order method; the last step is an Euler step.

    A step evaluates the velocity at its two ends and moves along their mean; the last step, which ends at tau = 0,
    evaluates it once (arXiv 2206.00364, algorithm 1): 2 steps - 1 evaluations.

    Args, returns: as `euler`.
    """
    steps = len(taus) - 1
    # One iteration is one evaluation, at the start or the end of a step, so that the loop holds the model once.
    # second: whether it is at the end. step: the number of its step. Both [2 steps - 1].
    second = np.tile([False, True], steps)[:-1]
    step = np.repeat(np.arange(steps), 2)[:-1]

    def evaluate(carry, at):
        # x: where the velocity is evaluated. start, first: the start of the step and the velocity there.
        x, start, first = carry
        tau, size, second = at
        v = velocity(x, tau)
        # After an evaluation at the start, x is the end of an Euler step; after one at the end, the start of the next.
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
      taus: decreasing grid [steps + 1]; the paper uses `time_grid(steps, last=LAST_TAU)`.
      noises: z of every noisy step: the structure of x with a leading axis of length steps - 1.
      keys_B: alternatively a key per sample, from which z is drawn; z of sample i depends only on `keys_B[i]`.

    Returns:
      x at the last tau.

    Raises:
      ValueError: if there are fewer than 2 steps, if both or none of `noises` and `keys_B` are given, or if `noises`
        have another number of steps.
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
            # The last step has no noise: any value here is multiplied by 0.
            return jax.tree.map(lambda z: jnp.asarray(z)[jnp.minimum(i, noisy - 1)], noises)
        return _normal(jax.vmap(lambda key: jax.random.fold_in(key, i))(keys_B), x)

    def step(x, at):
        i, tau, size, noise_scale = at

        def move(a, v, z):
            # By tau s = -(x + (1 - tau) v) there is no division by tau.
            return a - (a + (2 - tau) * v) * size + noise_scale * z

        return jax.tree.map(move, x, velocity(x, tau), draw(i, x)), None

    # sqrt(2 tau d), computed in float64; 0 for the last step.
    size = -np.diff(taus)
    noise_scale = np.append(np.sqrt(2 * taus[:-1] * size)[:-1], 0.0)
    return jax.lax.scan(step, noise, (jnp.arange(steps), *_float32(taus[:-1], size, noise_scale)))[0]


# Grids are computed in float64 and enter the compiled loop in float32.
def _float32(*arrays: np.ndarray) -> tuple[Float[Array, "steps"], ...]:
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


def _normal(keys_B: Key[Array, "B"], x: Tokens) -> Tokens:
    """Draws normal noise with the structure of x [B, ...]; the noise of a sample depends only on its key."""
    leaves, structure = jax.tree.flatten(x)
    noise = []
    for number, leaf in enumerate(leaves):
        # Defaults bind the variables of this iteration.
        def draw(key, number=number, leaf=leaf):
            return jax.random.normal(jax.random.fold_in(key, number), leaf.shape[1:], leaf.dtype)

        noise.append(jax.vmap(draw)(keys_B))
    return jax.tree.unflatten(structure, noise)


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
      condition: condition of the samples, such as labels [B].
      null: the condition of unconditional samples, of the same structure.
      scale: scale of the guidance; 1 disables it, 0 ignores the condition.
      low, high: ends of the interval.

    Returns:
      (x, tau) -> velocity, for solvers; tau is a scalar.
    """

    def call(x, tau):
        conditional = velocity(x, tau, condition)

        def guide(x, conditional):
            return jax.tree.map(lambda v_null, v: v_null + scale * (v - v_null), velocity(x, tau, null), conditional)

        # Outside of the interval the model is evaluated once only.
        return jax.lax.cond((tau >= low) & (tau <= high), guide, lambda x, conditional: conditional, x, conditional)

    return call
