"""Features of any blocks at any noise level, one forward pass for all of them."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from selfflow.modality import Modality, to_tokens
from selfflow.models.joint import Output
from selfflow.noise import Corruption, corrupt, draw_eps


class Forward:
    """A compiled forward pass from latents to the residual stream after some blocks, for unlabelled samples.

    Args:
      apply: model as (params, tokens, levels, label, assignment, taps=, stop_at=) -> `Output`.
      modalities: what the model sees, by name; other modalities of a batch are left out.
      layers: blocks, counted from 1; later ones are not computed.
      tau: one noise level for all tokens.
      null_label: the label that stands for none.
      pool: the mean over a modality's tokens, [B, D], or all tokens, [B, N, D].
      seed: sample i's noise depends on the seed and i alone.
    """

    def __init__(
        self,
        apply: Callable[..., Output],
        modalities: dict[str, Modality],
        layers: tuple[int, ...],
        tau: float,
        null_label: int,
        pool: Literal["mean", "tokens"] = "mean",
        seed: int = 0,
    ):
        key = jax.random.key(seed)

        @jax.jit
        def forward(params, batch, numbers_B):
            x = to_tokens(modalities, {m: batch[m] for m in modalities})
            keys_B = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers_B)
            levels = {m: jnp.full((len(numbers_B), 1), tau) for m in x}
            assignment = {m: jnp.zeros(x[m].shape[:2], jnp.int32) for m in x}
            noisy = corrupt(x, draw_eps(keys_B, x), Corruption(levels, assignment, {}))
            label_B = jnp.full(len(numbers_B), null_label)
            taps = apply(params, noisy, levels, label_B, assignment, taps=layers, stop_at=max(layers)).taps
            pooled = (lambda f: f.mean(axis=1)) if pool == "mean" else (lambda f: f)
            return jax.tree.map(lambda f: pooled(f.astype(jnp.float32)), taps)

        self._forward = forward

    def __call__(
        self, params: Any, latents: dict[str, np.ndarray], numbers_B: np.ndarray
    ) -> dict[int, dict[str, np.ndarray]]:
        """{layer: {modality: float32 features}} of latents {modality: [B, ...]} and the numbers of the samples."""
        return jax.device_get(self._forward(params, latents, jnp.asarray(numbers_B)))


def features(
    forward: Forward, params: Any, latents: Iterator[dict[str, np.ndarray]], batch_size: int = 64
) -> dict[int, dict[str, np.ndarray]]:
    """The features of many samples.

    Args:
      forward: which.
      params: parameters of the model.
      latents: samples {modality: [...]}.
      batch_size: samples in one forward pass.

    Returns:
      {layer: {modality: float32 features}}.
    """
    found: list[Any] = []
    pending: list[dict[str, np.ndarray]] = []
    count = 0

    def run() -> None:
        nonlocal count
        # The last batch is filled up, so that there is one shape to compile.
        filled = pending + [pending[0]] * (batch_size - len(pending))
        batch = {m: np.stack([sample[m] for sample in filled]) for m in pending[0]}
        out = forward(params, batch, np.arange(count, count + batch_size))
        found.append(jax.tree.map(lambda f: f[: len(pending)], out))
        count += len(pending)
        pending.clear()

    for sample in latents:
        pending.append(sample)
        if len(pending) == batch_size:
            run()
    if pending:
        run()
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)
