"""LayerSync (arXiv 2510.12581)."""

from dataclasses import dataclass
from typing import Any, Literal

import jax

from selfflow.models.joint import Output
from selfflow.objectives.alignment.base import FeatureAlignment, Features, Forward, check_below, check_block
from selfflow.objectives.draw import Draw


@dataclass(frozen=True)
class LayerSync(FeatureAlignment):
    """Alignment with a deeper layer of the student's own forward pass, without gradient (arXiv 2510.12581).

    There is no teacher and no projector; the EMA is kept for sampling and evaluation. The default weight and layers are
    those of the released code for SiT-XL/2.
    """

    kind: Literal["layer_sync"] = "layer_sync"
    weight: float = 0.2
    """gamma, the weight of the alignment loss beside the flow loss."""
    student_layer: int = 8
    """l: the student's features are taken after this block, counted from 1."""
    projector_depth: int = 0
    """Layers of the student's projector; the paper has none."""
    teacher_layer: int = 16
    """k: the block whose features are the target; l < k."""

    @property
    def student_taps(self) -> tuple[int, ...]:
        return (self.student_layer, self.teacher_layer)

    def check(self, depth: int, width: int, modalities: dict[str, str]) -> None:
        """Raises `UserError` unless both blocks exist and the student's lies below the target's."""
        super().check(depth, width, modalities)
        check_block("teacher_layer", self.teacher_layer, depth)
        check_below(self.student_layer, self.teacher_layer)

    def target(
        self, forward: Forward, frozen: dict[str, Any], student: Output, batch: dict[str, Any], draw: Draw
    ) -> Features:
        """Returns the student's features after block k, without gradient."""
        return jax.lax.stop_gradient(student.taps[self.teacher_layer])
