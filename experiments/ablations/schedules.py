"""Which noise should the student see, while it predicts what its EMA copy makes of the cleaner view?

    selfflow sweep experiments/ablations/schedules.py --jobs 2 --workdir runs/ablations/schedules

dual          two taus, drawn alike and unsorted: Dual-Timestep Scheduling (arXiv 2603.06507)
uniform       one tau for all tokens, so that student and teacher see the same noise: without masking, in that paper's
              words, where it was worse by more than 1 FID
sorted        two taus, the masked tokens always the noisier
band          two taus that are at most 0.2 apart, in that paper about as bad as one
full_masking  masked tokens all noise
forcing       a tau for every token (arXiv 2407.01392)

Exploratory: three seeds. The base, what is measured and how are those of experiments/ablations/self_flow.py. The flow
losses of the report's table are all measured with one tau for all tokens; those of its learning curves are each arm's
own, and not to be compared.

Hardware: two CPU cores, 2 GB for each member. Wall time: 6 to 8 minutes for a member where two run at once.
"""

from collections.abc import Iterable

from selfflow.experiments.ablations.self_flow import experiment
from selfflow.noise import DiffusionForcing, FullMasking, UniformTimestep
from selfflow.sweep.members import Member, axis, chain, seeds

__all__ = ["experiment", "sweep"]


def sweep() -> Iterable[Member]:
    dual = [
        Member("dual", {}),
        Member("sorted", {"schedule.sorted": True}),
        Member("band", {"schedule.band": 0.2}),
    ]
    rivals = {"uniform": UniformTimestep(), "full_masking": FullMasking(), "forcing": DiffusionForcing()}
    return seeds(chain(dual, axis("schedule", rivals)), range(1, 4))
