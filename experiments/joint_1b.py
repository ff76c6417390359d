"""The multimodal model at 1B parameters; all but its shape is that of joint_625m.py.

    selfflow train experiments/joint_1b.py --data.media.source ~/videos

It has not been trained by us, so that there is no number to expect.
"""

import dataclasses

from selfflow.experiment import Experiment
from selfflow.experiments import joint_625m
from selfflow.models.joint_config import JointConfig
from selfflow.objectives.alignment import SelfFlow


def experiment() -> Experiment:
    return dataclasses.replace(
        joint_625m.experiment(),
        model=JointConfig.named("1B", dtype="bfloat16"),
        alignment=SelfFlow(weight=0.8, student_layer=7, teacher_layer=15),
    )
