"""What a convolutional autoencoder refuses: other media, other latents, other files."""

import dataclasses

import numpy as np
import pytest

from selfflow.autoencoders.config import Convolutional
from selfflow.autoencoders.load import load_autoencoder
from selfflow.errors import UserError
from tests.autoencoders.small_networks import FILMS


def test_latents_of_others_are_refused(films):
    autoencoder = load_autoencoder(Convolutional(channels=6, temporal_stride=4, stride=4), films)
    with pytest.raises(UserError, match="latents have 5 channels, and those of convolutional-.* 6"):
        autoencoder.decode(np.zeros((3, 2, 3, 5), np.float32))


def test_nothing_is_refused(films, sound):
    for config, path, media, latents in (
        (
            Convolutional(channels=6, temporal_stride=4, stride=4),
            films,
            np.zeros((0, 9, 8, 12, 3), np.uint8),
            (2, 0, 2, 3, 6),
        ),
        (
            Convolutional(channels=5, temporal_stride=8, stride=0, sample_rate=8000),
            sound,
            np.zeros((0, 80), np.int16),
            (0, 10, 5),
        ),
    ):
        autoencoder = load_autoencoder(config, path)
        for nothing in (
            lambda a=autoencoder, x=media: a.encode_distribution(x),
            lambda a=autoencoder, z=np.zeros(latents): a.decode(z),
        ):
            with pytest.raises(UserError, match="no elements"):
                nothing()


def test_media_of_another_kind_are_refused(films, sound):
    film = load_autoencoder(Convolutional(channels=6, temporal_stride=4, stride=4), films)
    still = load_autoencoder(Convolutional(channels=6, temporal_stride=4, stride=4, images_only=True), films.parent)
    heard = load_autoencoder(Convolutional(channels=5, temporal_stride=8, stride=0, sample_rate=8000), sound)
    for call, message in (
        (
            lambda: film.encode(np.zeros((8, 12, 3), np.uint8)),
            "media are uint8 of shape (8, 12, 3): give uint8 [..., T,",
        ),
        (lambda: still.encode(np.zeros((8, 12), np.uint8)), "give uint8 [..., H, W, 3]"),
        (lambda: still.encode(np.zeros((8, 12, 4), np.uint8)), "of shape (8, 12, 4)"),
        (lambda: still.encode(np.zeros((8, 12, 3))), "media are float64"),
        (lambda: still.encode([[0]]), "media are a list"),
        (lambda: heard.encode(np.zeros(80)), "give int16 [..., samples]"),
        (lambda: heard.decode(np.zeros(5)), "latents are float64 of shape (5,): give [..., T, C]"),
        (lambda: film.decode([0]), "latents are a list: give [..., T, H, W, C]"),
    ):
        with pytest.raises(UserError) as raised:
            call()
        assert message in str(raised.value)


def test_what_does_not_fit_is_named(films, sound, tmp_path):
    config = Convolutional(channels=6, temporal_stride=4, stride=4)
    for changed, path, message in (
        ({"channels": 7}, films, "channels is 6, and that of the convolutional autoencoder 7"),
        ({"temporal_stride": 2}, films, "its temporal_stride is 4, and that of the convolutional autoencoder 2"),
        ({"stride": 8}, films, "its stride is 4"),
        ({}, sound, "its channels is 5"),
        ({"channels": 5, "temporal_stride": 8, "stride": 0}, sound, "its sample_rate is 8000"),
        ({}, tmp_path / "none.safetensors", "is missing or damaged"),
    ):
        with pytest.raises(UserError, match="safetensors") as raised:
            load_autoencoder(dataclasses.replace(config, **changed), path)
        assert message in str(raised.value)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(films.read_bytes()[:-40])
    with pytest.raises(UserError, match="missing or damaged"):
        load_autoencoder(config, cut)
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3)}, cut, {"autoencoder": '{"format": "selfflow-autoencoder-1"}'})
    with pytest.raises(UserError, match="by another version of selfflow .*train it again"):
        load_autoencoder(config, cut)
    save_file({"x": np.zeros(3)}, cut)
    with pytest.raises(UserError, match="its format is None"):
        load_autoencoder(config, cut)
    for shape, message in (
        ((9, 10, 12, 3), "stride of 4 pixels, which does not divide images of 10 x 12"),
        ((10, 8, 12, 3), "clips of 10 frames do not fit; give them 9"),
    ):
        with pytest.raises(UserError) as raised:
            config.latent_shape(shape)
        assert message in str(raised.value)
    for wrong in (
        {"strides": ((2, 2), (2, 2))},
        {"widths": (5, 6)},
        {"strides": ((1, 2, 2), (2, 2, 2), (2, 1, 2))},
        {"channels": 0},
        {"windows": ()},
    ):
        with pytest.raises(UserError, match="network"):
            dataclasses.replace(FILMS, **wrong)
