"""Alignment: the student's features after block l, seen through mixed noise, against the teacher's after block k."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from selfflow.errors import UserError
from selfflow.models.layers import widened


@dataclass(frozen=True)
class NoAlignment:
    """Flow matching alone: no teacher runs; an EMA is still kept to sample from."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True)
class SelfFlow:
    """Alignment with the EMA copy, which sees all tokens at the cleaner of the two levels (arXiv 2603.06507)."""

    kind: Literal["self_flow"] = "self_flow"
    weight: float = 0.8
    """gamma, the weight of the alignment loss beside the flow loss."""
    student_layer: int = 6
    """l: the student's features are taken after this block, counted from 1 (about 0.3 of the depth)."""
    teacher_layer: int = 14
    """k: the teacher's features are taken after this block (about 0.7 of the depth); l < k."""

    def check(self, depth: int) -> None:
        """Raises `UserError` unless 1 <= l < k <= depth."""
        for name in ("student_layer", "teacher_layer"):
            if not 1 <= getattr(self, name) <= depth:
                raise UserError(f"alignment.{name} is {getattr(self, name)}, but the model has blocks 1 to {depth}")
        if self.student_layer >= self.teacher_layer:
            raise UserError(
                f"alignment.student_layer {self.student_layer} must be below alignment.teacher_layer "
                f"{self.teacher_layer}: the student predicts deeper features"
            )
        if self.weight < 0:
            raise UserError(f"alignment.weight is {self.weight}: it must not be negative")


Alignment = NoAlignment | SelfFlow


def cosine(a: Float[Array, "... D"], b: Float[Array, "... D"]) -> Float[Array, "..."]:
    """Cosine over the feature axis, in float32: half precision overflows in the norms."""
    a, b = widened(a), widened(b)
    squares = jnp.sum(a * a, axis=-1) * jnp.sum(b * b, axis=-1)
    return jnp.sum(a * b, axis=-1) * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))


def alignment_error(
    student: dict[str, Float[Array, "B N D"]], teacher: dict[str, Float[Array, "B N D"]]
) -> dict[str, Float[Array, "B N"]]:
    """1 - cos between the projected student and the teacher, per token; no gradient reaches the teacher."""
    return {m: 1 - cosine(student[m], jax.lax.stop_gradient(teacher[m])) for m in student}
