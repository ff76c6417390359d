"""What a run is made of between two steps, and the rule of the EMA."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from selfflow.models.layers import to_float32


class State(NamedTuple):
    """All that training changes; random numbers follow from the step and the seeds.

    Attributes:
      step: number of finished updates.
      params: trained parameters.
      frozen: parameter trees that get no gradient; {"ema": ...}, float32.
      optimizer: state of the optimizer.
    """

    step: Int[Array, ""]
    params: dict[str, Any]
    frozen: dict[str, Any]
    optimizer: optax.OptState


def parameter_name(path: tuple) -> str:
    """The name of a parameter from its path in a tree."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def flat_by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their dotted names."""
    return {parameter_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def init_state(objective, optimizer: optax.GradientTransformation, key: Key[Array, ""]) -> State:
    """A fresh state; the EMA starts as a copy of what it follows."""
    params = objective.init(key)
    ema = jax.tree.map(jnp.copy, objective.teacher_of(params))
    return State(jnp.zeros((), jnp.int32), params, {"ema": ema}, optimizer.init(params))


def ema_decay_for(steps: int) -> float:
    """min(0.9999, 1 - 10 / steps): the initialisation is forgotten (e^-10 is left) within the run.

    A run of 5 000 steps at 0.9999 would align to a teacher that is still 61 % random.
    """
    return max(0.0, min(0.9999, 1 - 10 / steps))


def update_ema(ema: Any, params: Any, decay: float) -> Any:
    """decay ema + (1 - decay) params, in float32: in half precision nearly every update rounds away."""
    return jax.tree.map(lambda e, p: e + (1 - decay) * (to_float32(p) - e), ema, params)
