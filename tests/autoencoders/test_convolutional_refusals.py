"""What a convolutional autoencoder refuses: other media, other latents, other files."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import save_file

from selfflow.autoencoders.config import Convolutional
from selfflow.autoencoders.load import load_autoencoder
from selfflow.errors import UserError
from tests.autoencoders.small_networks import VIDEO_NETWORK
from tests.conftest import mentions

VIDEO = Convolutional(channels=6, temporal_stride=4, stride=4)
AUDIO = Convolutional(channels=5, temporal_stride=8, stride=0, sample_rate=8000)


def test_latents_of_others_are_refused(video_file):
    with pytest.raises(UserError, match=mentions("latents 5 channels 6")):
        load_autoencoder(VIDEO, video_file).decode(np.zeros((3, 2, 3, 5), np.float32))


def test_empty_arrays_are_refused(video_file, audio_file):
    for autoencoder, media, latents in (
        (load_autoencoder(VIDEO, video_file), np.zeros((0, 9, 8, 12, 3), np.uint8), np.zeros((2, 0, 2, 3, 6))),
        (load_autoencoder(AUDIO, audio_file), np.zeros((0, 80), np.int16), np.zeros((0, 10, 5))),
    ):
        with pytest.raises(UserError, match=mentions("elements", media.shape)):
            autoencoder.encode_distribution(media)
        with pytest.raises(UserError, match=mentions("elements", latents.shape)):
            autoencoder.decode(latents)


@pytest.mark.parametrize(
    "medium, method, array, words",
    [
        ("video", "encode", np.zeros((8, 12, 3), np.uint8), "media uint8 (8, 12, 3) [..., T, H, W, 3]"),
        ("image", "encode", np.zeros((8, 12), np.uint8), "media (8, 12) [..., H, W, 3]"),
        ("image", "encode", np.zeros((8, 12, 4), np.uint8), "media (8, 12, 4) [..., H, W, 3]"),
        ("image", "encode", np.zeros((8, 12, 3)), "media float64 uint8"),
        ("image", "encode", [[0]], "media list uint8"),
        ("audio", "encode", np.zeros(80), "media float64 int16 [..., samples]"),
        ("audio", "decode", np.zeros(5), "latents (5,) [..., T, C]"),
        ("video", "decode", [0], "latents list [..., T, H, W, C]"),
    ],
)
def test_media_of_another_kind_are_refused(video_file, audio_file, medium, method, array, words):
    autoencoder = {
        "video": load_autoencoder(VIDEO, video_file),
        "image": load_autoencoder(dataclasses.replace(VIDEO, images_only=True), video_file.parent),
        "audio": load_autoencoder(AUDIO, audio_file),
    }[medium]
    with pytest.raises(UserError, match=mentions(words)):
        getattr(autoencoder, method)(array)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"channels": 7}, "channels 6 7"),
        ({"temporal_stride": 2}, "temporal_stride 4 2"),
        ({"stride": 8}, "stride 4 8"),
    ],
)
def test_settings_that_are_not_those_of_the_file_are_named(video_file, fields, words):
    with pytest.raises(UserError, match=mentions(video_file, words)):
        load_autoencoder(dataclasses.replace(VIDEO, **fields), video_file)


def test_files_that_do_not_fit_are_named(video_file, audio_file, tmp_path):
    with pytest.raises(UserError, match=mentions(audio_file, "channels 5 6")):
        load_autoencoder(VIDEO, audio_file)
    with pytest.raises(UserError, match=mentions(audio_file, "sample_rate 8000 0")):
        load_autoencoder(dataclasses.replace(AUDIO, sample_rate=0), audio_file)
    file = tmp_path / "autoencoder.safetensors"
    with pytest.raises(UserError, match=mentions("No such file", file)):
        load_autoencoder(VIDEO, file)
    file.write_bytes(video_file.read_bytes()[:-40])
    with pytest.raises(UserError, match=mentions(file, "damaged metadata")):
        load_autoencoder(VIDEO, file)
    save_file({"x": np.zeros(3)}, file, {"autoencoder": '{"format": "selfflow-autoencoder-1"}'})
    with pytest.raises(UserError, match=mentions(file, "version selfflow-autoencoder-1")):
        load_autoencoder(VIDEO, file)
    save_file({"x": np.zeros(3)}, file)
    with pytest.raises(UserError, match=mentions(file, "format None")):
        load_autoencoder(VIDEO, file)


@pytest.mark.parametrize("shape, words", [((9, 10, 12, 3), "stride 4 10 x 12"), ((10, 8, 12, 3), "10 frames 9")])
def test_sizes_that_do_not_fit_are_named(shape, words):
    with pytest.raises(UserError, match=mentions("convolutional", words)):
        VIDEO.latent_shape(shape)


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("strides", ((2, 2), (2, 2)), "network.strides ((2, 2), (2, 2)) network.windows"),
        ("widths", (5, 6), "network.widths (5, 6) 3 strides"),
        (
            "strides",
            ((1, 2, 2), (2, 2, 2), (2, 1, 2)),
            "network.strides ((1, 2, 2), (2, 2, 2), (2, 1, 2)) rows columns",
        ),
        ("channels", 0, "network channels 1"),
        ("windows", (), "network.windows empty"),
    ],
)
def test_networks_that_cannot_be_are_named(field, value, words):
    with pytest.raises(UserError, match=mentions(words)):
        dataclasses.replace(VIDEO_NETWORK, **{field: value})
