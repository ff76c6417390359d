"""Are latents of trained autoencoders better than linear ones, and does Self-Flow help more on them?

    for m in image video audio; do selfflow train experiments/autoencoder_$m.py; done
    selfflow sweep experiments/ablations/autoencoders.py --jobs 2 --workdir runs/ablations/autoencoders

linear           the quickstart's PCA of frames and of MDCT
trained          the convolutional autoencoders of those runs
trained_vanilla  the same, without alignment and with one tau

Token counts are similar: 100 per video, 50 per audio clip and 16 per image with linear latents; 112, 50 and 16 with
trained ones. A video has 12 800 and 7 168 latent values; audio and images have equal numbers in both.

Exploratory: three seeds. The base and the measurements are those of experiments/ablations/self_flow.py. Losses of
different latents cannot be compared.

Hardware: two CPU cores, 2 GB per run. Wall time: 8 to 12 minutes per run with two runs at once.
"""

from collections.abc import Iterable

from selfflow.autoencoders.config import Convolutional
from selfflow.experiments.ablations.self_flow import experiment
from selfflow.noise import UniformTimestep
from selfflow.objectives.alignment import NoAlignment
from selfflow.sweep import Member, seeds

__all__ = ["experiment", "sweep"]


def sweep() -> Iterable[Member]:
    trained = {
        "autoencoders": {
            "image": Convolutional(channels=32, temporal_stride=1, stride=8, images_only=True, path=_path("image")),
            "video": Convolutional(channels=64, temporal_stride=4, stride=8, path=_path("video")),
            "audio": Convolutional(channels=128, temporal_stride=320, stride=0, path=_path("audio"), sample_rate=8000),
        },
        "patch.video": (1, 1, 1),
    }
    alone = {"schedule": UniformTimestep(), "alignment": NoAlignment()}
    arms = [Member("linear", {}), Member("trained", trained), Member("trained_vanilla", trained | alone)]
    return seeds(arms, range(1, 4))


def _path(modality: str) -> str:
    return f"runs/autoencoder_{modality}/autoencoder.safetensors"
