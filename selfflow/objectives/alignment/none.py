"""No alignment."""

from dataclasses import dataclass
from typing import Literal

from selfflow.objectives.alignment.base import AlignmentMethod


@dataclass(frozen=True)
class NoAlignment(AlignmentMethod):
    """Flow matching alone: no teacher runs; an EMA is still kept to sample from."""

    kind: Literal["none"] = "none"
