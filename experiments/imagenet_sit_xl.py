"""SiT-XL/2 with Self-Flow on ImageNet at 256 pixels, with the settings of arXiv 2603.06507.

    tfds build imagenet2012 --file_format=array_record
    selfflow train experiments/imagenet_sit_xl.py

Latents have the shape of the Stable Diffusion autoencoder's, 32 x 32 x 4, but come from a linear autoencoder that keeps
4 of the 192 principal components of each patch of 8 x 8 pixels: the FID of the paper is out of reach with them.

Hardware, by `selfflow plan`: on v5e:16x16 7.9 GB per chip, at least 30 ms per step, 15 % MFU and 1.4 days; on
v5p:8x8x4 8.1 GB, 14 ms, 14 % and 0.6 days. At one sample per chip the step waits for parameters: a smaller slice
costs less. It has not been trained, so there is no expected number.
"""

from selfflow.autoencoders.linear import PatchPCA
from selfflow.config.experiment import Experiment
from selfflow.data.tfds import Tfds
from selfflow.input.mixture import Component
from selfflow.models.sit import SiTConfig
from selfflow.noise import DualTimestep
from selfflow.objectives.alignment import SelfFlow
from selfflow.training.sharding import Devices


def experiment() -> Experiment:
    return Experiment(
        data={"imagenet": Tfds(name="imagenet2012", image="image", label=("label",), size=256)},
        autoencoders={"image": PatchPCA(patch=8, channels=4)},
        patch={"image": (2, 2)},
        mixture={"image": Component(modalities=("image",), batch_size=256)},
        model=SiTConfig.named("XL/2", input_size=32, channels=4, labels=1000, dtype="bfloat16"),
        label="label",
        schedule=DualTimestep(mask_ratio={"image": 0.25}),
        alignment=SelfFlow(weight=0.8, student_layer=8, teacher_layer=20),
        steps=4_000_000,
        ema_decay=0.9999,
        devices=Devices(fsdp=2),
    )
