"""Do noisier tokens learn from cleaner ones? Attention Separation excludes attention between them (arXiv 2607.02508).

    selfflow sweep experiments/ablations/separation.py --jobs 2 --workdir runs/ablations/separation

together  every token attends to all others: Self-Flow
apart     no attention between masked and other tokens, in any sample
quarter   as apart, except for a quarter of the samples, which keep full attention
teacher   as quarter, with the teacher's tokens separated too, as in the code released with that paper

Exploratory: three seeds. The base and the measurements are those of experiments/ablations/self_flow.py.

Hardware: two CPU cores, 2 GB per run. Wall time: 6 to 8 minutes per run with two runs at once.
"""

from collections.abc import Iterable

from selfflow.experiments.ablations.self_flow import experiment
from selfflow.models.separation import Separation
from selfflow.sweep import Member, axis, seeds

__all__ = ["experiment", "sweep"]


def sweep() -> Iterable[Member]:
    choices = {
        "together": None,
        "apart": Separation(whole=0.0),
        "quarter": Separation(),
        "teacher": Separation(teacher=True),
    }
    return seeds(axis("separation", choices), range(1, 4))
