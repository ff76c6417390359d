"""The multimodal model at 1 B parameters; all settings except its shape are those of joint_625m.py.

    selfflow train experiments/joint_1b.py --data.media.source ~/videos

Hardware, by `selfflow plan`: 256 chips. On v5e:16x16 14.5 GB per chip, at least 93 ms per step and 1.1 days; without
overlap of compute and communication 167 ms, 56 % MFU and 1.9 days.
On v5p:8x8x4 18.6 GB, 40 ms and 0.5 days, or 59 ms, 68 % and 0.7 days.
It has not been trained, so there is no expected number.
"""

import dataclasses

from selfflow.config.experiment import Experiment
from selfflow.experiments import joint_625m
from selfflow.models.joint_config import JointConfig
from selfflow.objectives.alignment import SelfFlow


def experiment() -> Experiment:
    return dataclasses.replace(
        joint_625m.experiment(),
        model=JointConfig.named("1B", dtype="bfloat16"),
        alignment=SelfFlow(weight=0.8, student_layer=7, teacher_layer=15),
    )
