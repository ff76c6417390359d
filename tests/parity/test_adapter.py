"""Autoencoders of diffusers behind the interface, with tiny random weights; `-m parity`."""

import dataclasses

import numpy as np
import pytest

from selfflow.autoencoders.config import SDVAE, Diffusers
from selfflow.autoencoders.parse import parse_autoencoder
from selfflow.config.resolve import resolve
from selfflow.config.shapes import all_streams
from selfflow.data.built import build
from selfflow.errors import UserError
from selfflow.latents.encode import encode
from selfflow.latents.fit_autoencoder import fit_autoencoder
from tests.autoencoders.kl import CONFIG, images
from tests.conftest import mentions

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    """Wan 2.2's: residual, patched, 48 channels, 16 x 16 x 4."""
    import torch
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    model = AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=48,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.01 * i for i in range(48)],
        latents_std=[0.5 + 0.01 * i for i in range(48)],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=16,
    )
    folder = tmp_path_factory.mktemp("wan")
    model.save_pretrained(folder)
    return model.eval(), folder


@pytest.fixture(scope="module")
def oobleck(tmp_path_factory):
    """Stable Audio's: stereo, 64 channels."""
    import torch
    from diffusers import AutoencoderOobleck

    torch.manual_seed(0)
    model = AutoencoderOobleck(
        encoder_hidden_size=128,
        decoder_input_channels=64,
        decoder_channels=8,
        downsampling_ratios=[2, 4, 4, 5],
        channel_multiples=[1, 1, 1, 1],
        audio_channels=2,
        sampling_rate=8000,
    )
    folder = tmp_path_factory.mktemp("oobleck")
    model.save_pretrained(folder)
    return model.eval(), folder


def loaded(config, tmp_path):
    return fit_autoencoder(config.modalities[0], config, {}, (), tmp_path).autoencoder()


def test_wan(wan, tmp_path):
    import torch

    model, folder = wan
    config = parse_autoencoder(f"diffusers=AutoencoderKLWan:{folder}", "video")
    assert (config.channels, config.temporal_stride, config.stride, config.causal_padding) == (48, 4, 16, 3)
    autoencoder = loaded(config, tmp_path)
    media = images(32, 48, count=18).reshape(2, 9, 32, 48, 3)
    mean, std = autoencoder.encode_distribution(media)
    assert mean.shape == (2, 3, 2, 3, 48) == config.latent_shape(media.shape) and std.shape == mean.shape
    x = torch.as_tensor(np.moveaxis(media.astype(np.float32) / 127.5 - 1, -1, 1))
    with torch.no_grad():
        expected = model.encode(x).latent_dist
        shift, scale = (torch.tensor(model.config[f"latents_{n}"]).view(1, 48, 1, 1, 1) for n in ("mean", "std"))
        z = (expected.mode() - shift) / scale
        made = model.decode(expected.mode()).sample
    np.testing.assert_allclose(mean, np.moveaxis(z.numpy(), 1, -1), rtol=1e-3, atol=1e-4)
    decoded = autoencoder.decode(mean)
    assert decoded.shape == media.shape
    assert np.abs(decoded - np.clip((np.moveaxis(made.numpy(), 1, -1) + 1) * 127.5, 0, 255)).max() < 0.6
    # What follows the last whole latent frame is left out, and one frame is a clip.
    np.testing.assert_allclose(autoencoder.encode(media[0, :8]), autoencoder.encode(media[0, :5]), atol=1e-5)
    assert autoencoder.encode(media[0, :1]).shape == (1, 2, 3, 48)
    image_autoencoder = loaded(parse_autoencoder(f"diffusers=AutoencoderKLWan:{folder}", "image"), tmp_path)
    np.testing.assert_allclose(image_autoencoder.encode(media[:, 0]), mean[:, 0], rtol=1e-3, atol=1e-4)
    assert image_autoencoder.decode(mean[0, 0]).shape == (32, 48, 3)
    with pytest.raises(UserError, match=mentions("stride 16 24 x 48")):
        autoencoder.encode(media[:, :, :24])


def test_oobleck(oobleck, tmp_path):
    import torch

    model, folder = oobleck
    config = parse_autoencoder(f"diffusers=AutoencoderOobleck:{folder}", "audio")
    assert (config.channels, config.temporal_stride, config.stride, config.sample_rate) == (64, 160, 0, 8000)
    autoencoder = loaded(config, tmp_path)
    media = np.random.default_rng(0).integers(-9000, 9000, (5, 1600)).astype(np.int16)
    mean, std = autoencoder.encode_distribution(media)
    assert mean.shape == (5, 10, 64) == config.latent_shape(media.shape) and (std > 0).all()
    with torch.no_grad():
        x = torch.as_tensor(media.astype(np.float32) / 32768)[:, None].repeat(1, 2, 1)
        expected = model.encode(x).latent_dist.mode()
        made = model.decode(expected).sample.mean(1).numpy()
    np.testing.assert_allclose(mean, np.moveaxis(expected.numpy(), 1, -1), rtol=1e-3, atol=1e-4)
    decoded = autoencoder.decode(mean)
    assert decoded.shape == media.shape and decoded.dtype == np.int16
    whole = made.shape[1]  # its decoder makes less where a stride is odd
    assert np.abs(decoded[:, :whole] - np.clip(made * 32768, -32768, 32767)).max() < 1 and not decoded[:, whole:].any()
    for short in (np.zeros(800, np.int16), np.zeros(160, np.int16)):  # a tenth of a second of silence, and less
        assert np.isfinite(autoencoder.encode(short)).all()
    with pytest.raises(UserError, match=mentions("159 samples 160")):
        autoencoder.encode(media[:, :159])
    # Long audio passes in overlapping parts, which are joined where their ends have no influence.
    long = np.random.default_rng(1).integers(-9000, 9000, 8000 * 62).astype(np.int16)
    with torch.no_grad():
        x = torch.as_tensor(long.astype(np.float32) / 32768)[None, None].repeat(1, 2, 1)
        whole = np.moveaxis(model.encode(x).latent_dist.mode().numpy(), 1, -1)[0]
    np.testing.assert_allclose(autoencoder.encode(long), whole, rtol=1e-3, atol=1e-3)


def test_sd_vae_is_the_one_in_jax(tmp_path):
    """Two ways to the same latents: the publishers' code, and ours."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(**CONFIG).save_pretrained(tmp_path / "vae")
    config = parse_autoencoder(f"diffusers=AutoencoderKL:{tmp_path / 'vae'}", "image")
    ours = SDVAE(path=str(tmp_path / "vae"), stride=4, groups=CONFIG["norm_num_groups"])
    assert (config.channels, config.temporal_stride, config.stride) == (4, 1, 4)
    media = images(24, 32)
    theirs, mine = (loaded(c, tmp_path / "data") for c in (config, ours))
    for a, b in zip(theirs.encode_distribution(media), mine.encode_distribution(media)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert np.abs(theirs.decode(theirs.encode(media)).astype(int) - mine.decode(mine.encode(media))).max() <= 1


def test_a_real_clip_is_encoded_and_decoded(wan, oobleck, tiny_experiment, data_dir, tmp_path):
    """Video and audio of Collisions, to latents on disk and back; the weights are not copied."""
    configs = {
        "video": parse_autoencoder(f"diffusers=AutoencoderKLWan:{wan[1]}", "video"),
        "audio": parse_autoencoder(f"diffusers=AutoencoderOobleck:{oobleck[1]}", "audio"),
    }
    experiment = resolve(
        dataclasses.replace(
            tiny_experiment,
            autoencoders=tiny_experiment.autoencoders | configs,
            patch=tiny_experiment.patch | {"video": (1, 1, 1), "audio": (1,)},
        )
    ).experiment
    built = build(experiment.data["collisions"], data_dir)
    fitted = {m: fit_autoencoder(m, c, {"collisions": built}, (), tmp_path) for m, c in experiment.autoencoders.items()}
    assert all(f.path.stat().st_size < 1e4 for m, f in fitted.items() if m in configs)
    latents = encode(built, fitted, all_streams(experiment), None, tmp_path)
    stored, record = latents.open_split("test")[0], built.records("test")[0]
    assert stored["video"].shape == (7, 2, 2, 48) and stored["audio"].shape == (100, 64)
    assert np.isfinite(stored["video.std"]).all() and np.isfinite(stored["audio.std"]).all()
    for m, shape in (("video", (25, 32, 32, 3)), ("audio", (16000,))):
        autoencoder = latents.autoencoder(m, experiment.autoencoders[m])
        np.testing.assert_allclose(stored[m], autoencoder.encode(record[m]), atol=2e-3, rtol=2e-3)
        assert autoencoder.decode(stored[m].astype(np.float32)).shape == shape
    # The latents record the path of the weights.
    moved = dataclasses.replace(configs["video"], path="")
    assert latents.autoencoder("video", moved).identity == fitted["video"].identity


def test_any_class_that_encodes_and_decodes(tmp_path):
    """One that quantises, one of six frames to a latent frame, and one whose decoder needs another argument."""
    import torch
    from diffusers import AutoencoderKLMochi, AutoencoderKLTemporalDecoder, VQModel

    torch.manual_seed(0)
    VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).save_pretrained(tmp_path / "vq")
    config = parse_autoencoder(f"diffusers=VQModel:{tmp_path / 'vq'}", "image")
    assert (config.channels, config.stride, config.temporal_stride) == (4, 1, 1)
    AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        latent_channels=4,
        layers_per_block=(1, 1, 1, 1, 1),
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        add_attention_block=(False,) * 5,
    ).save_pretrained(tmp_path / "mochi")
    config = parse_autoencoder(f"diffusers=AutoencoderKLMochi:{tmp_path / 'mochi'}", "video")
    assert (config.channels, config.stride, config.temporal_stride) == (4, 8, 6)
    AutoencoderKLTemporalDecoder(block_out_channels=(32,)).save_pretrained(tmp_path / "svd")
    with pytest.raises(UserError, match=r"\bAutoencoderKLTemporalDecoder\b.*\bnum_frames\b"):
        parse_autoencoder(f"diffusers=AutoencoderKLTemporalDecoder:{tmp_path / 'svd'}", "image")


def test_settings_that_do_not_fit_are_named(wan, oobleck, tmp_path):
    good = parse_autoencoder(f"diffusers=AutoencoderKLWan:{wan[1]}", "video")
    for field, value, words in (
        ("channels", 16, f"{wan[1]} channels 48 16"),
        ("temporal_stride", 1, f"{wan[1]} temporal_stride 4 1"),
        ("name", "AutoencoderKLMochi", f"{wan[1]} AutoencoderKLMochi"),
        ("name", "UNet2DModel", "name UNet2DModel AutoencoderKLWan"),
        ("name", "AutoencoderOobleck", f"{wan[1]} AutoencoderOobleck"),
        ("path", str(tmp_path / "none"), f"path {tmp_path}/none"),
        ("path", str(tmp_path), f"{tmp_path} AutoencoderKLWan"),
    ):
        with pytest.raises(UserError, match=mentions(words)):
            fit_autoencoder("video", dataclasses.replace(good, **{field: value}), {}, (), tmp_path)
    first = fit_autoencoder("video", good, {}, (), tmp_path)
    assert isinstance(first.config, Diffusers)
    with pytest.raises(UserError, match=mentions("elements (0, 9, 32, 32, 3)")):
        first.autoencoder().encode(np.zeros((0, 9, 32, 32, 3), np.uint8))
    with pytest.raises(UserError, match=mentions("elements (0, 3, 2, 2, 48)")):
        first.autoencoder().decode(np.zeros((0, 3, 2, 2, 48), np.float32))
    import torch
    from diffusers import AutoencoderKLWan

    copied = tmp_path / "copied"
    model = AutoencoderKLWan.from_pretrained(wan[1])
    model.save_pretrained(copied)
    pinned = fit_autoencoder("video", dataclasses.replace(good, path=str(copied)), {}, (), tmp_path)
    assert pinned.identity == first.identity  # of the weights, not of the place
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(copied)
    from selfflow.autoencoders.diffusers_model import _LOADED

    _LOADED.clear()
    with pytest.raises(UserError, match=mentions(copied, pinned.identity)):
        pinned.autoencoder()
