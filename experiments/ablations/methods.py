"""What should the student's features be aligned with?

    pip install -e '.[evaluation]'
    selfflow sweep experiments/ablations/methods.py --jobs 2 --workdir runs/ablations/methods

vanilla     nothing; one tau
self_flow   the EMA copy, which sees the lower of two taus (arXiv 2603.06507)
sra         the EMA copy, which sees slightly less noise; one tau (arXiv 2505.02831)
layer_sync  a later block of the same forward pass; one tau (arXiv 2510.12581)
external    EfficientNet-Lite0's features of clean frames and images, audio unaligned; one tau (REPA, arXiv 2410.06940)

Each arm has the weight, the metric and the projector of its paper, and the quickstart's blocks 2 and 4.

Exploratory: three seeds. The base and the measurements are those of experiments/ablations/self_flow.py. KID on
EffNet's features favours the arm that was aligned with them.

Hardware: two CPU cores, 2 GB per run. Wall time: 6 to 8 minutes per run with two runs at once.
"""

from collections.abc import Iterable

from selfflow.encoders import EffNetLite0
from selfflow.experiments.ablations.self_flow import experiment
from selfflow.noise import UniformTimestep
from selfflow.objectives.alignment import SRA, ExternalEncoder, LayerSync, NoAlignment
from selfflow.sweep import Member, seeds

__all__ = ["experiment", "sweep"]


def sweep() -> Iterable[Member]:
    encoders = {"image": EffNetLite0(), "video": EffNetLite0(), "audio": None}
    one_tau = {
        "vanilla": NoAlignment(),
        "sra": SRA(student_layer=2, teacher_layer=4),
        "layer_sync": LayerSync(student_layer=2, teacher_layer=4),
        "external": ExternalEncoder(student_layer=2, encoders=encoders),
    }
    arms = [
        Member(name, {"schedule": UniformTimestep(), "alignment": alignment}) for name, alignment in one_tau.items()
    ]
    return seeds([*arms, Member("self_flow", {})], range(1, 4))
