import numpy as np
import pytest

from selfflow.autoencoders.linear import LinearAutoencoder, MdctPCA, PatchPCA
from selfflow.autoencoders.load import load_autoencoder
from selfflow.autoencoders.log_mel import LogMel
from selfflow.autoencoders.quality import psnr, snr
from selfflow.encoders.audio import log_mel
from selfflow.errors import UserError
from tests.conftest import mentions


@pytest.fixture
def video() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 3, 16, 8, 3)).astype(np.uint8)


@pytest.fixture
def audio() -> np.ndarray:
    """Heavy-tailed: silence with decaying tones in it."""
    random, time = np.random.default_rng(0), np.arange(1600) / 8000
    clips = np.zeros((60, 1600))
    for clip in clips:
        at = random.integers(0, 1400)
        tone = np.sin(2 * np.pi * random.uniform(200, 1500) * time) * np.exp(-time / 0.05) * random.exponential(3000)
        clip[at:] += tone[: 1600 - at]
    return np.clip(clips, -32768, 32767).astype(np.int16)


def test_patches_are_exact_at_full_rank_and_orthonormal(video):
    fitted = LinearAutoencoder.fit(PatchPCA(patch=4, channels=48), [video[:6], video[6:]])
    np.testing.assert_array_equal(fitted.decode(fitted.encode(video)), video)
    basis = fitted.arrays["basis"]
    np.testing.assert_allclose(basis.T @ basis, np.eye(48), atol=1e-5)
    assert fitted.encode(video).shape == (12, *fitted.config.latent_shape(video.shape[1:])) == (12, 3, 4, 2, 48)


def test_empty_arrays_and_sizes_that_do_not_fit_are_refused(video, audio):
    visual = LinearAutoencoder.fit(PatchPCA(patch=4, channels=3), [video])
    with pytest.raises(UserError, match=mentions("patch 4 16 x 6")):
        visual.encode(video[..., :6, :])
    for config in (MdctPCA(temporal_stride=16, channels=4), LogMel(temporal_stride=80, bands=8)):
        short = audio[:, : config.temporal_stride - 1]
        fitted = LinearAutoencoder.fit(config, [audio, short])  # clips that are too short are left out
        with pytest.raises(UserError, match=mentions("shape (0, 1600) elements")):
            fitted.encode(audio[:0])
        latents = fitted.encode(audio)[:0]
        with pytest.raises(UserError, match=mentions("elements", latents.shape)):
            fitted.decode(latents)
        with pytest.raises(UserError, match=mentions("training split", config.kind)):
            LinearAutoencoder.fit(config, [short])


def test_a_patch_is_a_patch_of_the_image(video):
    frames = PatchPCA(patch=4, channels=3).frames(video)
    patch = video[2, 1, 4:8, 0:4].astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(frames[2, 1, 1, 0], patch.ravel())


def test_pca_agrees_with_scikit_learn(video):
    from sklearn.decomposition import PCA

    config = PatchPCA(patch=4, channels=5)
    frames = config.frames(video).reshape(-1, 48)
    reference = PCA(5).fit(frames.astype(np.float64))
    fitted = LinearAutoencoder.fit(config, [video])
    mine, theirs = (
        fitted.encode(video).reshape(-1, 5),
        reference.transform(frames) / np.sqrt(reference.explained_variance_),
    )
    np.testing.assert_allclose(np.abs((mine * theirs).mean(0)), 1.0, atol=2e-3)


def test_mdct_agrees_with_its_definition():
    """Frame i of a plain MDCT: sum over its window of w x cos(pi / M (n + 1/2 + M/2) (k + 1/2)), written out."""
    hop, random = 8, np.random.default_rng(0)
    x = random.integers(-3000, 3000, 5 * hop).astype(np.int16)
    n, k = np.arange(2 * hop), np.arange(hop)
    basis = np.cos(np.pi / hop * (n[:, None] + 0.5 + hop / 2) * (k + 0.5)) * np.sqrt(2 / hop)
    window = np.sin(np.pi / (2 * hop) * (n + 0.5))
    result = MdctPCA(temporal_stride=hop, channels=8).frames(x)
    for i in (1, 2, 3):  # away from the ends, where there is no neighbour to overlap with
        at = i * hop - hop // 2
        expected = (x[at : at + 2 * hop] / 32768 * window) @ basis
        np.testing.assert_allclose(np.abs(result[i]), np.abs(expected), atol=1e-6)


def test_mdct_is_orthonormal_and_audio_is_restored_exactly(audio):
    config = MdctPCA(temporal_stride=320, channels=320)
    frames = config.frames(audio)
    assert frames.shape == (60, 5, 320)
    np.testing.assert_allclose((frames**2).sum(), np.sum((audio / 32768.0) ** 2), rtol=1e-5)
    fitted = LinearAutoencoder.fit(config, [audio])
    assert np.abs(fitted.decode(fitted.encode(audio)).astype(int) - audio).max() <= 1


def test_latents_are_normalised_and_companding_tames_their_tails(audio):
    fitted = LinearAutoencoder.fit(MdctPCA(temporal_stride=320, channels=32), [audio])
    z = fitted.encode(audio).reshape(-1, 32)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(z.std(0), 1, atol=1e-3)
    raw = (fitted.config.frames(audio).reshape(-1, 320) - fitted.arrays["mean"]) @ fitted.arrays["basis"]
    kurtosis = lambda x: np.mean((x - x.mean(0)) ** 4, 0) / x.var(0) ** 2
    assert np.median(kurtosis(z)) < 0.7 * np.median(kurtosis(raw))


def test_more_channels_lose_less(video, audio):
    for config, media, measure in (
        (lambda c: PatchPCA(patch=4, channels=c), video, psnr),
        (lambda c: MdctPCA(temporal_stride=320, channels=c), audio, snr),
    ):
        quality = []
        for channels in (4, 16, 40):
            fitted = LinearAutoencoder.fit(config(channels), [media])
            quality.append(measure(media, fitted.decode(fitted.encode(media))))
        assert quality == sorted(quality)


def test_equal_data_give_equal_latents_and_files_keep_them(video, tmp_path):
    config = PatchPCA(patch=4, channels=7)
    a, b = (LinearAutoencoder.fit(config, [video]) for _ in range(2))
    assert a.identity == b.identity
    assert LinearAutoencoder.fit(config, [video[:5]]).identity != a.identity
    a.save(tmp_path / "a.safetensors")
    assert load_autoencoder(config, tmp_path / "a.safetensors").identity == a.identity


def test_silence_and_few_samples_stay_finite():
    silent = np.zeros((2, 1600), np.int16)
    fitted = LinearAutoencoder.fit(MdctPCA(temporal_stride=320, channels=320), [silent])
    assert (fitted.decode(fitted.encode(silent)) == 0).all()
    few = np.random.default_rng(0).integers(-900, 900, (1, 1600)).astype(np.int16)
    fitted = LinearAutoencoder.fit(MdctPCA(temporal_stride=320, channels=320), [few])
    assert np.isfinite(fitted.encode(few)).all() and np.abs(fitted.encode(few)).max() < 100
    wild = np.full((1, 5, 320), 50.0)
    assert fitted.decode(wild).dtype == np.int16


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: PatchPCA(patch=2, channels=13), "channels 13 2 x 2 12"),
        (lambda: MdctPCA(temporal_stride=7), "temporal_stride 7"),
        (lambda: MdctPCA(temporal_stride=320, channels=321), "channels 321 temporal_stride 320"),
        (lambda: PatchPCA(patch=5, channels=3).latent_shape((32, 32, 3)), "patch 5 32 x 32"),
        (lambda: MdctPCA(temporal_stride=320, channels=3).latent_shape((1000,)), "temporal_stride 320 1000"),
        (lambda: LinearAutoencoder.fit(PatchPCA(patch=4, channels=3), []), "patch_pca"),
    ],
)
def test_impossible_settings_are_named(make, words):
    with pytest.raises(UserError, match=mentions("autoencoder", words)):
        make()


def test_quality_measures():
    a = np.full((2, 8, 8, 3), 100, np.uint8)
    assert psnr(a, a + 10) == pytest.approx(20 * np.log10(25.5))
    tone = (10_000 * np.sin(np.arange(8000))).astype(np.int16)
    assert snr([tone], [np.zeros_like(tone)]) == pytest.approx(0.0)
    assert np.isnan(snr([np.zeros(10, np.int16)], [np.zeros(10, np.int16)]))
    spectrum = log_mel((10_000 * np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)).astype(np.int16), 8000)
    import librosa

    assert librosa.mel_frequencies(42, fmax=4000)[1:-1][spectrum.mean(1).argmax()] == pytest.approx(1000, rel=0.1)
