"""Synchrony of video and audio on data without ground truth."""

import warnings

import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.evaluation.metrics.av_sync import motion_energy, onset_strength, synchrony
from tests.conftest import mentions

FPS, RATE, FRAMES = 12.5, 8000, 50


def flashing(flashes: list[int], rng: np.random.Generator) -> np.ndarray:
    """A faintly noisy video that changes between the frames f and f + 1, uint8 [FRAMES, 8, 8, 3]."""
    video = rng.integers(0, 4, (FRAMES, 8, 8, 3)).astype(np.uint8)
    for flash in flashes:
        video[flash + 1 :] = 255 - video[flash + 1 :]
    return video


def clicking(clicks: list[int], delay: float = 0.0) -> np.ndarray:
    """Decaying tones that start half a frame after the frames f, int16."""
    t = np.arange(int(FRAMES / FPS * RATE)) / RATE
    audio = np.zeros_like(t)
    for click in clicks:
        since = t - (click + 0.5) / FPS - delay
        audio += np.where(since >= 0, np.exp(-np.abs(since) / 0.05) * np.sin(2 * np.pi * 440 * since), 0)
    return np.rint(audio * 8000).astype(np.int16)


@pytest.fixture(scope="module")
def events():
    rng = np.random.default_rng(0)
    return [sorted(rng.choice(np.arange(4, FRAMES - 8), 6, replace=False).tolist()) for _ in range(12)]


def test_flashes_and_their_clicks_agree_without_lag(events):
    rng = np.random.default_rng(1)
    videos, audios = [flashing(e, rng) for e in events], [clicking(e) for e in events]
    result = synchrony(videos, audios, FPS, RATE)
    assert result.counted == 12 and (result.peak > 0.8).all() and (result.lag == 0).all()
    swapped = synchrony(videos, audios[1:] + audios[:1], FPS, RATE)
    assert result.peak.min() > swapped.peak.max()


@pytest.mark.parametrize("frames", [-3, 2, 5])
def test_the_lag_is_the_delay_of_the_audio(events, frames):
    rng = np.random.default_rng(2)
    videos = [flashing(e, rng) for e in events]
    result = synchrony(videos, [clicking(e, frames / FPS) for e in events], FPS, RATE)
    np.testing.assert_allclose(result.lag, frames / FPS)


def test_lags_beyond_the_most_are_not_tried(events):
    rng = np.random.default_rng(3)
    result = synchrony([flashing(e, rng) for e in events], [clicking(e, 0.4) for e in events], FPS, RATE, max_lag=0.2)
    assert (np.abs(result.lag) <= 0.2 + 1e-9).all()


def test_energy_and_onsets_peak_at_their_frames():
    video, audio = flashing([10], np.random.default_rng(4)), clicking([20])
    assert motion_energy(video).argmax() == 10
    onset = onset_strength(audio, RATE, FPS, FRAMES - 1)
    assert onset.argmax() == 20 and onset[:20].max() < 0.1 * onset[20]
    loud = (audio / 32768).astype(np.float32)
    np.testing.assert_allclose(onset_strength(loud, RATE, FPS, FRAMES - 1), onset, rtol=1e-3, atol=1e-3)


def test_clips_without_motion_or_audio_are_nan_and_not_counted(events):
    video, audio = flashing(events[0], np.random.default_rng(5)), clicking(events[0])
    videos = [video, np.zeros_like(video), video, video[:1], video[:0], video, np.full(video.shape, np.nan, np.float32)]
    audios = [audio, audio, np.zeros_like(audio), audio, audio, audio[:0], audio]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = synchrony(videos, audios, FPS, RATE)
        assert synchrony([], [], FPS, RATE).counted == 0
    assert result.counted == 1 and np.isfinite(result.peak[0]) and np.isnan(result.peak[1:]).all()
    assert np.isnan(result.lag[1:]).all()


def test_wrong_media_are_refused():
    video, audio = np.zeros((3, 4, 4, 3), np.uint8), np.zeros(1920, np.int16)
    with pytest.raises(UserError, match=mentions("synchrony 1 2")):
        synchrony([video], [audio, audio], FPS, RATE)
    with pytest.raises(UserError, match=mentions("synchrony [4, 4, 3] [1920]")):
        synchrony([video[0]], [audio], FPS, RATE)
