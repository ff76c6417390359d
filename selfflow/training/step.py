"""Training step of any objective.

    draw      = objective.draw(keys, batch)                 all randomness, [B, ...]
    g         = grad objective.loss(params, frozen, batch, keys, draw)
    params   <- optimizer(g)
    frozen   <- objective.update_frozen(frozen, params)     such as ema <- decay ema + (1 - decay) params

As in arXiv 2603.06507, the teacher of a step is the EMA after the previous step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from selfflow.models.placement import BATCH_AXES, constrain
from selfflow.training.objective import Objective
from selfflow.training.state import State


def key_of(seed: int) -> np.ndarray:
    """Returns the raw key data [2] of a seed. As an argument, it lets all seeds share one compiled program."""
    return np.asarray(jax.random.key_data(jax.random.key(seed)))


def sample_keys(noise_seed: int | jax.Array | np.ndarray, step: jax.Array | int, batch_size: int) -> jax.Array:
    """Returns a key for each sample in the batch of a step, independent of how the batch is split.

    Args:
      noise_seed: a seed, or its key data from `key_of`.
      step: number of finished updates.
      batch_size: number of samples in the whole batch.
    """
    # Folding in the step and then the sample makes a key independent of the batch size and the number of parts.
    key = jax.random.key(noise_seed) if isinstance(noise_seed, int) else jax.random.wrap_key_data(noise_seed)
    key = jax.random.fold_in(key, step)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch_size))


def batch_size(batch: Any) -> int:
    """Returns the number of samples in a batch, from the leading axis of its first array."""
    return jax.tree.leaves(batch)[0].shape[0]


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    noise_seed: int,
    accumulate: int = 1,
) -> Callable[[State, Any], tuple[State, dict[str, jax.Array]]]:
    """Returns the update as a function to be compiled.

    Args:
      objective: objective of the run.
      optimizer: the optimizer.
      ema_decay: decay of the objective's moving averages.
      noise_seed: seed of all random draws.
      accumulate: number of parts that a batch is split into, for gradient accumulation.

    Returns:
      A function step(state, batch, key) -> (state, metrics). `key` is the result of `key_of`; as an argument it lets
      runs with different seeds share one compiled program. By default the seed is `noise_seed`. The metrics contain
      `loss`, `gradient_norm` and `skipped`, which is 1 if loss or gradient is not finite. The update is then skipped:
      the state keeps its values, and only counts are incremented. A finite state therefore stays finite.
    """

    def step(state: State, batch: Any, key: Any = noise_seed) -> tuple[State, dict[str, jax.Array]]:
        # Random numbers are drawn for the whole batch, so that the parts of gradient accumulation use the same
        # normalisation of loss weights.
        keys_B = sample_keys(key, state.step, batch_size(batch))
        draw = objective.draw(keys_B, batch, state.step)
        gradient, metrics = _gradient(objective, state, (batch, keys_B, draw), accumulate)
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)

        # If the norm is finite, then all elements of the gradient are finite, and so are the moments.
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
        metrics["skipped"] = 1 - finite.astype(jnp.float32)
        params = optax.apply_updates(state.params, updates)
        frozen = objective.update_frozen(state.frozen, params, ema_decay)

        def keep_finite(new: jax.Array, old: jax.Array) -> jax.Array:
            # Single elements may still overflow in a finite update; these keep their old values. Skipping the whole
            # update instead would require an extra pass over memory.
            return old if new is old else jnp.where(finite & jnp.isfinite(new), new, old)

        def keep_moments(new: jax.Array, old: jax.Array) -> jax.Array:
            # Scalars are step counts. They include skipped steps, as the schedule and the position in the data do.
            return keep_finite(new, old) if new.ndim else new

        params = jax.tree.map(keep_finite, params, state.params)
        frozen = jax.tree.map(keep_finite, frozen, state.frozen)
        optimizer_state = jax.tree.map(keep_moments, optimizer_state, state.optimizer)
        return State(state.step + 1, params, frozen, optimizer_state), metrics

    return step


def _gradient(
    objective: Objective, state: State, whole: tuple[Any, jax.Array, Any], accumulate: int
) -> tuple[Any, dict[str, jax.Array]]:
    """Computes gradient and metrics of `whole` = (batch, keys_B, draw), summed over `accumulate` sequential parts.

    The results are sums and not means, because losses and metrics of an objective are additive over parts of a batch.
    """
    differentiate = jax.value_and_grad(objective.loss, has_aux=True)

    def of_part(part: tuple[Any, jax.Array, Any]) -> tuple[Any, dict[str, jax.Array]]:
        (loss, metrics), gradient = differentiate(state.params, state.frozen, *part)
        return gradient, metrics | {"loss": loss}

    if accumulate == 1:
        return of_part(whole)

    def split(x: jax.Array) -> jax.Array:
        # [B, ...] -> [parts, B / parts, ...]. Each part is sharded over all devices.
        parts = x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:])
        return constrain(parts, None, BATCH_AXES)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_part(part)), None

    parts = jax.tree.map(split, whole)
    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], parts)))
    return jax.lax.scan(add, zero, parts)[0]
