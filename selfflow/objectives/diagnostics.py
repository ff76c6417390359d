"""What a reader must see to trust the alignment loss: cosines that cannot be had for free, norms, ranks."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from selfflow.objectives.alignment import ExternalEncoder, cosine
from selfflow.objectives.selfflow import SelfFlowObjective


def diagnose(
    objective: SelfFlowObjective, params: Any, frozen: dict[str, Any], batch: dict[str, Any], keys_B: Key[Array, "B"]
) -> dict[str, Float[Array, ""]]:
    """Alignment of one batch, looked at from several sides; empty without alignment.

    The teacher is whatever the target comes from: the EMA, a deeper block, or a frozen encoder.

    Per modality M that is aligned:
      `cosine/projected/M`: what the loss sees;
      `cosine/direct/M`: without the projector; not of an encoder, whose channels are others;
      `cosine/centred/M`: projected, after subtracting from both the batch mean at each position;
      `cosine/other_sample/M`: projected, with the teacher of another sample: what position alone explains;
      `norm/student/M`, `norm/teacher/M`, `rank/student/M`, `rank/teacher/M`: feature norm and effective rank.

    Tokens that are in no loss (context, padding, samples that could not be read) are in none of these either.
    """
    draw = objective.draw(keys_B, batch)
    output, teacher, _ = objective.views(params, frozen["ema"], batch, keys_B, draw)
    if teacher is None:
        return {}
    student = output.taps[objective.alignment.student_layer]
    projected = objective.project(params, student)
    metrics = {}
    for m in teacher:
        counted_BN1 = (draw.weight[m] > 0)[..., None]
        weighted = lambda values, m=m: jnp.sum(values * draw.weight[m])
        centre = partial(_centre, counted_BN1=counted_BN1)
        metrics[f"cosine/projected/{m}"] = weighted(cosine(projected[m], teacher[m]))
        if not isinstance(objective.alignment, ExternalEncoder):  # whose channels are others, however many
            metrics[f"cosine/direct/{m}"] = weighted(cosine(student[m], teacher[m]))
        metrics[f"cosine/centred/{m}"] = weighted(cosine(centre(projected[m]), centre(teacher[m])))
        other = draw.weight[m] * jnp.roll(counted_BN1[..., 0], 1, axis=0)  # where the other sample is no padding
        against = cosine(projected[m], jnp.roll(teacher[m], 1, axis=0))
        metrics[f"cosine/other_sample/{m}"] = jnp.sum(against * other) / jnp.maximum(other.sum(), 1e-12)
        for who, features in (("student", student[m]), ("teacher", teacher[m])):
            kept = jnp.where(counted_BN1, features.astype(jnp.float32), 0.0)  # zeros change no singular value
            metrics[f"norm/{who}/{m}"] = weighted(jnp.linalg.norm(kept, axis=-1))
            metrics[f"rank/{who}/{m}"] = effective_rank(kept.reshape(-1, kept.shape[-1]))
    return metrics


def _centre(x: Float[Array, "B N D"], counted_BN1: Bool[Array, "B N 1"]) -> Float[Array, "B N D"]:
    """Minus the mean over the batch at each position, of the tokens that count."""
    x = jnp.where(counted_BN1, x.astype(jnp.float32), 0.0)
    return x - x.sum(axis=0) / jnp.maximum(counted_BN1.sum(axis=0), 1)


def effective_rank(features: Float[Array, "M D"]) -> Float[Array, ""]:
    """exp(entropy of the normalised singular values), RankMe (arXiv 2210.02885); from 1 to D."""
    x = features.astype(jnp.float32)
    # R of x = QR has the singular values of x and is D x D, where M is many tokens. Not the Gram matrix: the roots
    # of its rounding errors look like directions.
    singular = jnp.linalg.svd(jnp.linalg.qr(x, mode="r"), compute_uv=False)
    p = singular / jnp.maximum(singular.sum(), 1e-12) + 1e-7
    return jnp.exp(-jnp.sum(p * jnp.log(p)))
