"""Files of autoencoders with random weights."""

import pytest

from tests.autoencoders.small_networks import AUDIO_NETWORK, VIDEO_NETWORK, written


@pytest.fixture(scope="module")
def video_file(tmp_path_factory):
    return written(VIDEO_NETWORK, tmp_path_factory.mktemp("video") / "autoencoder.safetensors")


@pytest.fixture(scope="module")
def audio_file(tmp_path_factory):
    return written(AUDIO_NETWORK, tmp_path_factory.mktemp("audio") / "autoencoder.safetensors")
