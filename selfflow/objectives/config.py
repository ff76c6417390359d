"""The choice of an objective in an experiment."""

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True)
class FlowMatching:
    """Joint flow matching: L = sum over modalities m of w_m (L_flow,m + gamma L_align,m), arXiv 2603.06507.

    It has no settings: `schedule`, `alignment`, `modality_weight`, `condition_drop` and `separation` of the
    experiment define it.
    """

    kind: Literal["flow_matching"] = "flow_matching"
    uses: ClassVar[tuple[str, ...]] = ("alignment", "modality_weight", "condition_drop", "separation")
    """Fields of the experiment that the objective reads beside `schedule`. Other fields must have no effect:
    alignment NoAlignment(), condition_drop 0, modality_weight {}, separation None."""
