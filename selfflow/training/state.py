"""Training state, and the exponential moving average (EMA) of the parameters."""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from selfflow.models.layers import to_float32
from selfflow.training.objective import Objective

# Folded into the key of the initialisation; a small number would repeat a key of `jax.random.split`.
_FROZEN = zlib.crc32(b"frozen") & 0x7FFFFFFF


class State(NamedTuple):
    """Training state. Random keys are not part of it: they are derived from the step and the seeds.

    Attributes:
      step: number of finished updates.
      params: trained parameters.
      frozen: parameter trees without gradient, by name, which the objective initialises and updates.
      optimizer: state of the optimizer.
    """

    step: Int[Array, ""]
    params: dict[str, Any]
    frozen: dict[str, Any]
    optimizer: optax.OptState


def parameter_name(path: tuple) -> str:
    """Returns the name of a parameter: the keys of its path in a tree, joined by dots."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def flat_by_name(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by `parameter_name`."""
    return {parameter_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def init_state(objective: Objective, optimizer: optax.GradientTransformation, key: Key[Array, ""]) -> State:
    """Returns the state at step 0."""
    params = objective.init(key)
    frozen = init_frozen(objective, params, key)
    return State(jnp.zeros((), jnp.int32), params, frozen, optimizer.init(params))


def init_frozen(objective: Objective, params: dict[str, Any], key: Key[Array, ""]) -> dict[str, Any]:
    """Returns the frozen trees at step 0; `key` is the key of `init_state`."""
    return objective.init_frozen(params, jax.random.fold_in(key, _FROZEN))


def ema_decay_for(steps: int) -> float:
    """Returns the default decay min(0.9999, 1 - 10 / steps).

    With it, the weight of the initialisation in the EMA is about e^-10 after the run. With 0.9999, the decay of
    arXiv 2603.06507 for 4 M steps, it would be 0.61 after 5 000 steps.
    """
    return max(0.0, min(0.9999, 1 - 10 / steps))


def init_ema(params: Any) -> Any:
    """Returns a copy of the parameters that does not share memory with them."""
    return jax.tree.map(jnp.copy, params)


def update_ema(ema: Any, params: Any, decay: float) -> Any:
    """Returns decay * ema + (1 - decay) * params, in float32: half precision would round most updates to zero."""
    # In this form the result is exact where both are equal.
    return jax.tree.map(lambda e, p: e + (1 - decay) * (to_float32(p) - e), ema, params)
