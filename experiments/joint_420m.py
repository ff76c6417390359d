"""The multimodal model at 420 M parameters; all settings except its shape are those of joint_625m.py.

    selfflow train experiments/joint_420m.py --data.media.source ~/videos

Hardware, by `selfflow plan`: 256 chips. On v5e:16x16 8.4 GB per chip, at least 39 ms per step and 0.5 days; without
overlap of compute and communication 69 ms, 57 % MFU and 0.8 days.
On v5p:8x8x4 10.2 GB, 17 ms and 0.2 days, or 25 ms, 69 % and 0.3 days.
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
        model=JointConfig.named("420M", dtype="bfloat16"),
        alignment=SelfFlow(weight=0.8, student_layer=5, teacher_layer=13),
    )
