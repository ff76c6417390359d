"""No alignment."""

from dataclasses import dataclass
from typing import Literal

from selfflow.objectives.alignment.base import AlignmentMethod


@dataclass(frozen=True)
class NoAlignment(AlignmentMethod):
    """Flow matching alone, without a teacher; the EMA is kept for sampling and evaluation."""

    kind: Literal["none"] = "none"
