"""Self-Representation Alignment (arXiv 2505.02831)."""

from dataclasses import dataclass
from typing import Literal

from selfflow.objectives.alignment.ema_teacher import EMATeacher


@dataclass(frozen=True)
class SRA(EMATeacher):
    """Self-Representation Alignment (arXiv 2505.02831): an EMA copy sees a little less noise. Use it with the uniform
    schedule.

    The defaults are the paper's smooth l1 and the layers of SiT-XL/2; its other setting is cosine with weight 0.5.
    """

    kind: Literal["sra"] = "sra"
    weight: float = 0.2
    """gamma, the weight of the alignment loss beside the flow loss: 0.2 for smooth l1, 0.5 for cosine."""
    student_layer: int = 8
    metric: Literal["cosine", "l1", "smooth_l1"] = "smooth_l1"
    teacher_layer: int = 20
    teacher_view: Literal["min", "interval", "same"] = "interval"
