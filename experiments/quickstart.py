"""The joint model on the embedded Collisions data, small enough for two CPU cores.

    selfflow train experiments/quickstart.py

Hardware: two CPU cores, 2.5 GB. Wall time: about 5 minutes, data building included.
Expect a normalised loss on the test split of video 0.8, audio 0.9, image 0.5 to 0.7; image differs most between seeds.
"""

from selfflow.autoencoders.linear import MdctPCA, PatchPCA
from selfflow.config.experiment import Experiment, FinalEvaluation
from selfflow.data.collisions import Collisions
from selfflow.input.mixture import Component
from selfflow.models.joint_config import JointConfig
from selfflow.noise import DualTimestep
from selfflow.objectives.alignment import SelfFlow
from selfflow.training.optimizer import AdamW


def experiment() -> Experiment:
    return Experiment(
        data={"collisions": Collisions()},
        autoencoders={
            "image": PatchPCA(patch=8, channels=32),
            "video": PatchPCA(patch=8, channels=32),
            "audio": MdctPCA(temporal_stride=320, channels=128),
        },
        patch={"image": (1, 1), "video": (1, 2, 2), "audio": (1,)},
        mixture={
            "joint": Component(modalities=("video", "audio"), weight=0.7, batch_size=16),
            "image": Component(modalities=("image",), weight=0.3, batch_size=64),
        },
        model=JointConfig(width=128, heads=4, double_blocks=2, single_blocks=4, rotary=(8, 8, 8, 8)),
        schedule=DualTimestep(mask_ratio={"image": 0.25, "video": 0.1, "audio": 0.5}),
        alignment=SelfFlow(weight=0.8, student_layer=2, teacher_layer=4),
        optimizer=AdamW(learning_rate=2e-3, warmup_steps=None, decay="cosine"),
        steps=400,
        final_evaluation=FinalEvaluation(probe_clips=512),
    )
