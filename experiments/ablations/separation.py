"""Do cleaner tokens teach noisier ones? Attention Separation keeps them from seeing each other (arXiv 2607.02508).

    selfflow sweep experiments/ablations/separation.py --jobs 2 --workdir runs/ablations/separation

together  every token sees all others: Self-Flow
apart     masked tokens and the others do not see each other, in any sample
quarter   as apart, but for a quarter of the samples, which stay whole
teacher   as quarter, and the teacher's tokens are separated too, as in the code released with that paper

Exploratory: three seeds. The base, what is measured and how are those of experiments/ablations/self_flow.py.

Hardware: two CPU cores, 2 GB for each member. Wall time: 6 to 8 minutes for a member where two run at once.
"""

from collections.abc import Iterable

from selfflow.experiments.ablations.self_flow import experiment
from selfflow.models.separation import Separation
from selfflow.sweep.members import Member, axis, seeds

__all__ = ["experiment", "sweep"]


def sweep() -> Iterable[Member]:
    choices = {
        "together": None,
        "apart": Separation(whole=0.0),
        "quarter": Separation(),
        "teacher": Separation(teacher=True),
    }
    return seeds(axis("separation", choices), range(1, 4))
