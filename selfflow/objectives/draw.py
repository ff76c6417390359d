"""What is drawn for a batch before anything is computed of it, and which of its tokens count."""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from selfflow.models.joint import Caption
from selfflow.noise import Corruption


class Draw(NamedTuple):
    """All that is drawn for a batch, sample by sample, before it is split for gradient accumulation.

    Attributes:
      corruption: levels, assignment and context.
      label: the condition that the student sees, [B]; dropped labels are already null.
      caption: the other condition; dropped captions have an empty mask. None in sets without.
      valid: tokens that are not padding, of the modalities that may be padded, [B, N].
      weight: weight of each token in its modality's mean, [B, N]; sums to 1 over the whole batch,
        so that the losses of its parts add up to the loss of the whole.
      teacher: what the teacher sees.
      aligned: as `weight`, of the tokens that count in the alignment loss.
      gamma: weight of the alignment loss at this step, the same for all samples, [B].
    """

    corruption: Corruption
    label: Int[Array, "B"]
    caption: Caption | None
    valid: dict[str, Bool[Array, "B N"]]
    weight: dict[str, Float[Array, "B N"]]
    teacher: "TeacherView | None" = None
    aligned: dict[str, Float[Array, "B N"]] = {}
    gamma: Float[Array, "B"] | None = None


class TeacherView(NamedTuple):
    """What the teacher sees of a batch, beside the samples and their noise; as in `Draw`."""

    corruption: Corruption
    label: Int[Array, "B"]
    caption: Caption | None


def token_weight(
    corruption: Corruption,
    valid: dict[str, Bool[Array, "B N"]],
    weight_B: Float[Array, "B"],
    tokens: Literal["all", "noisier", "cleaner"] = "all",
) -> dict[str, Float[Array, "B N"]]:
    """The samples' weights for tokens that are neither context nor padding, summing to 1 over the batch and modality.

    Args:
      corruption: of the batch.
      valid: tokens that are not padding, of the modalities that may be padded.
      weight_B: of the samples.
      tokens: noisier or cleaner ones alone: those at the highest or at the lowest level of their sample and modality.
    """
    weight, tau = {}, corruption.tau()
    for m, assignment_BN in corruption.assignment.items():
        counted_BN = jnp.broadcast_to(weight_B[:, None], assignment_BN.shape).astype(jnp.float32)
        if m in corruption.context:
            counted_BN *= ~corruption.context[m]
        if m in valid:
            counted_BN *= valid[m]
        if tokens != "all":
            free_BN = ~corruption.context[m] if m in corruption.context else jnp.ones_like(assignment_BN, bool)
            sign = 1 if tokens == "noisier" else -1
            extreme_B1 = jnp.max(sign * tau[m], axis=1, keepdims=True, initial=-jnp.inf, where=free_BN)
            counted_BN *= sign * tau[m] >= extreme_B1
        # Where nothing counts the weights stay 0.
        total = counted_BN.sum()
        weight[m] = counted_BN / jnp.where(total > 0, total, 1.0)
    return weight
