"""Features of any blocks at any noise level, in one forward pass."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selfflow.modality import Modality, of_latents, to_tokens
from selfflow.models.joint import Output
from selfflow.models.placement import BATCH_AXES, constrain, split_samples
from selfflow.noise import Corruption, corrupt, draw_eps

Taps = dict[int, dict[str, Any]]  # {layer: {modality: float32 features}}


class Forward:
    """A compiled forward pass from latents to the residual stream after given blocks, for unlabelled samples.

    All values of tau and seed share one program.

    Args:
      apply: model as (params, tokens, levels, label, assignment, taps=, stop_at=) -> `Output`; with padded samples also
        valid=.
      modalities: input modalities of the model, by name; other modalities of a batch are left out.
      layers: blocks, counted from 1; later ones are not computed.
      tau: one noise level for all tokens, or one for each modality.
      null_label: label for no class.
      pool: the mean over a modality's tokens, [B, D], or all tokens, [B, N, D]; padding tokens are excluded from the
        mean, and are 0 among all tokens.
      seed: seed of the noise; sample i's noise depends only on the seed and i.
      context: modalities whose tokens all stay at tau = 0 (`Corruption.with_context`).
      mesh: devices over which the samples of a batch are split; by default the first device only.

    Attributes:
      modalities, layers: as passed.
    """

    def __init__(
        self,
        apply: Callable[..., Output],
        modalities: dict[str, Modality],
        layers: tuple[int, ...],
        tau: float | Mapping[str, float],
        null_label: int,
        pool: Literal["mean", "tokens"] = "mean",
        seed: int = 0,
        context: tuple[str, ...] = (),
        mesh: Mesh | None = None,
    ):
        self.modalities, self.layers = modalities, tuple(layers)
        self._mesh, self._seed = mesh, np.uint32(seed % 2**32)
        levels = tau if isinstance(tau, Mapping) else dict.fromkeys(modalities, tau)
        # Context modalities have a level, too, which none of their tokens uses.
        self._tau = {m: np.float32(levels.get(m, 0.0)) for m in modalities}
        self._forward = partial(
            _taps,
            apply=apply,
            modalities=tuple(modalities.items()),
            layers=self.layers,
            null_label=null_label,
            pool=pool,
            context=tuple(context),
        )

    def whole(self, count: int) -> int:
        """Rounds `count` up to a number of samples that the number of devices divides."""
        parts = 1 if self._mesh is None else math.prod(self._mesh.shape[axis] for axis in BATCH_AXES)
        return count + -count % parts

    def start(
        self,
        params: Any,
        latents: dict[str, np.ndarray],
        numbers_B: np.ndarray,
        frames: dict[str, np.ndarray] | None = None,
    ) -> Taps:
        """Starts a call, and returns arrays on the devices without waiting for them.

        Args:
          params: parameters of the model, on the devices of the mesh.
          latents: {modality: [B, ...]}; over a mesh its axes `data` and `fsdp` must divide B.
          numbers_B: numbers of the samples.
          frames: number of latent frames that are data, [B], for the modalities that may be padded.
        """
        inputs = ({m: latents[m] for m in self.modalities}, frames or {}, np.asarray(numbers_B))
        if self._mesh is None:
            return self._forward(params, *inputs, self._tau, self._seed)
        with jax.set_mesh(self._mesh):
            inputs = jax.tree.map(partial(split_samples, mesh=self._mesh), inputs)
            return self._forward(params, *inputs, self._tau, self._seed)

    def __call__(
        self, params: Any, latents: dict[str, np.ndarray], numbers_B: np.ndarray
    ) -> dict[int, dict[str, np.ndarray]]:
        """Computes features {layer: {modality: float32}} from latents {modality: [B, ...]} and sample numbers."""
        return jax.device_get(self.start(params, latents, numbers_B))


class CorruptedTokens(NamedTuple):
    """The input of a network for a batch of samples.

    Attributes:
      tokens: noisy tokens [B, N, P], by modality.
      levels, assignment: their noise, as in `Corruption`.
      valid: tokens that are not padding, [B, N], of the modalities that may be padded.
    """

    tokens: dict[str, jax.Array]
    levels: dict[str, jax.Array]
    assignment: dict[str, jax.Array]
    valid: dict[str, jax.Array]


def corrupted_at(
    modalities: dict[str, Modality],
    latents: dict[str, Any],
    frames: dict[str, Any],
    numbers_B: Any,
    tau: Mapping[str, Any],
    seed: Any,
    context: tuple[str, ...] = (),
) -> CorruptedTokens:
    """Corrupts all tokens at the level of their modality, or 0 for context modalities; arguments as above."""
    key, count = jax.random.key(seed), len(numbers_B)
    fitting = of_latents(modalities, latents)
    x = to_tokens(fitting, latents)
    keys_B = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers_B)
    levels = {m: jnp.full((count, 1), tau[m]) for m in x}
    assignment = {m: jnp.zeros(x[m].shape[:2], jnp.int32) for m in x}
    masks = {m: jnp.ones(x[m].shape[:2], bool) for m in context}
    corruption = Corruption(levels, assignment, {}).with_context(masks)
    noisy = corrupt(x, draw_eps(keys_B, x), corruption)
    valid = {m: fitting[m].valid_tokens(frames_B) for m, frames_B in frames.items()}
    return CorruptedTokens(noisy, corruption.levels, corruption.assignment, valid)


@partial(jax.jit, static_argnames=("apply", "modalities", "layers", "null_label", "pool", "context"))
def _taps(
    params, latents, frames, numbers_B, tau, seed, *, apply, modalities, layers, null_label, pool, context
) -> Taps:
    noisy, levels, assignment, valid = corrupted_at(dict(modalities), latents, frames, numbers_B, tau, seed, context)
    options = {"valid": valid} if valid else {}
    label_B = jnp.full(len(numbers_B), null_label)
    taps = apply(params, noisy, levels, label_B, assignment, taps=layers, stop_at=max(layers), **options).taps

    def pooled(f_BND: jax.Array, m: str) -> jax.Array:
        f_BND = f_BND.astype(jnp.float32)
        if m not in valid:
            return f_BND.mean(axis=1) if pool == "mean" else f_BND
        there_BN1 = valid[m][..., None]
        f_BND = jnp.where(there_BN1, f_BND, 0.0)
        return f_BND.sum(axis=1) / jnp.maximum(there_BN1.sum(axis=1), 1) if pool == "mean" else f_BND

    # Every process gets all samples, since it cannot read shards of other processes.
    return {layer: {m: constrain(pooled(f, m)) for m, f in tap.items()} for layer, tap in taps.items()}


def forward_all(
    forward: Callable[..., dict[int, dict[str, np.ndarray]]],
    params: Any,
    latents: Iterator[dict[str, np.ndarray]],
    batch_size: int = 64,
) -> dict[int, dict[str, np.ndarray]]:
    """Computes the features of many samples, numbered in their order.

    Args:
      forward: (params, latents, numbers) -> features, such as a `Forward`.
      params: parameters of the model.
      latents: samples {modality: [...]}.
      batch_size: samples per forward pass.

    Returns:
      {layer: {modality: float32 features}}.
    """
    outputs: list[Any] = []
    pending: list[dict[str, np.ndarray]] = []
    count = 0

    def run() -> None:
        nonlocal count
        # The last batch is padded, so that one shape is compiled.
        filled = pending + [pending[0]] * (batch_size - len(pending))
        batch = {m: np.stack([sample[m] for sample in filled]) for m in pending[0]}
        out = forward(params, batch, np.arange(count, count + batch_size))
        outputs.append(jax.tree.map(lambda f: f[: len(pending)], out))
        count += len(pending)
        pending.clear()

    for sample in latents:
        pending.append(sample)
        if len(pending) == batch_size:
            run()
    if pending:
        run()
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)


@cache
def code_hash() -> str:
    """Returns the hash of the source files that determine features: models, noise, modality and this file."""
    package = Path(__file__).parents[2]
    files = "models/*.py", "noise.py", "modality.py", "representation/features/forward.py"
    digest = hashlib.sha256()
    for path in sorted(path for pattern in files for path in package.glob(pattern)):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
