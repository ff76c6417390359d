"""The paper's multimodal model of 625 M parameters, on a folder of your own videos, audio and images.

    selfflow data build media --source ~/videos --size 256 --frames 120 --frames-per-second 12 --sample-rate 16000
    selfflow train experiments/joint_625m.py --data.media.source ~/videos

Token counts follow arXiv 2603.06507: an image of 256 pixels has 256 tokens of 128 channels, a video of 4 s about 3000,
audio of 10 s 250. The autoencoders are linear and fitted to your data, so that a video token covers 4 frames of 48
channels. Images, videos and audio have the paper's shares; half of the videos carry their audio, which is our choice.
Every batch has about 800 000 tokens; the paper gives neither batch sizes nor clip lengths.

Hardware, by `selfflow plan`: 256 chips. On v5e:16x16 11.2 GB per chip, at least 59 ms per step and 0.7 days; without
overlap of compute and communication 109 ms, 54 % MFU and 1.3 days. On v5p:8x8x4 13.6 GB, 25 ms and 0.3 days, or 38 ms,
66 % and 0.4 days. It has not been trained, so there is no expected number.
"""

from selfflow.autoencoders.linear import MdctPCA, PatchPCA
from selfflow.config.experiment import Experiment
from selfflow.data.media import Media
from selfflow.input.mixture import Component
from selfflow.models.joint_config import JointConfig
from selfflow.noise import DualTimestep
from selfflow.objectives.alignment import SelfFlow
from selfflow.training.sharding import Devices


def experiment() -> Experiment:
    return Experiment(
        data={"media": Media(size=256, frames=120, frames_per_second=12.0, sample_rate=16000)},
        autoencoders={
            "image": PatchPCA(patch=16, channels=128),
            "video": PatchPCA(patch=16, channels=48),
            "audio": MdctPCA(temporal_stride=640, channels=64),
        },
        patch={"image": (1, 1), "video": (4, 1, 1), "audio": (1,)},
        mixture={
            "image": Component(modalities=("image",), weight=0.57, batch_size=3072),
            "video": Component(modalities=("video",), weight=0.15, batch_size=256, seconds=4.0),
            "video_audio": Component(modalities=("video", "audio"), weight=0.15, batch_size=256, seconds=4.0),
            "audio": Component(modalities=("audio",), weight=0.13, batch_size=3072),
        },
        model=JointConfig.named("625M", dtype="bfloat16"),
        schedule=DualTimestep(mask_ratio={"image": 0.25, "video": 0.1, "audio": 0.5}),
        alignment=SelfFlow(weight=0.8, student_layer=6, teacher_layer=15),
        steps=1_000_000,
        ema_decay=0.9999,
        devices=Devices(fsdp=16),
    )
