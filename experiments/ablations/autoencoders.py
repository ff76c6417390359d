"""Do latents of autoencoders that were trained serve better than linear ones, and does Self-Flow help more on them?

    for m in image video audio; do selfflow train experiments/autoencoder_$m.py; done
    selfflow sweep experiments/ablations/autoencoders.py --jobs 2 --workdir runs/ablations/autoencoders

linear           the quickstart's PCA of frames and of MDCT
trained          the convolutional autoencoders of those runs
trained_vanilla  the same, without alignment and with one tau

Tokens are about as many: 100 of a film, 50 of a sound and 16 of a still through the linear ones, 112, 50 and 16 through
the others. A film is 12 800 numbers and 7 168; sounds and stills are as many in both.

Exploratory: three seeds. The base, what is measured and how are those of experiments/ablations/self_flow.py. Losses are
not to be compared between latents.

Hardware: two CPU cores, 2 GB for each member. Wall time: 8 to 12 minutes for a member where two run at once.
"""

from collections.abc import Iterable

from selfflow.autoencoders.config import Convolutional
from selfflow.experiments.ablations.self_flow import experiment
from selfflow.noise import UniformTimestep
from selfflow.objectives.alignment import NoAlignment
from selfflow.sweep.members import Member, seeds

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
