"""Samples of any set of modalities from a trained model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selfflow.modality import Modality
from selfflow.models.joint import Output
from selfflow.noise import draw_eps
from selfflow.sampling.solvers import euler


def generate(
    apply: Callable[..., Output],
    params: Any,
    modalities: dict[str, Modality],
    label_B: np.ndarray,
    *,
    steps: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Latents of the given modalities, generated together.

    Args:
      apply: model as (params, tokens, levels, label, assignment) -> `Output`.
      params: its parameters.
      modalities: what to generate, by name.
      label_B: class label of each sample; as many samples as labels.
      steps: Euler steps.
      seed: the noise of sample i depends on the seed and i alone.

    Returns:
      {modality: latents [B, ...]} as float32.
    """
    count = len(label_B)
    key = jax.random.key(seed)
    keys_B = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))

    def run(params, label_B):
        shape = {m: jax.ShapeDtypeStruct((count, s.tokens, s.token_size), jnp.float32) for m, s in modalities.items()}
        assignment = {m: jnp.zeros((count, s.tokens), jnp.int32) for m, s in modalities.items()}

        def velocity(x, tau):
            levels = {m: jnp.full((count, 1), tau) for m in x}
            return apply(params, x, levels, label_B, assignment).velocity

        x = euler(velocity, draw_eps(keys_B, shape), steps)
        return {m: modalities[m].from_tokens(x[m]) for m in x}

    return jax.device_get(jax.jit(run)(params, jnp.asarray(label_B)))
