"""The multimodal model at 290 M parameters; all settings except its shape are those of joint_625m.py.

    selfflow train experiments/joint_290m.py --data.media.source ~/videos

Hardware, by `selfflow plan`: 256 chips. On v5e:16x16 7.2 GB per chip, at least 29 ms per step and 0.3 days; without
overlap of compute and communication 53 ms, 55 % MFU and 0.6 days.
On v5p:8x8x4 8.7 GB, 13 ms and 0.1 days, or 19 ms, 67 % and 0.2 days.
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
        model=JointConfig.named("290M", dtype="bfloat16"),
        alignment=SelfFlow(weight=0.8, student_layer=5, teacher_layer=13),
    )
