"""Norms, effective ranks and student-teacher cosines of features, by block and noise level.

Training computes the same quantities in `objectives/diagnostics.py` for the aligned pair of blocks under its schedule;
this module computes them for all pairs of blocks at fixed noise levels.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice, product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from selfflow.errors import UserError
from selfflow.modality import Modality, to_tokens
from selfflow.noise import Corruption, corrupt, draw_eps
from selfflow.objectives.diagnostics import effective_rank
from selfflow.objectives.flow import FlowObjective
from selfflow.objectives.self_flow import SelfFlowObjective, require_self_flow
from selfflow.representation.features.arrays import readable_and_whole
from selfflow.representation.protocols import ComponentClips, OpenRun

Sums = dict[str, dict[str, Any]]
"""Sums over samples by modality and quantity."""


class PairHealth(NamedTuple):
    """Mean cosine over tokens and samples between the student's features after block l and the teacher's after block k.

    `direct` is the cosine of the features. For `direct_centred` the batch mean at each position is subtracted from
    both, so that features common to all samples do not count as alignment. `direct_other_sample` compares with the
    teacher's features of the previous sample in the batch, and measures the part due to position and level. Projected
    cosines are None except at the block that the projector was trained for.
    """

    modality: str
    tau: float
    """Noise level of the student's tokens."""
    teacher_tau: float
    """Noise level of the teacher's tokens."""
    student_layer: int
    teacher_layer: int
    direct: float
    direct_centred: float
    direct_other_sample: float
    projected: float | None
    projected_centred: float | None
    projected_other_sample: float | None


class LayerHealth(NamedTuple):
    """Size and spread of the features after a block, of all tokens of all samples."""

    modality: str
    tau: float
    """Noise level of the student's tokens."""
    teacher_tau: float
    """Noise level of the teacher's tokens."""
    layer: int
    student_norm: float
    """Mean length of the student's feature vectors."""
    teacher_norm: float
    student_rank: float
    """Effective rank of the student's features, not centred; from 1 to their width."""
    teacher_rank: float


class Health(NamedTuple):
    """Two tables, with rows ordered by modality, tau and blocks."""

    pairs: list[PairHealth]
    layers: list[LayerHealth]


def health(
    objective: FlowObjective,
    params: Any,
    frozen: dict[str, Any],
    latents: Iterable[dict[str, np.ndarray]],
    taus: tuple[float, ...],
    *,
    layers: tuple[int, ...] | None = None,
    teacher_tau: float | None = None,
    seed: int = 0,
) -> Health:
    """Computes norms, effective ranks and alignment of student and teacher, by block and noise level.

    Both networks get the same unlabelled samples with the same noise, all tokens of a sample at one level. Each runs
    once for a batch and a level, for any number of blocks. Sums, and for the ranks a matrix [D, D] for every
    block, are carried from batch to batch: memory does not grow with the number of samples.

    The noise of a sample depends only on the seed and its number. Centring and the choice of another sample depend on
    the batches, as in training: compare values of the same batch size. A batch of another size is compiled again.

    Args:
      objective: `SelfFlowObjective`; its schedule is not used.
      params: trained parameters: {"model": ..., "projector": ...}, the projector only with alignment.
      frozen: {"ema": the teacher's parameters}.
      latents: batches {modality: [B, ...]} of at least 2 samples, all of the same modalities and without padding.
      taus: noise levels of the student, 0 to 1.
      layers: blocks, counted from 1; by default all. Later ones are not computed.
      teacher_tau: noise level of the teacher for every tau; by default that of the student. In Self-Flow it is
        the lower of two levels.
      seed: seed of the noise.

    Returns:
      The tables, as plain numbers.

    Raises:
      UserError: another objective, unknown blocks, levels outside 0 to 1 or below `teacher_tau`, a batch of fewer
        than 2 samples or of other modalities than the first, no batches, or features that are not finite.
    """
    objective = require_self_flow(objective, "health")
    layers = _checked_layers(objective, taus, layers, teacher_tau)
    projected = _projected_index(objective, params, layers)
    teacher_taus = {tau: tau if teacher_tau is None else teacher_tau for tau in taus}
    step = jax.jit(partial(_add, objective, layers, projected))
    key = jax.random.key(seed)
    sums: dict[float, Any] = {}
    count = 0
    names: list[str] = []
    for batch in latents:
        names = names or sorted(batch)
        size = _checked_size(batch, names, objective.modalities)
        for tau in taus:
            levels = jnp.asarray([tau, teacher_taus[tau]], jnp.float32)
            inputs = (params, frozen["ema"], batch, levels, key, jnp.arange(count, count + size))
            if tau not in sums:
                # Shapes and dtypes of the sums are those that a step without sums returns.
                sums[tau] = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(step, None, *inputs))
            sums[tau] = step(sums[tau], *inputs)
        count += size
    if not count:
        raise UserError("there are no samples: give at least one batch")
    tables = Health([], [])
    for m, tau in product(names, taus):
        totals = _finite(jax.device_get(sums[tau][m]), m, tau)
        at = {"modality": m, "tau": tau, "teacher_tau": teacher_taus[tau]}
        tables.pairs.extend(_pairs(at, layers, projected, totals, count))
        tables.layers.extend(_layers(at, layers, totals, count))
    return tables


def health_of_run(
    run: OpenRun,
    clips: ComponentClips,
    taus: tuple[float, ...],
    *,
    limit: int = 64,
    batch_size: int = 16,
    step: int | None = None,
    **options: Any,
) -> Health:
    """Computes `health` of a run's weights on the first clips of a split.

    Args:
      run: an opened run, `selfflow.run.run.Run`.
      clips: clips from `run.data`, all of the component's full length; unreadable ones are left out.
      taus: noise levels of the student.
      limit: largest number of clips. An incomplete last batch is left out, unless it is the only one.
      batch_size: clips of a batch.
      step: step of the weights; by default the newest.
      **options: as for `health`.

    Raises:
      UserError: as for `health`; or if a clip is shorter than the others, or none can be read.
    """
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value < 2:
            raise UserError(f"{name} is {value}: it must be at least 2")
    state = run.weights(step)
    return health(run.objective, state.params, state.frozen, _batches(clips, limit, batch_size), taus, **options)


def _batches(clips: ComponentClips, limit: int, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields complete batches of the first clips; a single incomplete batch if there are fewer clips."""
    readable = readable_and_whole(clips, range(min(limit, len(clips))))
    first = True
    while True:
        batch = [latents for _, latents in islice(readable, batch_size)]
        if not batch:
            return
        if first or len(batch) == batch_size:
            yield {m: np.stack([latents[m] for latents in batch]) for m in batch[0]}
        first = False


def _checked_layers(
    objective: SelfFlowObjective, taus: tuple[float, ...], layers: tuple[int, ...] | None, teacher_tau: float | None
) -> tuple[int, ...]:
    """Returns the blocks, by default all; raises `UserError` for invalid blocks or levels."""
    depth = objective.model.depth
    layers = tuple(range(1, depth + 1)) if layers is None else tuple(layers)
    if not layers or not all(1 <= layer <= depth for layer in layers) or len(set(layers)) < len(layers):
        raise UserError(f"layers are {layers}: give some of the model's blocks 1 to {depth}, each once")
    if not taus or not all(0 <= tau <= 1 for tau in taus) or len(set(taus)) < len(taus):
        raise UserError(f"taus are {taus}: give noise levels from 0 to 1, each once")
    if teacher_tau is not None and not 0 <= teacher_tau <= min(taus):
        raise UserError(f"teacher_tau is {teacher_tau}: give a level from 0 to {min(taus):g}, the least of the student")
    return layers


def _projected_index(objective: SelfFlowObjective, params: Any, layers: tuple[int, ...]) -> int | None:
    """Index in `layers` of the block that the projector reads; None without a projector to the teacher's features."""
    # A projector to the channels of another network does not map to the teacher's features.
    if "projector" not in params or objective.alignment.target_channels is not None:
        return None
    student_layer = next(iter(objective.alignment.student_taps), None)
    return layers.index(student_layer) if student_layer in layers else None


def _finite(totals: dict[str, np.ndarray], m: str, tau: float) -> dict[str, np.ndarray]:
    for x in totals.values():
        if not np.isfinite(x).all():
            raise UserError(f"features of {m} at tau {tau:g} are not finite: look at the latents and the weights")
    return totals


def _checked_size(batch: dict[str, np.ndarray], names: list[str], known: dict[str, Modality]) -> int:
    """Returns the number of samples of a batch after checking its modalities against the first batch."""
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UserError(f"a batch holds {unknown[0]}, but the model has {', '.join(known)}")
    if sorted(batch) != names:
        raise UserError(f"a batch holds {', '.join(sorted(batch))}, the first {', '.join(names)}: give one component")
    size = len(batch[names[0]])
    if size < 2:
        raise UserError("a batch of 1 sample has no other sample and no mean: give batches of 2 or more")
    return size


def _add(objective, layers, projected, sums, params, ema, batch, levels_2, key, numbers_B) -> Sums:
    """Adds the sums of one batch to `sums`; None stands for zeros.

    Sums of cosines are [L, L] ([1, L] of the projected student), of norms [L]; `*_r` [L, D, D] is the factor R of all
    feature vectors so far.
    """
    x = to_tokens(objective.modalities, batch)
    # Both networks and all levels share the noise, so that features differ only by level and weights.
    eps = draw_eps(jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers_B), x)
    label_B = jnp.full(len(numbers_B), objective.model.labels)
    assignment = {m: jnp.zeros(x[m].shape[:2], jnp.int32) for m in x}

    def features(weights, tau: Float[Array, ""]) -> dict[str, Float[Array, "L B N D"]]:
        levels = {m: jnp.full((len(numbers_B), 1), tau) for m in x}
        noisy = corrupt(x, eps, Corruption(levels, assignment, {}))
        taps = objective.apply(weights, noisy, levels, label_B, assignment, taps=layers, stop_at=max(layers)).taps
        return {m: jnp.stack([taps[layer][m].astype(jnp.float32) for layer in layers]) for m in x}

    student, teacher = features(params["model"], levels_2[0]), features(ema, levels_2[1])
    new_sums = {}
    for m in x:
        views = {"direct": student[m]}  # [L, B, N, D]
        if projected is not None:
            projected_BND = objective.project(params, {m: student[m][projected]})[m].astype(jnp.float32)
            views["projected"] = projected_BND[None]  # L = 1
        totals = {}
        for name, view_LBND in views.items():
            totals[name] = _cosines(view_LBND, teacher[m])
            totals[f"{name}_centred"] = _cosines(_centred(view_LBND), _centred(teacher[m]))
            totals[f"{name}_other_sample"] = _cosines(view_LBND, jnp.roll(teacher[m], 1, axis=1))
        networks = {"student": student[m], "teacher": teacher[m]}
        for network, f_LBND in networks.items():
            totals[f"{network}_norm"] = jnp.linalg.norm(f_LBND, axis=-1).mean(axis=-1).sum(axis=-1)
        if sums is not None:
            totals = {name: sums[m][name] + value for name, value in totals.items()}
        # Factors R are not summed: the next one is computed from the previous one and the new rows.
        for network, f_LBND in networks.items():
            rows_LMD = f_LBND.reshape(len(layers), -1, f_LBND.shape[-1])  # M = B N feature vectors
            width = rows_LMD.shape[-1]
            r_LDD = jnp.zeros((len(layers), width, width)) if sums is None else sums[m][f"{network}_r"]
            # One block at a time, which limits the workspace of QR.
            totals[f"{network}_r"] = jax.lax.map(lambda r_and_rows: _grown(*r_and_rows), (r_LDD, rows_LMD))
        new_sums[m] = totals
    return new_sums


def _cosines(a_LBND: Float[Array, "L B N D"], b_KBND: Float[Array, "K B N D"]) -> Float[Array, "L K"]:
    """Cosines of every pair of blocks, summed over samples, a mean over tokens."""

    def unit(x: Array) -> Array:
        return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))

    # At full precision: the default of accelerators rounds the factors to about 3 digits.
    product = jnp.einsum("lbnd,kbnd->lk", unit(a_LBND), unit(b_KBND), precision=jax.lax.Precision.HIGHEST)
    return product / a_LBND.shape[2]


def _centred(x_LBND: Float[Array, "L B N D"]) -> Float[Array, "L B N D"]:
    """Subtracts the mean over the batch at each position."""

    def square(x: Array) -> Array:
        return jnp.sum(x * x, axis=-1, keepdims=True)

    centred_LBND = x_LBND - x_LBND.mean(axis=1, keepdims=True)
    # Differences of equal features are rounding, whose direction must not count as alignment.
    return jnp.where(square(centred_LBND) > 1e-12 * square(x_LBND), centred_LBND, 0.0)


def _grown(r_DD: Float[Array, "D D"], rows_MD: Float[Array, "M D"]) -> Float[Array, "D D"]:
    """Updates R of a QR decomposition with M new rows.

    R has the singular values of the matrix of all rows, from which the effective rank follows.
    """
    return jnp.linalg.qr(jnp.concatenate([r_DD, rows_MD]), mode="r")


def _pairs(
    at: dict[str, Any], layers: tuple[int, ...], projected: int | None, sums: dict[str, np.ndarray], count: int
) -> Iterator[PairHealth]:
    """Yields the rows of all pairs of blocks.

    Args:
      at: modality and noise levels.
      layers: blocks.
      projected: index of the block that the projector reads, if any.
      sums: sums over samples.
      count: number of samples.
    """
    for i, student_layer in enumerate(layers):
        for j, teacher_layer in enumerate(layers):
            cosines: dict[str, float | None] = {}
            for kind in ("", "_centred", "_other_sample"):
                cosines[f"direct{kind}"] = float(sums[f"direct{kind}"][i, j]) / count
                cosines[f"projected{kind}"] = None
                if i == projected:
                    cosines[f"projected{kind}"] = float(sums[f"projected{kind}"][0, j]) / count
            yield PairHealth(**at, student_layer=student_layer, teacher_layer=teacher_layer, **cosines)


def _layers(
    at: dict[str, Any], layers: tuple[int, ...], sums: dict[str, np.ndarray], count: int
) -> Iterator[LayerHealth]:
    """Yields the rows of all blocks; arguments as for `_pairs`."""
    for i, layer in enumerate(layers):
        values = {}
        for network in ("student", "teacher"):
            values[f"{network}_norm"] = float(sums[f"{network}_norm"][i]) / count
            values[f"{network}_rank"] = float(effective_rank(jnp.asarray(sums[f"{network}_r"][i])))
        yield LayerHealth(**at, layer=layer, **values)
