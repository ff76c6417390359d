"""What a reader must see to trust the alignment loss: cosines that cannot be had for free, norms, ranks."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from selfflow.objectives.alignment import cosine
from selfflow.objectives.selfflow import SelfFlowObjective
from selfflow.representation.collapse import effective_rank, mean_norm


def diagnose(
    objective: SelfFlowObjective, params: Any, frozen: dict[str, Any], batch: dict[str, Any], keys_B: Key[Array, "B"]
) -> dict[str, Float[Array, ""]]:
    """Alignment of one batch, looked at from several sides; empty without alignment.

    Per modality M:
      `cosine/projected/M`: what the loss sees;
      `cosine/direct/M`: without the projector;
      `cosine/centred/M`: projected, after subtracting from both the batch mean at each position;
      `cosine/other_sample/M`: projected, with the teacher of another sample: what position alone explains;
      `norm/student/M`, `norm/teacher/M`, `rank/student/M`, `rank/teacher/M`: feature norm and effective rank.
    """
    draw = objective.draw(keys_B, batch)
    student_output, teacher_output, _ = objective.views(params, frozen["ema"], batch, keys_B, draw)
    if teacher_output is None:
        return {}
    student = student_output.taps[objective.alignment.student_layer]
    teacher = teacher_output.taps[objective.alignment.teacher_layer]
    projected = objective.project(params, student)
    metrics = {}
    for m in student:
        weighted = lambda values, m=m: jnp.sum(values * draw.weight[m])
        centre = lambda x: x.astype(jnp.float32) - x.astype(jnp.float32).mean(axis=0)
        metrics[f"cosine/projected/{m}"] = weighted(cosine(projected[m], teacher[m]))
        metrics[f"cosine/direct/{m}"] = weighted(cosine(student[m], teacher[m]))
        metrics[f"cosine/centred/{m}"] = weighted(cosine(centre(projected[m]), centre(teacher[m])))
        metrics[f"cosine/other_sample/{m}"] = weighted(cosine(projected[m], jnp.roll(teacher[m], 1, axis=0)))
        for who, features in (("student", student[m]), ("teacher", teacher[m])):
            flat = features.reshape(-1, features.shape[-1])
            metrics[f"norm/{who}/{m}"] = mean_norm(flat)
            metrics[f"rank/{who}/{m}"] = effective_rank(flat)
    return metrics
