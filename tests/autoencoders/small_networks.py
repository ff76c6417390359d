"""Networks of video and of audio with random weights, and something to encode."""

import jax
import numpy as np

from selfflow.autoencoders.convolutional import Network
from selfflow.autoencoders.convolutional_file import write
from selfflow.training.state import flat_by_name
from tests.conftest import perturbed

VIDEO_NETWORK = Network(6, ((1, 2, 2), (2, 2, 2), (2, 1, 1)), (5, 6, 7), ((1, 3, 3), (3, 1, 1)))
AUDIO_NETWORK = Network(5, ((4,), (2,)), (6, 7), ((5,), (1,)), blocks=2)


def params_of(network):
    return perturbed(network.init(jax.random.key(1)), size=0.1)


def written(network, path):
    channels = np.arange(network.channels)
    write(
        path,
        network,
        0 if network.is_visual else 8000,
        flat_by_name(jax.device_get(params_of(network))),
        0.1 * channels,
        0.5 + 0.1 * channels,
    )
    return path


def random_video(frames: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, frames, 8, 12, 3), np.uint8)
