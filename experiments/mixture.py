"""Three data sets in one mixture: Collisions (video and audio), Atari (a game with its audio) and MNIST (images).

    pip install 'selfflow[atari,mnist]'
    selfflow train experiments/mixture.py

Each batch holds one component of the mixture. All images share one autoencoder, fitted to all of them; so do all videos
and all audio.

Hardware: two CPU cores, 2 GB. Wall time: about 7 minutes, data building included.
Expect a normalised loss on the test split of: Collisions video 0.92, audio 0.85 and images 0.55, Pong video 0.56 and
audio 0.94, digits 0.68.
"""

import dataclasses

from selfflow.config.experiment import Experiment
from selfflow.data.atari import Atari
from selfflow.data.mnist5k import Mnist5k
from selfflow.experiments import quickstart
from selfflow.input.mixture import Component


def experiment() -> Experiment:
    base = quickstart.experiment()
    return dataclasses.replace(
        base,
        data=base.data | {"atari": Atari(game="pong"), "mnist": Mnist5k()},
        mixture={
            "collisions": Component(data="collisions", modalities=("video", "audio"), weight=0.4, batch_size=16),
            "atari": Component(data="atari", modalities=("video", "audio"), weight=0.3, batch_size=16),
            "collisions_image": Component(data="collisions", modalities=("image",), weight=0.15, batch_size=64),
            "digits": Component(data="mnist", modalities=("image",), weight=0.15, batch_size=64),
        },
    )
