"""Three data sets in one mixture: Collisions (sight and sound), Atari (a game with its sound) and MNIST (stills).

    pip install 'selfflow[atari,mnist]'
    selfflow train experiments/mixture.py

Hardware: two CPU cores, 2 GB. Wall time: about 7 minutes, data building included.
Each batch holds one set of one data set; all images share one autoencoder, fitted to all of them, and so do all films
and all sounds.
Expect on the test split, as a ratio to the linear baseline of each data set: Collisions video 0.92, audio 0.85 and stills
0.55, Pong video 0.56 and audio 0.94, digits 0.68.
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
            "collisions_still": Component(data="collisions", modalities=("image",), weight=0.15, batch_size=64),
            "digits": Component(data="mnist", modalities=("image",), weight=0.15, batch_size=64),
        },
    )
