"""Diagnostics of the alignment loss: cosines beside trivial baselines, norms and ranks of student and teacher."""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from selfflow.objectives.alignment.base import cosine


def alignment_diagnostics(
    student: dict[str, Float[Array, "B N D"]],
    projected: dict[str, Float[Array, "B N E"]],
    target: dict[str, Float[Array, "B N E"]],
    weight: dict[str, Float[Array, "B N"]],
    same_width: bool,
) -> dict[str, Float[Array, ""]]:
    """Computes diagnostics of the alignment on one batch; empty without alignment.

    Teacher means the source of the target: the EMA, a deeper block, or a frozen encoder.

    Per aligned modality M:
      `cosine/projected/M`: the cosine of the loss;
      `cosine/direct/M`: without the projector; only if the target has the model's width;
      `cosine/centred/M`: projected, after subtracting from both the batch mean at each position;
      `cosine/other_sample/M`: projected, with the teacher of another sample: the cosine due to position alone;
      `norm/student/M`, `norm/teacher/M`, `rank/student/M`, `rank/teacher/M`: feature norm and effective rank.

    Args:
      student: features before the projector, by modality.
      projected: features after the projector.
      target: features of the teacher.
      weight: weight of each token in the mean of its modality. Tokens of weight 0 (context, padding, unreadable
        samples) are left out.
      same_width: whether E is D, the model's width.
    """
    metrics = {}
    for m, teacher_BNE in target.items():
        projected_BNE, student_BND, weight_BN = projected[m], student[m], weight[m]
        counted_BN1 = (weight_BN > 0)[..., None]
        centre = partial(_centre, counted_BN1=counted_BN1)

        metrics[f"cosine/projected/{m}"] = jnp.sum(cosine(projected_BNE, teacher_BNE) * weight_BN)
        if same_width:
            metrics[f"cosine/direct/{m}"] = jnp.sum(cosine(student_BND, teacher_BNE) * weight_BN)
        metrics[f"cosine/centred/{m}"] = jnp.sum(cosine(centre(projected_BNE), centre(teacher_BNE)) * weight_BN)

        # The token of the other sample at the same position may be padding.
        other_BN = weight_BN * jnp.roll(counted_BN1[..., 0], 1, axis=0)
        against = cosine(projected_BNE, jnp.roll(teacher_BNE, 1, axis=0))
        metrics[f"cosine/other_sample/{m}"] = jnp.sum(against * other_BN) / jnp.maximum(other_BN.sum(), 1e-12)

        for side, x in (("student", student_BND), ("teacher", teacher_BNE)):
            counted = jnp.where(counted_BN1, x.astype(jnp.float32), 0.0)  # zeros change no singular value
            metrics[f"norm/{side}/{m}"] = jnp.sum(jnp.linalg.norm(counted, axis=-1) * weight_BN)
            metrics[f"rank/{side}/{m}"] = effective_rank(counted.reshape(-1, counted.shape[-1]))
    return metrics


def _centre(x: Float[Array, "B N D"], counted_BN1: Bool[Array, "B N 1"]) -> Float[Array, "B N D"]:
    """Subtracts the batch mean at each position, over the tokens that count."""
    x = jnp.where(counted_BN1, x.astype(jnp.float32), 0.0)
    return x - x.sum(axis=0) / jnp.maximum(counted_BN1.sum(axis=0), 1)


def effective_rank(features: Float[Array, "M D"]) -> Float[Array, ""]:
    """exp(entropy of the normalised singular values), RankMe (arXiv 2210.02885); from 1 to D."""
    x = features.astype(jnp.float32)
    # R of x = QR has the singular values of x and is D x D, where M is many tokens. The Gram matrix is less accurate:
    # the square roots of its rounding errors would count as singular values.
    singular = jnp.linalg.svd(jnp.linalg.qr(x, mode="r"), compute_uv=False)
    p = singular / jnp.maximum(singular.sum(), 1e-12) + 1e-7
    return jnp.exp(-jnp.sum(p * jnp.log(p)))
