"""AutoencoderKL as an autoencoder of an experiment: scaled or normalised, in batches, copied, refused by name."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from selfflow.autoencoders import kl, kl_autoencoder
from selfflow.autoencoders.config import SDVAE, Flux2VAE
from selfflow.autoencoders.kl_weights import read_kl
from selfflow.autoencoders.load import load_autoencoder
from selfflow.autoencoders.parse import NAMES, parse_autoencoder
from selfflow.config.resolve import resolve
from selfflow.config.shapes import all_streams
from selfflow.data.built import build
from selfflow.encoders.convolution import Weights
from selfflow.errors import UserError
from selfflow.latents.encode import encode
from selfflow.latents.fit_autoencoder import fit_autoencoder
from selfflow.run.prepare_data import prepare_data
from selfflow.serialization import from_json, to_json
from tests.autoencoders.kl import CONFIG, GOLDEN, images, random_weights
from tests.conftest import mentions

GROUPS = CONFIG["norm_num_groups"]


@pytest.fixture(scope="module")
def tensors():
    with np.load(GOLDEN) as golden:
        shapes = json.loads(str(golden["told"]))["shapes"]
    return random_weights({name: tuple(shape) for name, shape in shapes.items()})


@pytest.fixture(scope="module")
def sd_vae(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "vae.safetensors"
    save_file({name: x for name, x in tensors.items() if not name.startswith("bn.")}, path)
    return SDVAE(path=str(path), stride=4, groups=GROUPS)


@pytest.fixture(scope="module")
def flux2(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flux2")
    statistics = {"bn.running_mean": np.linspace(-1, 1, 16), "bn.running_var": np.linspace(0.5, 4, 16)}
    statistics = {name: x.astype(np.float32) for name, x in statistics.items()}
    counter = {"bn.num_batches_tracked": np.array(7)}
    save_file(dict(tensors) | statistics | counter, folder / "diffusion_pytorch_model.safetensors")
    return Flux2VAE(path=str(folder), channels=16, stride=8, groups=GROUPS)


def loaded(config):
    path = config.path if config.path.endswith("safetensors") else f"{config.path}/diffusion_pytorch_model.safetensors"
    from pathlib import Path

    return load_autoencoder(config, Path(path))


def test_latents_of_sd_vae_are_scaled(sd_vae, tensors):
    params = read_kl(Weights("vae", {n: x for n, x in tensors.items() if not n.startswith("bn.")}, "SD-VAE"))
    media = images(24, 32, count=3)
    expected, expected_std = kl.encode(params, jnp.asarray(media, jnp.float32) / 127.5 - 1, GROUPS)
    autoencoder = loaded(sd_vae)
    mean, std = autoencoder.encode_distribution(media)
    assert mean.shape == (3, 6, 8, 4) == sd_vae.latent_shape(media.shape)
    np.testing.assert_allclose(mean, 0.18215 * np.asarray(expected), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(std, 0.18215 * np.asarray(expected_std), rtol=1e-4, atol=1e-5)
    decoded = autoencoder.decode(mean)
    exact = np.clip((np.asarray(kl.decode(params, jnp.asarray(expected), GROUPS)) + 1) * 127.5, 0, 255)
    assert decoded.dtype == np.uint8 and np.abs(decoded - exact).max() < 0.51


def test_latents_of_flux_2_are_packed_and_normalised(flux2):
    tensors = load_file(f"{flux2.path}/diffusion_pytorch_model.safetensors")
    tensors.pop("bn.num_batches_tracked")
    params = read_kl(Weights("vae", tensors, "FLUX.2"))
    media = images(16, 32)
    raw = np.asarray(kl.encode(params, jnp.asarray(media, jnp.float32) / 127.5 - 1, GROUPS)[0])
    autoencoder = loaded(flux2)
    latents = autoencoder.encode(media)
    assert latents.shape == (2, 2, 4, 16) == flux2.latent_shape(media.shape)
    mean, variance = tensors["bn.running_mean"], tensors["bn.running_var"]
    for channel, row, column in ((0, 0, 0), (2, 1, 0), (3, 0, 1)):
        c = channel * 4 + row * 2 + column
        expected = (raw[:, row::2, column::2, channel] - mean[c]) / np.sqrt(variance[c] + 1e-4)
        np.testing.assert_allclose(latents[..., c], expected, rtol=1e-3, atol=1e-4)
    assert autoencoder.decode(latents).shape == media.shape


def test_empty_arrays_are_refused(sd_vae, flux2):
    for autoencoder in map(loaded, (sd_vae, flux2)):
        shape = autoencoder.config.latent_shape((16, 16, 3))
        with pytest.raises(UserError, match=mentions("(0, 16, 16, 3) elements")):
            autoencoder.encode_distribution(np.zeros((0, 16, 16, 3), np.uint8))
        with pytest.raises(UserError, match=mentions("shape (0, elements")):
            autoencoder.decode(np.zeros((0, *shape), np.float32))


def test_videos_are_encoded_frame_by_frame(sd_vae):
    autoencoder, media = loaded(sd_vae), images(16, 16, count=11)
    videos = media[:10].reshape(2, 5, 16, 16, 3)
    latents = autoencoder.encode(videos)
    assert latents.shape == (2, 5, 4, 4, 4)
    np.testing.assert_allclose(latents[1, 2], autoencoder.encode(media[7]), rtol=1e-4, atol=1e-5)
    assert autoencoder.decode(latents).shape == videos.shape and autoencoder.decode(latents[0, 0]).shape == (16, 16, 3)


def test_large_images_pass_one_by_one(sd_vae, monkeypatch):
    """Memory is bounded by that of one call, and the latents are the same."""
    autoencoder, media = loaded(sd_vae), images(16, 24, count=3)
    latents = autoencoder.encode(media)
    seen, plain = [], autoencoder._encode
    monkeypatch.setattr(kl_autoencoder, "_MAX_PIXELS", 16 * 24 * 2 - 1)
    monkeypatch.setattr(autoencoder, "_encode", lambda params, x: (seen.append(len(x)), plain(params, x))[1])
    np.testing.assert_allclose(autoencoder.encode(media), latents, rtol=1e-4, atol=1e-5)
    assert seen == [1, 1, 1] and kl_autoencoder._batch_limit(1024, 1024) == kl_autoencoder._batch_limit(4096, 4096) == 1


def test_identity_is_of_weights_and_settings_and_not_of_the_place(sd_vae, tmp_path):
    one = loaded(sd_vae)
    moved = tmp_path / "moved.safetensors"
    tensors = load_file(sd_vae.path)
    moved.write_bytes(open(sd_vae.path, "rb").read())
    assert loaded(dataclasses.replace(sd_vae, path=str(moved))).identity == one.identity
    assert loaded(dataclasses.replace(sd_vae, scale=0.13025)).identity != one.identity
    tensors["encoder.conv_in.bias"][0] += 1e-3
    save_file(tensors, moved)
    assert loaded(dataclasses.replace(sd_vae, path=str(moved))).identity != one.identity


def test_half_precision_is_near(sd_vae):
    media = images(16, 16)
    whole, half = loaded(sd_vae).encode(media), loaded(dataclasses.replace(sd_vae, dtype="bfloat16")).encode(media)
    assert half.dtype == np.float32
    assert 1e-5 < np.linalg.norm(whole - half) / np.linalg.norm(whole) < 0.05


def test_weights_that_contradict_the_settings_are_named(sd_vae, flux2, tmp_path):
    for config, words in (
        (dataclasses.replace(sd_vae, channels=8), "sd_vae channels 4 8"),
        (dataclasses.replace(sd_vae, stride=8), "sd_vae stride 4 8"),
        (dataclasses.replace(sd_vae, groups=5), "sd_vae groups 5 16"),
        (dataclasses.replace(sd_vae, path=f"{flux2.path}/diffusion_pytorch_model.safetensors"), "flux2_vae"),
        (dataclasses.replace(flux2, path=sd_vae.path), "bn.running_mean"),
    ):
        with pytest.raises(UserError, match=mentions(config.path, words)):
            loaded(config)
    with pytest.raises(UserError, match=mentions("sd_vae stride 4 30 x 32")):
        sd_vae.latent_shape((30, 32, 3))


def test_copied_weights_need_their_file_no_more(sd_vae, tmp_path):
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(open(sd_vae.path, "rb").read())
    config = dataclasses.replace(sd_vae, path=str(mine))
    first = fit_autoencoder("image", config, {}, (), tmp_path / "data")
    mine.unlink()
    again = fit_autoencoder("image", config, {}, (), tmp_path / "data")
    assert again == first and again.autoencoder().identity == first.identity and again.fitted_on == {}
    with pytest.raises(UserError, match=mentions("autoencoders.image.path", mine)):  # another scale, other latents
        fit_autoencoder("image", dataclasses.replace(config, scale=1.0), {}, (), tmp_path / "data")
    (tmp_path / "data" / "autoencoders" / "image-sd_vae-damaged.json").write_text("{")
    assert fit_autoencoder("image", config, {}, (), tmp_path / "data") == first
    tensors = load_file(sd_vae.path)
    tensors["encoder.conv_in.bias"][0] += 1
    save_file(tensors, mine)
    assert fit_autoencoder("image", config, {}, (), tmp_path / "data").identity != first.identity  # others now
    del tensors["encoder.conv_in.bias"]
    save_file(tensors, mine)
    with pytest.raises(UserError, match=mentions("autoencoders.image", mine, "encoder.conv_in.bias")):
        fit_autoencoder("image", config, {}, (), tmp_path / "data")
    mine.write_bytes(mine.read_bytes()[:1000])
    with pytest.raises(UserError, match=mentions("autoencoders.image", mine, "damaged")):
        fit_autoencoder("image", config, {}, (), tmp_path / "data")
    assert not [path for path in (tmp_path / "data" / "autoencoders").iterdir() if "partial" in path.name]
    for path in ("", str(tmp_path / "none.safetensors"), str(tmp_path), str(tmp_path / "vae.pt")):
        with pytest.raises(UserError, match=mentions("autoencoders.image.path", path, ".safetensors")):
            fit_autoencoder("image", dataclasses.replace(sd_vae, path=path), {}, (), tmp_path / "data")


def test_weights_of_another_network_are_named(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, file)
    for name, array in (("sd-vae", "decoder.conv_in.weight"), ("flux2-vae", "bn.running_mean")):
        with pytest.raises(UserError, match=mentions("autoencoders.image", file, array)):
            fit_autoencoder("image", parse_autoencoder(f"{name}={file}", "image"), {}, (), tmp_path / "data")


def test_a_config_beside_the_weights_is_respected(sd_vae, flux2, tmp_path):
    sizes = {name: CONFIG[name] for name in ("block_out_channels", "norm_num_groups", "latent_channels")}
    settings = sizes | {"_class_name": "AutoencoderKL", "scaling_factor": 0.3611, "shift_factor": 0.1159}
    mine, config = tmp_path / "diffusion_pytorch_model.safetensors", tmp_path / "config.json"
    mine.write_bytes(open(sd_vae.path, "rb").read())
    config.write_text(json.dumps(settings))
    for where in (tmp_path, mine):
        named = parse_autoencoder(f"sd-vae={where}", "image")
        assert named == dataclasses.replace(sd_vae, path=str(where), scale=0.3611, shift=0.1159)
    plain, media = loaded(sd_vae).encode(images(16, 16)) / sd_vae.scale, images(16, 16)
    shifted = fit_autoencoder("image", named, {}, (), tmp_path / "data").autoencoder()
    np.testing.assert_allclose(shifted.encode(media), (plain - 0.1159) * 0.3611, atol=1e-5)
    np.testing.assert_array_equal(shifted.decode(shifted.encode(media)), loaded(sd_vae).decode(plain * sd_vae.scale))
    with pytest.raises(UserError, match=mentions("autoencoders.image config.json", mine, "scale 0.3611 0.18215")):
        fit_autoencoder("image", dataclasses.replace(sd_vae, path=str(mine)), {}, (), tmp_path / "data")
    config.write_text(json.dumps(sizes))
    assert parse_autoencoder(f"sd-vae={tmp_path}", "image") == dataclasses.replace(sd_vae, path=str(tmp_path))
    config.write_text("[")
    other = tmp_path / "other.safetensors"  # which that file need not describe
    assert parse_autoencoder(f"sd-vae={other}", "image") == SDVAE(path=str(other))
    for text, words in (
        (json.dumps(settings | {"_class_name": "AutoencoderKLFlux2"}), "AutoencoderKLFlux2 sd_vae"),
        (json.dumps({"latent_channels": 4}), "AutoencoderKL block_out_channels"),
        ("[", "line 1 column 2"),
    ):
        config.write_text(text)
        with pytest.raises(UserError, match=mentions(config, words)):
            parse_autoencoder(f"sd-vae={tmp_path}", "image")
    config.write_text(json.dumps(settings | {"_class_name": "AutoencoderKLFlux2"}))
    assert parse_autoencoder(f"flux2-vae={tmp_path}", "image") == dataclasses.replace(flux2, path=str(tmp_path))


def test_a_data_set_is_encoded_and_read(sd_vae, tiny_experiment, data_dir, tmp_path):
    """Latents hold mean and std, records that fit no stride are left out, and the batches of a run are drawn."""
    video = dataclasses.replace(sd_vae, channels=4)
    experiment = resolve(
        dataclasses.replace(
            tiny_experiment,
            autoencoders=tiny_experiment.autoencoders | {"image": sd_vae, "video": video},
            patch=tiny_experiment.patch | {"image": (2, 2), "video": (1, 4, 4)},
        )
    ).experiment
    assert from_json(to_json(experiment), type(experiment), "experiment.json") == experiment
    built = build(experiment.data["collisions"], data_dir)
    fitted = {m: fit_autoencoder(m, c, {"collisions": built}, (), tmp_path) for m, c in experiment.autoencoders.items()}
    latents = encode(built, fitted, all_streams(experiment), None, tmp_path, records_per_shard=20)
    made = latents.manifest["modalities"]["image"]
    assert made["latent"] == [8, 8, 4] and "path" not in made["autoencoder"] and made["fitted_on"] == {}
    source, record = latents.open_split("train"), built.records("train")[3]
    mean, std = fitted["image"].autoencoder().encode_distribution(record["image"][None])
    np.testing.assert_allclose(source[3]["image"], mean[0], atol=2e-3)
    np.testing.assert_allclose(source[3]["image.std"], std[0], rtol=2e-3, atol=2e-3)
    assert source[3]["video"].shape == (25, 8, 8, 4)
    assert latents.autoencoder("image", sd_vae).identity == made["identity"]
    latents.check(experiment.autoencoders, all_streams(experiment))
    moved = dataclasses.replace(sd_vae, path="elsewhere.safetensors")
    latents.check({"image": moved}, all_streams(experiment))
    with pytest.raises(UserError, match=mentions(latents.path, "image autoencoder 'scale': 0.18215 1.0")):
        latents.check({"image": dataclasses.replace(sd_vae, scale=1.0)}, all_streams(experiment))
    with pytest.raises(UserError, match=mentions("autoencoders.audio sd_vae image video")):
        wrong = experiment.autoencoders | {"audio": sd_vae}
        resolve(dataclasses.replace(experiment, autoencoders=wrong, patch=experiment.patch | {"audio": (4, 4)}))
    # With the latents no weights are needed, but other weights than those of the latents are refused.
    elsewhere = dataclasses.replace(experiment, latents={"collisions": str(latents.path)})
    lost = elsewhere.autoencoders | {"image": moved}
    feed, _ = prepare_data(resolve(dataclasses.replace(elsewhere, autoencoders=lost)), tmp_path / "other")
    others = tmp_path / "others.safetensors"
    tensors = load_file(sd_vae.path)
    tensors["encoder.conv_in.bias"][0] += 1
    save_file(tensors, others)
    trained_again = elsewhere.autoencoders | {"image": dataclasses.replace(sd_vae, path=str(others))}
    setup = resolve(dataclasses.replace(elsewhere, autoencoders=trained_again))
    with pytest.raises(UserError, match=mentions("autoencoders.image.path", others, latents.path, "weights")):
        prepare_data(setup, tmp_path / "other")
    # A run resumes with its own copies.
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "image.safetensors").write_bytes(latents.autoencoder_path("image").read_bytes())
    prepare_data(setup, tmp_path / "other", own=tmp_path / "own")
    batch, facts = next(iter(feed.batches(0, 4)))
    assert np.isfinite(next(iter(batch["latents"].values()))).all()


def test_names():
    assert parse_autoencoder("sd-vae=x.safetensors", "image") == SDVAE(path="x.safetensors")
    assert {"patch-pca", "mdct-pca", "log-mel", "sd-vae", "flux2-vae"} <= set(NAMES)
    for text, words in (
        (f"sd-vae={__file__}", f"sd-vae={__file__} .safetensors"),
        ("sdvae=x", "sdvae sd-vae"),
        ("sd-vae", "sd-vae=PATH"),
        ("patch-pca=x", "patch-pca=x patch-pca"),
        ("", "patch-pca, mdct-pca, log-mel,"),
        ("sd-vae=gs://bucket/vae", "sd-vae=gs://bucket/vae copy"),
        ("convolutional=gs://bucket/run", "convolutional=gs://bucket/run copy"),
    ):
        with pytest.raises(UserError, match=mentions("--autoencoder.image", words)):
            parse_autoencoder(text, "image")
