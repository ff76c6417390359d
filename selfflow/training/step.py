"""One update: draw, gradient, optimizer, EMA. It knows nothing of what the objective computes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from selfflow.models.placement import BATCH_AXES, constrain
from selfflow.training.state import State, update_ema


def key_of(seed: int) -> np.ndarray:
    """The key of a seed as numbers [2], which a compiled program can be given: one for all seeds."""
    return np.asarray(jax.random.key_data(jax.random.key(seed)))


def sample_keys(noise_seed: int | jax.Array | np.ndarray, step: jax.Array | int, batch_size: int) -> jax.Array:
    """A key for each sample of a step's batch, whatever the batch is split into.

    Args:
      noise_seed: a seed, or its `key_of`.
      step: number of finished updates.
      batch_size: of the whole batch.
    """
    key = jax.random.key(noise_seed) if isinstance(noise_seed, int) else jax.random.wrap_key_data(noise_seed)
    key = jax.random.fold_in(key, step)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch_size))


def batch_size(batch: Any) -> int:
    """Number of samples in a batch, from the leading axis of its first array."""
    return jax.tree.leaves(batch)[0].shape[0]


def make_step(
    objective, optimizer: optax.GradientTransformation, ema_decay: float, noise_seed: int, accumulate: int = 1
) -> Callable[[State, Any], tuple[State, dict[str, jax.Array]]]:
    """The update as a function to be compiled.

    Args:
      objective: has `draw(keys_B, batch, step)`, made for the whole batch, and `loss(params, frozen, batch,
        keys_B, draw) -> (loss, metrics)`, whose values for the parts of a batch add up to those of the
        whole; `teacher_of(params)` is what the EMA follows.
      optimizer: the update rule.
      ema_decay: decay of the EMA.
      noise_seed: seed of all that is drawn.
      accumulate: number of parts that a batch is split into.

    Returns:
      step(state, batch, key) -> (state, metrics), where `key` is the `key_of` a seed, by default of `noise_seed`: given
      as an argument it lets runs that differ in it alone share a program. Metrics hold `loss`, `gradient_norm` and
      `skipped`: 1 where loss or gradient are not finite; the state then stays as it was and only counts its steps. From
      a finite state no step leads to one that is not.
    """

    def step(state: State, batch: Any, key: Any = noise_seed) -> tuple[State, dict[str, jax.Array]]:
        keys_B = sample_keys(key, state.step, batch_size(batch))
        draw = objective.draw(keys_B, batch, state.step)
        differentiate = jax.value_and_grad(objective.loss, has_aux=True)

        def of_part(part):
            (loss, metrics), gradient = differentiate(state.params, state.frozen, *part)
            return gradient, metrics | {"loss": loss}

        whole = (batch, keys_B, draw)
        if accumulate == 1:
            gradient, metrics = of_part(whole)
        else:
            split = lambda x: x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:])
            # Every part is spread over all devices, not each part over some of them.
            parts = jax.tree.map(lambda x: constrain(split(x), None, BATCH_AXES), whole)
            zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], parts)))
            add = lambda total, part: (jax.tree.map(jnp.add, total, of_part(part)), None)
            (gradient, metrics), _ = jax.lax.scan(add, zero, parts)
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        # Where these norms are, every number that they are made of is too, and so are the moments.
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
        metrics["skipped"] = 1 - finite.astype(jnp.float32)
        params = optax.apply_updates(state.params, updates)
        ema = update_ema(state.frozen["ema"], objective.teacher_of(params), ema_decay)
        # A rate may still be too large for one number, which then stays too. To look for it in all updates before any
        # is made would be a pass over memory of its own, several times as dear.
        keep = partial(jax.tree.map, lambda new, old: jnp.where(finite & jnp.isfinite(new), new, old))
        # Counts are scalars, and go on: a step is a step, in the schedule of the rate and for the position in the data.
        optimizer_state = jax.tree.map(
            lambda new, old: keep(new, old) if new.ndim else new, optimizer_state, state.optimizer
        )
        frozen = state.frozen | {"ema": keep(ema, state.frozen["ema"])}
        return State(state.step + 1, keep(params, state.params), frozen, optimizer_state), metrics

    return step
