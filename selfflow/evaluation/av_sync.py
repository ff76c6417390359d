"""Synchrony of sight and sound on any data: do attacks of the sound and movement come together?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from selfflow.errors import UserError

_WINDOW = 0.032
_HOPS_PER_FRAME = 4
_COMPRESSION = 100.0
_LEAST_STEPS = 3


class Synchrony(NamedTuple):
    """The peak of the cross-correlation of each of B clips."""

    peak: np.ndarray
    """Normalised cross-correlation at its peak, -1 to 1, float64 [B]; nan where nothing moves or nothing sounds."""
    lag: np.ndarray
    """By how much the sound comes after the movement there, seconds, float64 [B]; nan likewise."""
    counted: int
    """Clips that are not nan."""


def synchrony(
    videos: Sequence[np.ndarray] | np.ndarray,
    sounds: Sequence[np.ndarray] | np.ndarray,
    frames_per_second: float,
    sample_rate: int,
    most_lag: float = 0.5,
) -> Synchrony:
    """Cross-correlates onset strength and motion energy, for media that have no ground truth.

    Motion energy is the mean absolute difference of a frame and the next; onset strength is the rise of the log
    spectrum between the times of the two. Both are standardised over the clip and multiplied at every lag; the sum is
    divided by the number of frames, so that short overlaps do not look like agreement. The value depends on the kind
    of media: compare sets of the same kind, or a set with itself with its sounds swapped.

    Args:
      videos: [T, H, W, C] each, of any real type.
      sounds: int16 or float [S] each.
      frames_per_second: of the videos.
      sample_rate: of the sounds.
      most_lag: lags up to this many seconds either way are tried.

    Raises:
      UserError: unequal numbers of clips, or media of another shape.
    """
    if len(videos) != len(sounds):
        raise UserError(f"synchrony: {len(videos)} videos and {len(sounds)} sounds; give as many of each")
    found = np.full((2, len(videos)), np.nan)
    for i, (video, sound) in enumerate(zip(videos, sounds)):
        if video.ndim != 4 or sound.ndim != 1:
            raise UserError(
                f"synchrony: video {list(video.shape)} and sound {list(sound.shape)}; give [T, H, W, C], [S]"
            )
        moved = motion_energy(video)
        heard = onset_strength(sound, sample_rate, frames_per_second, len(moved))
        found[:, i] = _peak(moved, heard, round(most_lag * frames_per_second))
    return Synchrony(found[0], found[1] / frames_per_second, int(np.isfinite(found[0]).sum()))


def motion_energy(video: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each frame [T, H, W, C] and the next, float64 [T - 1]."""
    if len(video) < 2 or not video.size:
        return np.zeros(0)
    return np.abs(np.diff(video.astype(np.float32), axis=0)).mean(axis=(1, 2, 3), dtype=np.float64)


def onset_strength(sound: np.ndarray, sample_rate: int, frames_per_second: float, steps: int) -> np.ndarray:
    """Spectral flux of sound [S] between successive frames, float64 [steps]: rises of the log spectrum, summed.

    0 after the end of the sound. Half-wave rectified flux of log-compressed magnitudes: Böck, Krebs and Schedl,
    "Evaluating the online capabilities of onset detection methods", ISMIR 2012.
    """
    x = sound.astype(np.float64) / (32768 if np.issubdtype(sound.dtype, np.integer) else 1)
    window = max(8, round(_WINDOW * sample_rate))
    hop = max(1, round(sample_rate / frames_per_second / _HOPS_PER_FRAME))
    out = np.zeros(steps)
    if not len(x) or not steps:
        return out
    # Half a window of silence on both sides: block k is centred at sample k hop.
    x = np.pad(x, (window // 2, window - window // 2))
    blocks = np.lib.stride_tricks.sliding_window_view(x, window)[::hop]
    spectrum = np.log1p(_COMPRESSION * np.abs(np.fft.rfft(blocks * np.hanning(window), axis=1)) / window)
    flux = np.maximum(np.diff(spectrum, axis=0), 0.0).sum(axis=1)
    time = (np.arange(len(flux)) + 0.5) * hop / sample_rate
    step = np.floor(time * frames_per_second).astype(int)
    inside = step < steps
    return out + np.bincount(step[inside], flux[inside], steps)


def _peak(moved: np.ndarray, heard: np.ndarray, most: int) -> tuple[float, float]:
    """Largest normalised cross-correlation and its lag in frames, positive where `heard` comes later."""
    n = len(moved)
    if n < _LEAST_STEPS or not (np.isfinite(moved).all() and np.isfinite(heard).all()):
        return np.nan, np.nan
    if np.ptp(moved) <= 1e-6 * np.abs(moved).max() or np.ptp(heard) <= 1e-6 * np.abs(heard).max():
        return np.nan, np.nan
    a, b = ((x - x.mean()) / x.std() for x in (moved, heard))
    lags = np.arange(-(n - 1), n)
    # correlate(b, a)[k] is the sum of b[t + lag] a[t].
    values = np.correlate(b, a, mode="full") / n
    near = np.abs(lags) <= most
    best = int(values[near].argmax())
    return float(values[near][best]), float(lags[near][best])
