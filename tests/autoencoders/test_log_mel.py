"""Log-mel latents: their definition, their timing, and their inversion to audio."""

import numpy as np
import pytest

from selfflow.autoencoders.linear import LinearAutoencoder
from selfflow.autoencoders.log_mel import LogMel
from selfflow.errors import UserError
from tests.conftest import mentions

CONFIG = LogMel(temporal_stride=400, bands=20)


@pytest.fixture(scope="module")
def audio() -> np.ndarray:
    """Decaying tones of several pitches at several times."""
    random, time = np.random.default_rng(0), np.arange(8000) / 8000
    clips = np.zeros((24, 8000))
    for clip in clips:
        at = random.integers(0, 6000)
        tone = np.sin(2 * np.pi * random.uniform(200, 1500) * time) * np.exp(-time / 0.1) * 10_000
        clip[at:] += tone[: 8000 - at]
    return clips.astype(np.int16)


def test_frames_follow_their_definition(audio):
    """The power of a Hann window around each block, through triangles on the mel scale, written out."""
    import librosa

    x = np.pad(audio[0] / 32768, 200)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(800) / 800)
    filters = librosa.filters.mel(sr=8000, n_fft=800, n_mels=20)
    expected = [
        np.log(filters @ np.abs(np.fft.rfft(window * x[400 * i : 400 * i + 800])) ** 2 + 1e-4) for i in range(20)
    ]
    np.testing.assert_allclose(CONFIG.frames(audio[0]), expected, atol=1e-3)


def test_a_frame_is_of_its_own_block():
    for block in (0, 7, 19):
        click = np.zeros(8000, np.int16)
        click[400 * block + 200] = 20_000
        assert CONFIG.frames(click).mean(axis=1).argmax() == block
    assert CONFIG.frames(np.zeros((3, 8100), np.int16)).shape == (3, 20, 20)


def test_decoded_audio_sounds_like_the_original(audio):
    """By its log-mels: much nearer to its original than to the others, and as loud."""
    fitted = LinearAutoencoder.fit(CONFIG, [audio])
    decoded = fitted.decode(fitted.encode(audio))
    result, expected = CONFIG.frames(decoded), CONFIG.frames(audio)
    own = np.abs(result - expected).mean(axis=(1, 2))
    other = np.abs(result - np.roll(expected, 1, axis=0)).mean(axis=(1, 2))
    assert decoded.dtype == np.int16 and decoded.shape == audio.shape
    assert np.median(own) < 0.6 * np.median(other)
    loudness = np.square(decoded.astype(float)).mean() / np.square(audio.astype(float)).mean()
    assert 0.5 < loudness < 2


def test_latents_do_not_depend_on_the_phase(audio):
    np.testing.assert_allclose(CONFIG.frames(-audio), CONFIG.frames(audio), atol=1e-4)


def test_silence_and_extreme_latents_stay_finite(audio):
    fitted = LinearAutoencoder.fit(CONFIG, [audio])
    silence = fitted.decode(fitted.encode(np.zeros((1, 8000), np.int16)))
    assert np.abs(silence).max() < 300
    loud = fitted.decode(np.full((1, 20, 20), 1e6, np.float32))
    assert np.isfinite(loud).all() and np.abs(loud).max() <= 32768


def test_settings_that_make_no_sense_are_refused():
    for field, value in (("temporal_stride", 5), ("bands", 0)):
        with pytest.raises(UserError, match=mentions(field, value)):
            LogMel(**{field: value})
    with pytest.raises(UserError, match=mentions("temporal_stride 400 8001")):
        CONFIG.latent_shape((8001,))
