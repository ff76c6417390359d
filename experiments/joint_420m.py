"""The multimodal model at 420 M parameters; all but its shape is that of joint_625m.py.

    selfflow train experiments/joint_420m.py --data.media.source ~/videos

Hardware: 256 chips, or fewer with smaller batches; `selfflow plan experiments/joint_420m.py --topology v5e:16x16` tells
what it takes. It has not been trained by us, so that there is no number to expect.
"""

import dataclasses

from selfflow.experiment import Experiment
from selfflow.experiments import joint_625m
from selfflow.models.joint_config import JointConfig
from selfflow.objectives.alignment import SelfFlow


def experiment() -> Experiment:
    return dataclasses.replace(
        joint_625m.experiment(),
        model=JointConfig.named("420M", dtype="bfloat16"),
        alignment=SelfFlow(weight=0.8, student_layer=5, teacher_layer=13),
    )
