"""SiT-XL/2 with Self-Flow on ImageNet at 256 pixels, with the settings of the paper.

    tfds build imagenet2012 --file_format=array_record
    selfflow train experiments/imagenet_sit_xl.py

It has not been trained by us, so that there is no number to expect.
"""

from selfflow.autoencoders.linear import PatchPCA
from selfflow.data.tfds import Tfds
from selfflow.experiment import Experiment
from selfflow.input.mixture import Set
from selfflow.models.sit import SiTConfig
from selfflow.noise import DualTimestep
from selfflow.objectives.alignment import SelfFlow
from selfflow.training.sharding import Devices


def experiment() -> Experiment:
    return Experiment(
        data={"imagenet": Tfds(name="imagenet2012", image="image", label=("label",), size=256)},
        autoencoders={"image": PatchPCA(patch=8, channels=4)},
        patch={"image": (2, 2)},
        mixture={"image": Set(modalities=("image",), batch_size=256)},
        model=SiTConfig.named("XL/2", input_size=32, channels=4, labels=1000, dtype="bfloat16"),
        label="label",
        schedule=DualTimestep(mask_ratio={"image": 0.25}),
        alignment=SelfFlow(weight=0.8, student_layer=8, teacher_layer=20),
        steps=4_000_000,
        ema_decay=0.9999,
        devices=Devices(fsdp=2),
    )
