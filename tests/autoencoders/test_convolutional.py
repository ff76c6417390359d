"""Convolutional autoencoders: causal, the same in pieces, the same for an image and the first frame of a video."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfflow.autoencoders import convolutional_autoencoder as trained
from selfflow.autoencoders.config import SDVAE, Convolutional
from selfflow.autoencoders.convolutional import depth_to_space, pad_causal, space_to_depth
from selfflow.autoencoders.convolutional_file import read
from selfflow.autoencoders.load import load_autoencoder
from selfflow.autoencoders.parse import parse_autoencoder
from selfflow.errors import UserError
from selfflow.media import to_unit_range
from tests.autoencoders.small_networks import AUDIO_NETWORK, VIDEO_NETWORK, params_of, random_video
from tests.conftest import mentions


def test_cells_go_into_channels_and_back():
    x = jnp.arange(2 * 4 * 6 * 8 * 3).reshape(2, 4, 6, 8, 3)
    y = space_to_depth(x, (2, 3, 4))
    assert y.shape == (2, 2, 2, 2, 72)
    np.testing.assert_array_equal(y[1, 1, 0, 1].reshape(2, 3, 4, 3), x[1, 2:4, 0:3, 4:8])
    np.testing.assert_array_equal(depth_to_space(y, (2, 3, 4)), x)


def test_initial_blocks_are_identities():
    """At the start only the linear path through the cells counts, so that gradients reach all layers at once."""
    params = VIDEO_NETWORK.init(jax.random.key(0))
    for side in ("encoder", "decoder"):
        for level in params[side]["levels"]:
            assert all((block["layers"][-1].kernel == 0).all() for block in level["blocks"])
    loss = lambda p: jnp.sum(jnp.square(VIDEO_NETWORK.encode(p, jnp.ones((1, 4, 4, 4, 3)))[0]))
    gradient = jax.jit(jax.grad(loss))(params)
    assert all((jnp.abs(level["down"].kernel).max() > 0) for level in gradient["encoder"]["levels"])


def test_a_fresh_network_is_a_projection():
    """Where no layer widens, a second pass changes nothing."""
    params, x = VIDEO_NETWORK.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (8, 4, 8, 16, 3))
    through = jax.jit(lambda x: VIDEO_NETWORK.decode(params, VIDEO_NETWORK.encode(params, x)[0])[0])
    once = through(x)
    np.testing.assert_allclose(through(once), once, atol=1e-5)
    np.testing.assert_allclose(jnp.sum(once * x), jnp.sum(once * once), rtol=1e-4)
    assert 0.5 < jnp.mean(once**2) / (6 / 192) < 1.5  # 6 of the 192 dimensions of a cell, of noise


def test_blocks_are_scale_equivariant():
    """Without biases, audio that is a hundred times quieter has latents a hundred times smaller, and back."""
    params = jax.tree_util.tree_map_with_path(
        lambda at, x: 0 * x if jax.tree_util.keystr(at).endswith("bias") else x, params_of(AUDIO_NETWORK)
    )
    x = jax.random.normal(jax.random.key(1), (1, 80, 1))
    there = jax.jit(lambda x: AUDIO_NETWORK.encode(params, x)[0])
    back = jax.jit(lambda z: AUDIO_NETWORK.decode(params, z)[0])
    loud, quiet = there(x), there(x / 100)
    np.testing.assert_allclose(100 * quiet, loud, rtol=2e-3, atol=2e-3 * float(jnp.abs(loud).max()))
    np.testing.assert_allclose(100 * back(quiet), back(loud), rtol=2e-3, atol=2e-3 * float(jnp.abs(back(loud)).max()))
    plain = jax.tree.map(lambda x: x, params)
    for level in plain["encoder"]["levels"]:
        level["blocks"] = []
    assert jnp.abs(AUDIO_NETWORK.encode(plain, x)[0] - loud).max() > 0.1  # the blocks count


@pytest.mark.parametrize("network, cell, shape", [(VIDEO_NETWORK, 4, (1, 12, 4, 4, 3)), (AUDIO_NETWORK, 8, (1, 40, 1))])
def test_nothing_depends_on_later_frames(network, cell, shape):
    """By the gradient: a latent frame depends on no later media, a frame of media on no later latents."""
    params, x = params_of(network), jax.random.normal(jax.random.key(3), shape)
    z = jax.jit(network.encode)(params, x)[0]

    @jax.jit
    def gradients(weight_t):
        repeated = jnp.repeat(weight_t, cell)
        weigh = lambda y, w: jnp.sum(jnp.sin(y) * w.reshape(1, -1, *[1] * (y.ndim - 2)))
        of_media = jax.grad(lambda x: weigh(network.encode(params, x)[0], weight_t))(x)
        return of_media, jax.grad(lambda z: weigh(network.decode(params, z)[0], repeated))(z)

    for frame in range(z.shape[1]):
        touched = [
            np.flatnonzero(np.abs(np.asarray(g)).reshape(g.shape[1], -1).max(axis=1))
            for g in gradients((np.arange(z.shape[1]) == frame).astype(np.float32))
        ]
        assert touched[0].max() == (frame + 1) * cell - 1 and touched[1].max() == frame


@pytest.mark.parametrize("network, cell, shape", [(VIDEO_NETWORK, 4, (2, 16, 4, 4, 3)), (AUDIO_NETWORK, 8, (2, 64, 1))])
def test_pieces_make_the_whole(network, cell, shape):
    params, x = params_of(network), jax.random.normal(jax.random.key(3), shape)
    encode, decode = jax.jit(network.encode), jax.jit(network.decode)
    whole, _, _ = encode(params, x)
    made, _ = decode(params, whole)
    past, pasts, parts = None, None, []
    for start, stop in ((0, cell), (cell, 2 * cell), (2 * cell, shape[1])):
        mean, _, past = encode(params, x[:, start:stop], past)
        out, pasts = decode(params, mean, pasts)
        parts.append((mean, out))
    np.testing.assert_allclose(jnp.concatenate([mean for mean, _ in parts], axis=1), whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jnp.concatenate([out for _, out in parts], axis=1), made, rtol=1e-4, atol=1e-5)


def test_videos_and_images(video_file):
    config = Convolutional(channels=6, temporal_stride=4, stride=4, path=str(video_file))
    autoencoder, media = load_autoencoder(config, video_file), random_video(9)
    latents = autoencoder.encode(media)
    assert latents.shape == (2, 3, 2, 3, 6) == config.latent_shape(media.shape) and latents.dtype == np.float32
    params = jax.device_get(params_of(VIDEO_NETWORK))
    raw = jax.jit(VIDEO_NETWORK.encode)(params, pad_causal(to_unit_range(jnp.asarray(media)), 3))[0]
    np.testing.assert_allclose(
        latents, (np.asarray(raw) - 0.1 * np.arange(6)) / (0.5 + 0.1 * np.arange(6)), rtol=1e-3, atol=1e-4
    )
    made = np.asarray(jax.jit(VIDEO_NETWORK.decode)(params, raw)[0][:, 3:])
    decoded = autoencoder.decode(latents)
    assert decoded.shape == media.shape and decoded.dtype == np.uint8
    assert np.abs(decoded - np.clip((made + 1) * 127.5, 0, 255)).max() < 0.6
    # An image is a video of one frame, and a first frame does not depend on the frames after it.
    image_autoencoder = load_autoencoder(dataclasses.replace(config, images_only=True), video_file)
    image_latents = image_autoencoder.encode(media[:, 0])
    assert image_latents.shape == (2, 2, 3, 6)
    np.testing.assert_allclose(image_latents, latents[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(image_autoencoder.decode(image_latents), decoded[:, 0])
    np.testing.assert_array_equal(image_autoencoder.decode(image_latents[1]), decoded[1, 0])
    assert autoencoder.encode(media[0]).shape == (3, 2, 3, 6)
    assert autoencoder.identity == image_autoencoder.identity
    # Frames after the last whole latent frame are left out.
    longer = random_video(11)
    np.testing.assert_allclose(autoencoder.encode(longer[:, :9]), autoencoder.encode(longer), rtol=1e-5, atol=1e-6)


def test_audio(audio_file):
    config = Convolutional(channels=5, temporal_stride=8, stride=0, sample_rate=8000, path=str(audio_file))
    autoencoder = load_autoencoder(config, audio_file)
    media = np.random.default_rng(0).integers(-3000, 3000, (3, 80)).astype(np.int16)
    mean, std = autoencoder.encode_distribution(media)
    assert mean.shape == (3, 10, 5) == std.shape == config.latent_shape(media.shape) and (std > 0).all()
    decoded = autoencoder.decode(mean)
    assert decoded.shape == (3, 80) and decoded.dtype == np.int16
    np.testing.assert_allclose(autoencoder.encode(media[1]), mean[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(autoencoder.encode(media[:, :79]), autoencoder.encode(media[:, :72]))
    for silent in (np.zeros(80, np.int16), np.zeros(8, np.int16)):  # silence, and a tenth of nothing
        assert (
            np.isfinite(autoencoder.encode(silent)).all() and autoencoder.decode(autoencoder.encode(silent)).ndim == 1
        )
    with pytest.raises(UserError, match=mentions("7 samples 8")):
        autoencoder.encode(media[:, :7])


def test_long_clips_pass_in_pieces(audio_file, video_file, monkeypatch):
    """An autoencoder that takes small pieces gives the same result, with one program for clips of any length."""
    whole = load_autoencoder(Convolutional(channels=5, temporal_stride=8, stride=0, sample_rate=8000), audio_file)
    media = np.random.default_rng(0).integers(-3000, 3000, (3, 400)).astype(np.int16)
    clips = load_autoencoder(Convolutional(channels=6, temporal_stride=4, stride=4), video_file)
    mean = whole.encode(media)
    latents = clips.encode(random_video(21))
    decoded, made = whole.decode(mean), clips.decode(latents)
    monkeypatch.setattr(trained, "_CHUNK_ELEMENTS", 64)
    np.testing.assert_allclose(whole.encode(media), mean, rtol=1e-4, atol=1e-5)
    assert np.abs(whole.decode(mean).astype(int) - decoded).max() <= 1
    np.testing.assert_allclose(clips.encode(random_video(21)), latents, rtol=1e-4, atol=1e-5)
    assert np.abs(clips.decode(latents).astype(int) - made).max() <= 1
    calls = []
    plain = whole._encode
    monkeypatch.setattr(
        whole, "_encode", lambda params, chunk, cache: (calls.append(chunk.shape), plain(params, chunk, cache))[1]
    )
    whole.encode(np.zeros(8000, np.int16))
    assert len(calls) > 10 and len(set(calls)) == 1
    monkeypatch.undo()
    calls.clear()
    monkeypatch.setattr(
        whole, "_encode", lambda params, chunk, cache: (calls.append(chunk.shape), plain(params, chunk, cache))[1]
    )
    for frames in range(129, 193):
        assert whole.encode(media[:1, : 8 * 40].repeat(5, axis=1)[:, : 8 * frames]).shape == (1, frames, 5)
    assert {shape[1] // 8 for shape in calls} == {160, 192}


def test_by_name_its_settings_come_from_the_file(video_file, audio_file):
    assert parse_autoencoder(f"convolutional={video_file}", "video") == Convolutional(
        path=str(video_file), channels=6, temporal_stride=4, stride=4
    )
    assert parse_autoencoder(f"convolutional={video_file}", "image").images_only
    assert parse_autoencoder(f"convolutional={audio_file}", "audio") == Convolutional(
        path=str(audio_file), channels=5, temporal_stride=8, stride=0, sample_rate=8000
    )
    assert read(video_file, weights=False) == (VIDEO_NETWORK, 0, {})
    for file, modality in ((audio_file, "image"), (video_file, "audio")):
        with pytest.raises(UserError, match=mentions(file, "autoencoder")):
            parse_autoencoder(f"convolutional={file}", modality)


def test_a_run_that_resumes_needs_no_file(video_file, tmp_path, monkeypatch):
    config = parse_autoencoder(f"convolutional={video_file}", "video")
    known = dataclasses.replace(config, path=str(tmp_path / "run" / "autoencoder.safetensors"), channels=9)
    for path in (known.path, str(tmp_path / "run")):
        assert parse_autoencoder(f"convolutional={path}", "video", known) is known
        with pytest.raises(UserError, match=mentions("No such file", path)):
            parse_autoencoder(f"convolutional={path}", "video")
    assert parse_autoencoder(f"convolutional={video_file}", "video", known) == config
    monkeypatch.chdir(tmp_path)
    assert parse_autoencoder("convolutional=run", "video", known) is known
    other = SDVAE(path="gone.safetensors", channels=9)
    assert parse_autoencoder(f"sd-vae={tmp_path}/gone.safetensors", "image", other) is other
