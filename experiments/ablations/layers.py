"""Which block's features should predict which block's, in a network of six?

    selfflow sweep experiments/ablations/layers.py --jobs 2 --workdir runs/ablations/layers

An arm 2_4 aligns the student's block 2 with the teacher's block 4: the quickstart's choice, about 0.3 and 0.7 of the
depth, as in arXiv 2603.06507, where the student's layer made little difference.

Exploratory: three seeds. The base and the measurements are those of experiments/ablations/self_flow.py.

Hardware: two CPU cores, 2 GB per run. Wall time: 6 to 8 minutes per run with two runs at once.
"""

from collections.abc import Iterable

from selfflow.experiments.ablations.self_flow import experiment
from selfflow.sweep import Member, seeds

__all__ = ["experiment", "sweep"]

_PAIRS = ((2, 4), (1, 4), (2, 6), (4, 6))


def sweep() -> Iterable[Member]:
    arms = [
        Member(f"{student}_{teacher}", {"alignment.student_layer": student, "alignment.teacher_layer": teacher})
        for student, teacher in _PAIRS
    ]
    return seeds(arms, range(1, 4))
