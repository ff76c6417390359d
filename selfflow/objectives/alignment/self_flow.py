"""Self-Flow (arXiv 2603.06507)."""

from dataclasses import dataclass
from typing import Literal

from selfflow.objectives.alignment.ema_teacher import EMATeacher


@dataclass(frozen=True)
class SelfFlow(EMATeacher):
    """Alignment with the EMA copy, which sees all tokens at the cleaner of the two levels (arXiv 2603.06507)."""

    kind: Literal["self_flow"] = "self_flow"
