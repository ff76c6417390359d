"""The smallest autoencoder of videos and images, for tests that train."""

import dataclasses

from selfflow.autoencoders.convolutional import Network
from selfflow.config.autoencoder_experiment import AutoencoderExperiment
from selfflow.input.mixture import Component
from selfflow.objectives.reconstruction import ReconstructionLoss
from selfflow.training.loop import Cadence
from selfflow.training.optimizer import AdamW
from tests import tiny


def experiment() -> AutoencoderExperiment:
    return AutoencoderExperiment(
        data=tiny.experiment().data,
        mixture={
            "videos": Component(modalities=("video",), weight=0.5, batch_size=2, seconds=0.72),
            "images": Component(modalities=("image",), weight=0.5, batch_size=4),
        },
        network=Network(8, ((1, 4, 4), (4, 2, 2)), (8, 12), ((1, 3, 3), (3, 1, 1))),
        loss=ReconstructionLoss(gradient=0.1),
        optimizer=AdamW(learning_rate=2e-3),
        steps=6,
        cadence=Cadence(log_every=3, checkpoint_every=3),
        held_out=6,
    )


def audio_experiment() -> AutoencoderExperiment:
    made = experiment()
    return dataclasses.replace(
        made,
        mixture={"audio": Component(modalities=("audio",), batch_size=2, seconds=0.48)},
        network=Network(16, ((16,), (20,)), (8, 12), ((3,), (1,))),
        loss=ReconstructionLoss(spectral=0.1, windows=(64, 256), bands=8),
    )
