"""The quickstart, made as small as it goes: what tests train."""

import dataclasses
from pathlib import Path

from selfflow.config.experiment import Experiment, FinalEvaluation
from selfflow.config.files import load_experiment
from selfflow.input.mixture import Component
from selfflow.models.joint_config import JointConfig
from selfflow.objectives.alignment import SelfFlow
from selfflow.sampling.generate import Sampler
from selfflow.training.loop import Cadence


def experiment() -> Experiment:
    quickstart = load_experiment(Path(__file__).parents[1] / "experiments" / "quickstart.py")
    return dataclasses.replace(
        quickstart,
        data={
            "collisions": dataclasses.replace(
                quickstart.data["collisions"],
                train_clips=24,
                validation_clips=12,
                test_clips=12,
                shifted_clips=2,
                workers=1,
            )
        },
        mixture={
            "joint": Component(modalities=("video", "audio"), weight=0.5, batch_size=2),
            "image": Component(modalities=("image",), weight=0.5, batch_size=4),
        },
        model=JointConfig(width=32, heads=2, double_blocks=1, single_blocks=2, mlp_ratio=2.0, rotary=(4, 4, 4, 4)),
        schedule=dataclasses.replace(quickstart.schedule, context={"modality": 0.2, "first_frame": 0.1, "prefix": 0.1}),
        alignment=SelfFlow(student_layer=1, teacher_layer=2),
        optimizer=dataclasses.replace(quickstart.optimizer, decay="constant"),  # so that a run can be made longer
        steps=12,
        cadence=Cadence(log_every=4, checkpoint_every=3),
        sampler=Sampler(steps=2),
        final_evaluation=FinalEvaluation(samples=2, probe_clips=24),
    )
