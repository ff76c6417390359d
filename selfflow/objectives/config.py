"""The choice of an objective in an experiment."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FlowMatching:
    """Joint flow matching: L = sum over modalities m of w_m (L_flow,m + gamma L_align,m), arXiv 2603.06507.

    It has no settings: `schedule`, `alignment`, `modality_weight`, `condition_drop` and `separation` of the
    experiment define it.
    """

    kind: Literal["flow_matching"] = "flow_matching"
