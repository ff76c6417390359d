"""How much alignment, and for how long?

    selfflow sweep experiments/ablations/weight.py --jobs 2 --workdir runs/ablations/weight

none           two taus, no alignment
0.2, 0.8, 3.2  alignment with the EMA copy at this weight; 0.8 is that of arXiv 2603.06507
half           0.8 for the first half of training, then none: the early termination of HASTE (arXiv 2505.16792)

Exploratory: three seeds. The base and the measurements are those of experiments/ablations/self_flow.py.

Hardware: two CPU cores, 2 GB per run. Wall time: 6 to 8 minutes per run with two runs at once.
"""

from collections.abc import Iterable

from selfflow.config.experiment import Experiment
from selfflow.experiments.ablations.self_flow import experiment
from selfflow.objectives.alignment import NoAlignment
from selfflow.sweep import Member, axis, chain, seeds

__all__ = ["experiment", "sweep"]


def sweep(base: Experiment) -> Iterable[Member]:
    none = [Member("none", {"alignment": NoAlignment()})]
    half = [Member("half", {"alignment.until": base.steps // 2})]
    return seeds(chain(none, axis("alignment.weight", (0.2, 0.8, 3.2)), half), range(1, 4))
