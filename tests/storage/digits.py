"""A small experiment on images alone, whose run takes seconds: what is trained into buckets."""

from selfflow.autoencoders.linear import PatchPCA
from selfflow.config.experiment import Experiment, FinalEvaluation
from selfflow.data.digits import Digits
from selfflow.input.mixture import Component
from selfflow.models.joint_config import JointConfig
from selfflow.objectives.alignment import SelfFlow
from selfflow.sampling.generate import Sampler
from selfflow.training.loop import Cadence
from selfflow.training.optimizer import AdamW


def experiment() -> Experiment:
    return Experiment(
        data={"digits": Digits(size=16)},
        autoencoders={"image": PatchPCA(patch=4, channels=8)},
        patch={"image": (1, 1)},
        mixture={"image": Component(modalities=("image",), batch_size=4)},
        model=JointConfig(width=16, heads=2, double_blocks=1, single_blocks=1, mlp_ratio=2.0, rotary=(2, 2, 2, 2)),
        alignment=SelfFlow(student_layer=1, teacher_layer=2),
        optimizer=AdamW(decay="constant"),
        steps=9,
        cadence=Cadence(log_every=4, checkpoint_every=3),
        sampler=Sampler(steps=2),
        final_evaluation=FinalEvaluation(samples=2),
    )
