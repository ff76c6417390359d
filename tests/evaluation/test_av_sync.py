"""Synchrony of sight and sound on data without ground truth."""

import warnings

import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.evaluation.metrics.av_sync import motion_energy, onset_strength, synchrony

FPS, RATE, FRAMES = 12.5, 8000, 50


def flashing(flashes: list[int], rng: np.random.Generator) -> np.ndarray:
    """A faintly noisy video whose picture changes between the frames f and f + 1, uint8 [FRAMES, 8, 8, 3]."""
    video = rng.integers(0, 4, (FRAMES, 8, 8, 3)).astype(np.uint8)
    for flash in flashes:
        video[flash + 1 :] = 255 - video[flash + 1 :]
    return video


def clicking(clicks: list[int], delay: float = 0.0) -> np.ndarray:
    """Decaying tones that start half a frame after the frames f, int16."""
    t = np.arange(int(FRAMES / FPS * RATE)) / RATE
    sound = np.zeros_like(t)
    for click in clicks:
        since = t - (click + 0.5) / FPS - delay
        sound += np.where(since >= 0, np.exp(-np.abs(since) / 0.05) * np.sin(2 * np.pi * 440 * since), 0)
    return np.rint(sound * 8000).astype(np.int16)


@pytest.fixture(scope="module")
def events():
    rng = np.random.default_rng(0)
    return [sorted(rng.choice(np.arange(4, FRAMES - 8), 6, replace=False).tolist()) for _ in range(12)]


def test_flashes_and_their_clicks_agree_without_lag(events):
    rng = np.random.default_rng(1)
    videos, sounds = [flashing(e, rng) for e in events], [clicking(e) for e in events]
    found = synchrony(videos, sounds, FPS, RATE)
    assert found.counted == 12 and (found.peak > 0.8).all() and (found.lag == 0).all()
    swapped = synchrony(videos, sounds[1:] + sounds[:1], FPS, RATE)
    assert found.peak.min() > swapped.peak.max()


@pytest.mark.parametrize("frames", [-3, 2, 5])
def test_the_lag_is_how_much_later_the_sound_comes(events, frames):
    rng = np.random.default_rng(2)
    videos = [flashing(e, rng) for e in events]
    found = synchrony(videos, [clicking(e, frames / FPS) for e in events], FPS, RATE)
    np.testing.assert_allclose(found.lag, frames / FPS)


def test_lags_beyond_the_most_are_not_tried(events):
    rng = np.random.default_rng(3)
    found = synchrony([flashing(e, rng) for e in events], [clicking(e, 0.4) for e in events], FPS, RATE, max_lag=0.2)
    assert (np.abs(found.lag) <= 0.2 + 1e-9).all()


def test_energy_and_onsets_stand_at_their_frames():
    video, sound = flashing([10], np.random.default_rng(4)), clicking([20])
    assert motion_energy(video).argmax() == 10
    onset = onset_strength(sound, RATE, FPS, FRAMES - 1)
    assert onset.argmax() == 20 and onset[:20].max() < 0.1 * onset[20]
    loud = (sound / 32768).astype(np.float32)
    np.testing.assert_allclose(onset_strength(loud, RATE, FPS, FRAMES - 1), onset, rtol=1e-3, atol=1e-3)


def test_what_does_not_move_or_sound_is_nan_and_not_counted(events):
    video, sound = flashing(events[0], np.random.default_rng(5)), clicking(events[0])
    videos = [video, np.zeros_like(video), video, video[:1], video[:0], video, np.full(video.shape, np.nan, np.float32)]
    sounds = [sound, sound, np.zeros_like(sound), sound, sound, sound[:0], sound]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = synchrony(videos, sounds, FPS, RATE)
        assert synchrony([], [], FPS, RATE).counted == 0
    assert found.counted == 1 and np.isfinite(found.peak[0]) and np.isnan(found.peak[1:]).all()
    assert np.isnan(found.lag[1:]).all()


def test_wrong_media_are_refused():
    video, sound = np.zeros((3, 4, 4, 3), np.uint8), np.zeros(1920, np.int16)
    with pytest.raises(UserError, match="1 videos and 2 clips"):
        synchrony([video], [sound, sound], FPS, RATE)
    with pytest.raises(UserError, match=r"\[T, H, W, C\]"):
        synchrony([video[0]], [sound], FPS, RATE)
