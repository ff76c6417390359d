"""Features of any blocks at any noise level, one forward pass for all of them."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from selfflow.modality import Modality, to_tokens
from selfflow.models.joint import Output
from selfflow.noise import Corruption, corrupt, draw_eps


def features(
    apply: Callable[..., Output],
    params: Any,
    modalities: dict[str, Modality],
    latents: Iterator[dict[str, np.ndarray]],
    *,
    layers: tuple[int, ...],
    tau: float,
    null_label: int,
    pool: Literal["mean", "tokens"] = "mean",
    batch_size: int = 64,
    seed: int = 0,
) -> dict[int, dict[str, np.ndarray]]:
    """The residual stream after some blocks, for unlabelled samples.

    Args:
      apply: model as (params, tokens, levels, label, assignment, taps=, stop_at=) -> `Output`.
      params: its parameters.
      modalities: what the model sees, by name; other modalities of a sample are left out.
      latents: samples {modality: [...]}.
      layers: blocks, counted from 1; later ones are not computed.
      tau: one noise level for all tokens.
      null_label: the label that stands for none.
      pool: the mean over a modality's tokens, [n, D], or all tokens, [n, N, D].
      batch_size: samples in one forward pass.
      seed: sample i's noise depends on the seed and i alone.

    Returns:
      {layer: {modality: float32 features}}.
    """
    key = jax.random.key(seed)

    @jax.jit
    def forward(params, batch, numbers_B):
        x = to_tokens(modalities, batch)
        keys_B = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers_B)
        levels = {m: jnp.full((batch_size, 1), tau) for m in x}
        assignment = {m: jnp.zeros(x[m].shape[:2], jnp.int32) for m in x}
        noisy = corrupt(x, draw_eps(keys_B, x), Corruption(levels, assignment, {}))
        label_B = jnp.full((batch_size,), null_label)
        taps = apply(params, noisy, levels, label_B, assignment, taps=layers, stop_at=max(layers)).taps
        pooled = (lambda f: f.mean(axis=1)) if pool == "mean" else (lambda f: f)
        return jax.tree.map(lambda f: pooled(f.astype(jnp.float32)), taps)

    found: list[Any] = []
    pending: list[dict[str, np.ndarray]] = []
    count = 0

    def run() -> None:
        nonlocal count
        # The last batch is filled up, so that there is one shape to compile.
        filled = pending + [pending[0]] * (batch_size - len(pending))
        batch = {m: np.stack([sample[m] for sample in filled]) for m in modalities}
        out = jax.device_get(forward(params, batch, jnp.arange(count, count + batch_size)))
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
