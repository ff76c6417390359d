"""The random draws of a batch, and the weight of each token in the losses."""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from selfflow.models.joint import Caption
from selfflow.noise import Corruption


class View(NamedTuple):
    """The corruption and the condition of a forward pass; samples and noise are those of the batch.

    Attributes:
      corruption: levels, assignment and context.
      label: class labels [B]; a dropped condition has the null label.
      caption: embeddings and their mask, which is empty for a dropped condition; None in components without captions.
    """

    corruption: Corruption
    label: Int[Array, "B"]
    caption: Caption | None


class Draw(NamedTuple):
    """The random draws of a batch, sample by sample, before it is split for gradient accumulation.

    Attributes:
      student: view of the student.
      teacher: view of the teacher; None without a teacher.
      valid: tokens that are not padding, of the modalities that may be padded, [B, N].
      weight: weight of each token in its modality's mean, [B, N]; sums to 1 over the whole batch,
        so that the losses of its parts add up to the loss of the whole.
      aligned: as `weight`, for the tokens that count in the alignment loss; empty without alignment.
      gamma: weight of the alignment loss at this step, the same for all samples, [B].
    """

    student: View
    teacher: View | None
    valid: dict[str, Bool[Array, "B N"]]
    weight: dict[str, Float[Array, "B N"]]
    aligned: dict[str, Float[Array, "B N"]]
    gamma: Float[Array, "B"]


def token_weight(
    corruption: Corruption,
    valid: dict[str, Bool[Array, "B N"]],
    weight_B: Float[Array, "B"],
    tokens: Literal["all", "noisier", "cleaner"] = "all",
) -> dict[str, Float[Array, "B N"]]:
    """Spreads sample weights over tokens that are neither context nor padding; sums to 1 over batch and modality.

    Args:
      corruption: corruption of the batch.
      valid: tokens that are not padding, of the modalities that may be padded.
      weight_B: weights of the samples.
      tokens: which tokens count: all, or those at the highest or at the lowest level of their sample and modality.
    """
    weight, tau = {}, corruption.tau()
    for m, assignment_BN in corruption.assignment.items():
        counted_BN = jnp.broadcast_to(weight_B[:, None], assignment_BN.shape).astype(jnp.float32)
        if m in corruption.context:
            counted_BN *= ~corruption.context[m]
        if m in valid:
            counted_BN *= valid[m]
        if tokens != "all":
            # Context has the lowest level, 0, and is excluded from the extreme.
            free_BN = jnp.ones_like(assignment_BN, bool)
            if m in corruption.context:
                free_BN = ~corruption.context[m]
            # The lowest tau is the highest -tau.
            sign = 1 if tokens == "noisier" else -1
            extreme_B1 = jnp.max(sign * tau[m], axis=1, keepdims=True, initial=-jnp.inf, where=free_BN)
            counted_BN *= sign * tau[m] >= extreme_B1
        # If no token counts, the weights are 0.
        total = counted_BN.sum()
        weight[m] = counted_BN / jnp.where(total > 0, total, 1.0)
    return weight
