"""Files of autoencoders with random weights."""

import pytest

from tests.autoencoders.small_networks import FILMS, SOUND, written


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return written(FILMS, tmp_path_factory.mktemp("films") / "autoencoder.safetensors")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return written(SOUND, tmp_path_factory.mktemp("sound") / "autoencoder.safetensors")
