"""Which noise should the student see?

    selfflow sweep experiments/ablations/schedules.py --jobs 2 --workdir runs/ablations/schedules

dual          two taus, drawn independently and unsorted: Dual-Timestep Scheduling (arXiv 2603.06507)
uniform       one tau for all tokens, so that student and teacher see the same noise; worse by more than 1 FID in that
              paper
sorted        two taus, masked tokens always at the higher one
band          two taus at most 0.2 apart; about as bad as one tau in that paper
full_masking  masked tokens at tau = 1
forcing       one tau per token (arXiv 2407.01392)

Exploratory: three seeds. The base and the measurements are those of experiments/ablations/self_flow.py. The flow
losses of the report's table are all measured with one tau for all tokens; those of its learning curves are each arm's
own and cannot be compared.

Hardware: two CPU cores, 2 GB per run. Wall time: 6 to 8 minutes per run with two runs at once.
"""

from collections.abc import Iterable

from selfflow.experiments.ablations.self_flow import experiment
from selfflow.noise import DiffusionForcing, FullMasking, UniformTimestep
from selfflow.sweep import Member, axis, chain, seeds

__all__ = ["experiment", "sweep"]


def sweep() -> Iterable[Member]:
    dual = [
        Member("dual", {}),
        Member("sorted", {"schedule.sorted": True}),
        Member("band", {"schedule.band": 0.2}),
    ]
    rivals = {"uniform": UniformTimestep(), "full_masking": FullMasking(), "forcing": DiffusionForcing()}
    return seeds(chain(dual, axis("schedule", rivals)), range(1, 4))
