"""How healthy features are, block by block and noise level by noise level: norms, effective rank, alignment.

The same quantities as `objectives/diagnostics.py` has in training, there for the one pair of blocks that is aligned and
under the schedule that is trained; here for all pairs of blocks and at chosen levels.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from selfflow.errors import UserError
from selfflow.modality import to_tokens
from selfflow.noise import Corruption, corrupt, draw_eps
from selfflow.objectives.diagnostics import effective_rank
from selfflow.representation.features.arrays import readable_and_whole


class PairHealth(NamedTuple):
    """Cosine of the student's features after block l and the teacher's after block k, a mean over tokens and samples.

    The three are: as they are; after subtracting from both their mean over the batch at each position, without which
    what all samples share counts as alignment; and with the teacher of another sample, the one before it in the batch,
    which is what position and level alone explain. Those of the projected student are None but at the block that the
    projector was trained for, where there is one.
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
    """Two tables; rows stand in the order of modality, tau and blocks."""

    pairs: list[PairHealth]
    layers: list[LayerHealth]


def health(
    objective: Any,
    params: Any,
    frozen: dict[str, Any],
    latents: Iterable[dict[str, np.ndarray]],
    taus: tuple[float, ...],
    *,
    layers: tuple[int, ...] | None = None,
    teacher_tau: float | None = None,
    seed: int = 0,
) -> Health:
    """Norms, effective ranks and alignment of student and teacher, by block and noise level.

    Both see the same unlabelled samples with the same noise, all tokens of a sample at one level. Each network runs
    once for a batch and a level, whatever the number of blocks. Sums, and for the ranks a matrix [D, D] for every
    block, are carried from batch to batch: memory does not grow with the number of samples.

    A sample's noise depends on the seed and its number alone. What is centred, and whose neighbour a sample is, depends
    on the batches, as in training: compare values of the same batch size. Batches of another size compile anew.

    Args:
      objective: `SelfFlowObjective`: its `apply`, `project` and shapes; whatever its schedule.
      params: trained parameters: {"model": ..., "projector": ...}, the latter where it was aligned.
      frozen: {"ema": the teacher's parameters}.
      latents: batches {modality: [B, ...]} of at least 2 samples, all of the same modalities and without padding.
      taus: noise levels of the student, 0 to 1.
      layers: blocks, counted from 1; by default all. Later ones are not computed.
      teacher_tau: one noise level for the teacher, for every tau; by default it sees that of the student. In Self-Flow
        it sees the lower of two.
      seed: of the noise.

    Returns:
      The tables, as plain numbers.

    Raises:
      UserError: blocks that the model does not have, levels outside 0 to 1 or below `teacher_tau`, a batch of fewer
        than 2 samples or of other modalities than the first, no batch at all, or features that are not finite.
    """
    layers = _checked(objective, taus, layers, teacher_tau)
    own = next(iter(objective.alignment.student_taps), None)
    # A projector to the channels of another network does not lead to the teacher's features.
    headed = "projector" in params and objective.alignment.target_channels is None
    projected = layers.index(own) if own in layers and headed else None
    step = jax.jit(partial(_add, objective, layers, projected))
    key = jax.random.key(seed)
    sums: dict[float, Any] = {}
    count = 0
    names: list[str] | None = None
    for batch in latents:
        names = names or sorted(batch)
        if unknown := sorted(set(names) - set(objective.modalities)):
            raise UserError(f"a batch holds {unknown[0]}, and the model knows {', '.join(objective.modalities)}")
        if sorted(batch) != names:
            raise UserError(
                f"a batch holds {', '.join(sorted(batch))}, the first {', '.join(names)}: give one component"
            )
        size = len(batch[names[0]])
        if size < 2:
            raise UserError("a batch of 1 sample has no other sample and no mean: give batches of 2 or more")
        for tau in taus:
            levels = jnp.asarray([tau, tau if teacher_tau is None else teacher_tau], jnp.float32)
            inputs = (params, frozen["ema"], batch, levels, key, jnp.arange(count, count + size))
            if tau not in sums:
                sums[tau] = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(step, None, *inputs))
            sums[tau] = step(sums[tau], *inputs)
        count += size
    if names is None:
        raise UserError("there are no samples: give at least one batch")
    rows = Health([], [])
    for m in names:
        for tau in taus:
            totals = jax.device_get(sums[tau][m])
            if not np.isfinite(np.concatenate([np.ravel(x) for x in totals.values()])).all():
                raise UserError(f"features of {m} at tau {tau:g} are not finite: look at the latents and the weights")
            at = (m, tau, tau if teacher_tau is None else teacher_tau)
            _append(rows, at, layers, projected, totals, count)
    return rows


def health_of_run(
    run: Any,
    clips: Any,
    taus: tuple[float, ...],
    *,
    limit: int = 64,
    batch_size: int = 16,
    step: int | None = None,
    **more: Any,
) -> Health:
    """`health` of a run's own weights on the first clips of a split.

    Args:
      run: an opened run, `selfflow.run.run.Run`.
      clips: as `run.data` gives them, all as long as the component has them; those that cannot be read are left out.
      taus: noise levels of the student.
      limit: takes so many clips, as whole batches; one batch where there are fewer.
      batch_size: clips of a batch.
      step: of the weights; by default the newest.
      **more: as for `health`.

    Raises:
      UserError: as `health`; or if a clip is shorter than the others, or none can be read.
    """
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value < 2:
            raise UserError(f"{name} is {value}: it must be at least 2")
    state = run.weights(step)
    return health(run.objective, state.params, state.frozen, _batches(clips, limit, batch_size), taus, **more)


def _batches(clips: Any, limit: int, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Whole batches of the first clips, read one after the other; one of all of them where they make no whole one."""
    readable = readable_and_whole(clips, range(min(limit, len(clips))))
    first = True
    while True:
        batch = [latents for _, latents in islice(readable, batch_size)]
        if not batch:
            return
        if first or len(batch) == batch_size:
            yield {m: np.stack([latents[m] for latents in batch]) for m in batch[0]}
        first = False


def _checked(objective, taus, layers, teacher_tau) -> tuple[int, ...]:
    depth = objective.model.depth
    layers = tuple(range(1, depth + 1)) if layers is None else tuple(layers)
    if not layers or not all(1 <= layer <= depth for layer in layers) or len(set(layers)) < len(layers):
        raise UserError(f"layers are {layers}: give some of the model's blocks 1 to {depth}, each once")
    if not taus or not all(0 <= tau <= 1 for tau in taus) or len(set(taus)) < len(taus):
        raise UserError(f"taus are {taus}: give noise levels from 0 to 1, each once")
    if teacher_tau is not None and not 0 <= teacher_tau <= min(taus):
        raise UserError(f"teacher_tau is {teacher_tau}: give a level from 0 to {min(taus):g}, the least of the student")
    return layers


def _add(objective, layers, projected, sums, params, ema, batch, levels_2, key, numbers_B):
    """`sums` and those of one batch, per modality; without `sums`, what they are like."""
    x = to_tokens(objective.modalities, batch)
    eps = draw_eps(jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers_B), x)
    label_B = jnp.full(len(numbers_B), objective.model.labels)
    assignment = {m: jnp.zeros(x[m].shape[:2], jnp.int32) for m in x}

    def taps(weights, tau):
        levels = {m: jnp.full((len(numbers_B), 1), tau) for m in x}
        noisy = corrupt(x, eps, Corruption(levels, assignment, {}))
        found = objective.apply(weights, noisy, levels, label_B, assignment, taps=layers, stop_at=max(layers)).taps
        return {m: jnp.stack([found[layer][m].astype(jnp.float32) for layer in layers]) for m in x}

    student, teacher = taps(params["model"], levels_2[0]), taps(ema, levels_2[1])
    found = {}
    for m in x:
        views = {"direct": student[m]}
        if projected is not None:
            views["projected"] = objective.project(params, {m: student[m][projected]})[m].astype(jnp.float32)[None]
        here = {}
        for name, view_LBND in views.items():
            here[name] = _cosines(view_LBND, teacher[m])
            here[f"{name}_centred"] = _cosines(_centred(view_LBND), _centred(teacher[m]))
            here[f"{name}_other_sample"] = _cosines(view_LBND, jnp.roll(teacher[m], 1, axis=1))
        for who, view_LBND in (("student", student[m]), ("teacher", teacher[m])):
            here[f"{who}_norm"] = jnp.linalg.norm(view_LBND, axis=-1).mean(axis=-1).sum(axis=-1)
        if sums is not None:
            here = {name: sums[m][name] + value for name, value in here.items()}
        for who, view_LBND in (("student", student[m]), ("teacher", teacher[m])):
            rows_LMD = view_LBND.reshape(len(layers), -1, view_LBND.shape[-1])
            before_LDD = jnp.zeros((len(layers), *rows_LMD.shape[-1:] * 2)) if sums is None else sums[m][f"{who}_r"]
            here[f"{who}_r"] = jax.lax.map(lambda r_and_rows: _grown(*r_and_rows), (before_LDD, rows_LMD))
        found[m] = here
    return found


def _cosines(a_LBND: Float[Array, "L B N D"], b_KBND: Float[Array, "K B N D"]) -> Float[Array, "L K"]:
    """Cosines of every pair of blocks, summed over samples, a mean over tokens."""

    def unit(x: Array) -> Array:
        return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))

    # At full precision: an accelerator's default would round the factors to some 3 digits.
    product = jnp.einsum("lbnd,kbnd->lk", unit(a_LBND), unit(b_KBND), precision=jax.lax.Precision.HIGHEST)
    return product / a_LBND.shape[2]


def _centred(x_LBND: Float[Array, "L B N D"]) -> Float[Array, "L B N D"]:
    rest_LBND = x_LBND - x_LBND.mean(axis=1, keepdims=True)
    # What is left of equal features is rounding, whose direction must not count as alignment.
    size = lambda a: jnp.sum(a * a, axis=-1, keepdims=True)
    return jnp.where(size(rest_LBND) > 1e-12 * size(x_LBND), rest_LBND, 0.0)


def _grown(r_DD: Float[Array, "D D"], rows_MD: Float[Array, "M D"]) -> Float[Array, "D D"]:
    """R of the decomposition QR of all rows so far, from R without the new ones; its singular values are theirs."""
    return jnp.linalg.qr(jnp.concatenate([r_DD, rows_MD]), mode="r")


def _append(health: Health, at: tuple, layers, projected, sums: dict[str, np.ndarray], count: int) -> None:
    kinds = ("", "_centred", "_other_sample")
    for i, layer in enumerate(layers):
        for j, teacher_layer in enumerate(layers):
            direct = [float(sums[f"direct{kind}"][i, j]) / count for kind in kinds]
            through = [None] * 3
            if i == projected:
                through = [float(sums[f"projected{kind}"][0, j]) / count for kind in kinds]
            health.pairs.append(PairHealth(*at, layer, teacher_layer, *direct, *through))
    ranks = {who: [float(effective_rank(jnp.asarray(r))) for r in sums[f"{who}_r"]] for who in ("student", "teacher")}
    for i, layer in enumerate(layers):
        norms = [float(sums[f"{who}_norm"][i]) / count for who in ("student", "teacher")]
        health.layers.append(LayerHealth(*at, layer, *norms, ranks["student"][i], ranks["teacher"][i]))
