"""A convolutional KL autoencoder of waveforms: 40 ms of audio at 8 kHz to 128 channels, as in the quickstart.

    selfflow train experiments/autoencoder_audio.py
    selfflow train experiments/quickstart.py --workdir runs/on_trained \\
        --autoencoder.audio convolutional=runs/autoencoder_audio

Hardware: two CPU cores, 3 GB. Wall time: 5 minutes on one of them.
Expect a log-mel distance of 0.15 on held-out audio, against 0.20 for MDCT and PCA of equal size; the SNR is 0.5 dB
higher.
"""

from selfflow.autoencoders.convolutional import Network
from selfflow.config.autoencoder_experiment import AutoencoderExperiment
from selfflow.data.collisions import Collisions
from selfflow.input.mixture import Component
from selfflow.objectives.reconstruction import ReconstructionLoss
from selfflow.training.optimizer import AdamW


def experiment() -> AutoencoderExperiment:
    return AutoencoderExperiment(
        data={"collisions": Collisions()},
        mixture={"audio": Component(modalities=("audio",), batch_size=16)},
        network=Network(
            channels=128,
            strides=((32,), (10,)),
            widths=(64, 320),
            windows=((7,), (1,)),
        ),
        loss=ReconstructionLoss(squared=1000.0, spectral=0.1, kl=1e-6),  # the mean square of audio is small
        optimizer=AdamW(learning_rate=3e-3, beta2=0.99, warmup_steps=None, decay="cosine"),
        steps=1000,
    )
