"""The EMA copy of the student as the teacher, the common part of Self-Flow and SRA."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
from jaxtyping import Array, Key

from selfflow.errors import UserError
from selfflow.models.joint import Output
from selfflow.noise import Schedule
from selfflow.objectives.alignment.base import (
    FeatureAlignment,
    Features,
    Forward,
    SampleShape,
    check_below,
    check_block,
)
from selfflow.objectives.draw import Draw, View


@dataclass(frozen=True)
class EMATeacher(FeatureAlignment):
    """Alignment with the features of the EMA copy after block k, at the noise levels of `teacher_view`."""

    teacher_layer: int = 14
    """k: the teacher's features are taken after this block (about 0.7 of the depth); l < k."""
    teacher_view: Literal["min", "interval", "same"] = "min"
    """Noise levels of the teacher: the lower of the two for all tokens (arXiv 2603.06507); each level minus a uniform
    draw up to `interval`, at least 0, as in SRA and in the code of arXiv 2607.02508; or the student's levels."""
    interval: float = 0.2
    """Upper bound of the draw that `interval` subtracts from a level (arXiv 2505.02831)."""
    teacher_keeps_condition: bool = False
    """Whether the teacher sees labels and captions that are dropped for the student, as in the code of
    arXiv 2607.02508."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.interval <= 1:
            raise UserError(f"alignment.interval is {self.interval}: give a number above 0, up to 1")

    def check(self, depth: int, width: int, modalities: dict[str, str]) -> None:
        """Raises `UserError` unless both blocks exist and the student's lies below the teacher's."""
        super().check(depth, width, modalities)
        check_block("teacher_layer", self.teacher_layer, depth)
        check_below(self.student_layer, self.teacher_layer)

    def draw_teacher(self, student: View, undropped: View, schedule: Schedule, keys_B: Key[Array, "B"]) -> View:
        # tau_i of the teacher: min(t, s); max(tau_i - U(0, interval), 0), one draw per level; or tau_i.
        corruption = student.corruption
        if self.teacher_view == "min":
            corruption = corruption.at_min_level()
        elif self.teacher_view == "interval":
            corruption = corruption.lowered_by(schedule.intervals(keys_B, corruption, self.interval))
        condition = undropped if self.teacher_keeps_condition else student
        return condition._replace(corruption=corruption)

    def target(
        self, forward: Forward, frozen: dict[str, Any], student: Output, batch: dict[str, Any], draw: Draw
    ) -> Features:
        """Computes the EMA copy's features after block k; later blocks are not run."""
        # [B, N, D] by modality.
        ema, k = jax.lax.stop_gradient(frozen["ema"]), self.teacher_layer
        return forward(ema, draw.teacher, taps=(k,), stop_at=k, teacher=True).taps[k]

    def extra_flops(self, sample: SampleShape) -> float:
        """Returns the operations of the projector and of the teacher's forward pass through k blocks."""
        levels = sample.levels
        if self.teacher_view == "min":
            levels = dict.fromkeys(levels, 1 + sample.context)
        return super().extra_flops(sample) + sample.forward(levels, self.teacher_layer)
