"""SiT-S/2 with Self-Flow on handwritten digits: the class-conditional image model of the paper at its smallest size.

    pip install 'selfflow[mnist]'
    selfflow train experiments/sit_s.py --steps 20

Latents are 32 x 32 x 4, as those of ImageNet at 256 pixels, so that a step costs what it costs there: 256 tokens.

Hardware: two CPU cores, 4 GB; 2.3 s per step at batch size 8. The full 5 000 steps need an accelerator.
"""

from selfflow.autoencoders.linear import PatchPCA
from selfflow.config.experiment import Experiment
from selfflow.data.mnist5k import Mnist5k
from selfflow.input.mixture import Component
from selfflow.models.sit import SiTConfig
from selfflow.noise import DualTimestep
from selfflow.objectives.alignment import SelfFlow


def experiment() -> Experiment:
    return Experiment(
        data={"mnist": Mnist5k(size=128)},
        autoencoders={"image": PatchPCA(patch=4, channels=4)},
        patch={"image": (2, 2)},
        mixture={"image": Component(modalities=("image",), batch_size=8)},
        model=SiTConfig.named("S/2", input_size=32, channels=4, labels=10),
        label="digit",
        schedule=DualTimestep(mask_ratio={"image": 0.25}),
        alignment=SelfFlow(student_layer=4, teacher_layer=8),
        steps=5000,
    )
