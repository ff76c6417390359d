"""Audio-video synchrony of any media: correlation of audio onsets and motion."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from selfflow.errors import UserError

_WINDOW = 0.032  # s
_HOPS_PER_FRAME = 4
_COMPRESSION = 100.0  # gamma of log(1 + gamma |X|)
_MIN_STEPS = 3  # frames


class Synchrony(NamedTuple):
    """Peaks of the cross-correlations of B clips."""

    peak: np.ndarray
    """Peak of the normalised cross-correlation, -1 to 1, float64 [B]; NaN for a clip without motion or onsets."""
    lag: np.ndarray
    """Delay of the audio at the peak, seconds, float64 [B]; NaN likewise."""
    counted: int
    """Number of clips that are not NaN."""


def synchrony(
    videos: Sequence[np.ndarray] | np.ndarray,
    audio: Sequence[np.ndarray] | np.ndarray,
    frames_per_second: float,
    sample_rate: int,
    max_lag: float = 0.5,
) -> Synchrony:
    """Cross-correlates onset strength and motion energy, for media without ground truth.

    Motion energy is the mean absolute difference of successive frames; onset strength is the rise of the log spectrum
    between them. Both are standardised over the clip and multiplied at every lag; the sum is divided by the number of
    frames, so that the peak does not favour lags with a short overlap. Values depend on the kind of media: compare sets
    of the same kind, or a set with itself with permuted audio.

    Args:
      videos: [T, H, W, C] each, of any real dtype.
      audio: int16 or float [S] each.
      frames_per_second: frames per second of the videos.
      sample_rate: samples per second of the audio.
      max_lag: largest lag in either direction, seconds.

    Raises:
      UserError: unequal numbers of clips, or media of the wrong shape.
    """
    if len(videos) != len(audio):
        raise UserError(f"synchrony: {len(videos)} videos and {len(audio)} clips of audio; give equal numbers")
    peaks = np.full((2, len(videos)), np.nan)
    for i, (video, clip) in enumerate(zip(videos, audio)):
        if video.ndim != 4 or clip.ndim != 1:
            raise UserError(
                f"synchrony: video {list(video.shape)} and audio {list(clip.shape)}; give [T, H, W, C], [S]"
            )
        motion = motion_energy(video)
        onset = onset_strength(clip, sample_rate, frames_per_second, len(motion))
        peaks[:, i] = _peak(motion, onset, round(max_lag * frames_per_second))
    return Synchrony(peaks[0], peaks[1] / frames_per_second, int(np.isfinite(peaks[0]).sum()))


class AVSync:
    """Mean over clips of the peak correlation of onset strength and motion energy."""

    name = "av_sync"
    title = "audio-video synchrony"
    better: Literal["higher"] = "higher"
    needs: Literal["media"] = "media"
    unit = "peak correlation of onset strength and motion energy, -1 to 1"

    def per_clip(self, media: Mapping[str, np.ndarray], rates: Mapping[str, float]) -> np.ndarray | None:
        """Peaks, float64 [B]; None unless there are video and audio."""
        if "video" not in media or "audio" not in media:
            return None
        return synchrony(media["video"], media["audio"], rates["video"], rates["audio"]).peak


def motion_energy(video: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each frame [T, H, W, C] and the next, float64 [T - 1]."""
    if len(video) < 2 or not video.size:
        return np.zeros(0)
    return np.abs(np.diff(video.astype(np.float32), axis=0)).mean(axis=(1, 2, 3), dtype=np.float64)


def onset_strength(audio: np.ndarray, sample_rate: int, frames_per_second: float, steps: int) -> np.ndarray:
    """Spectral flux of audio [S] between successive frames, float64 [steps]: summed rises of the log spectrum.

    The flux is 0 after the end of the audio. It is the half-wave rectified flux of log-compressed magnitudes: Böck,
    Krebs and Schedl, "Evaluating the online capabilities of onset detection methods", ISMIR 2012.
    """
    # Scale to [-1, 1], so that the log compression does not depend on the dtype.
    x = audio.astype(np.float64) / (32768 if np.issubdtype(audio.dtype, np.integer) else 1)
    window = max(8, round(_WINDOW * sample_rate))
    hop = max(1, round(sample_rate / frames_per_second / _HOPS_PER_FRAME))
    strength = np.zeros(steps)
    if not len(x) or not steps:
        return strength
    # Pad half a window of silence on both sides, which centres block k at sample k hop.
    x = np.pad(x, (window // 2, window - window // 2))
    blocks = np.lib.stride_tricks.sliding_window_view(x, window)[::hop]
    spectrum = np.log1p(_COMPRESSION * np.abs(np.fft.rfft(blocks * np.hanning(window), axis=1)) / window)
    flux = np.maximum(np.diff(spectrum, axis=0), 0.0).sum(axis=1)
    # The flux from block k to block k + 1 is at the time between them.
    time = (np.arange(len(flux)) + 0.5) * hop / sample_rate
    step = np.floor(time * frames_per_second).astype(int)
    inside = step < steps
    return strength + np.bincount(step[inside], flux[inside], steps)


def _peak(motion: np.ndarray, onset: np.ndarray, max_lag: int) -> tuple[float, float]:
    """Maximum of the normalised cross-correlation and its lag in frames, positive if the onset comes later."""
    n = len(motion)
    if n < _MIN_STEPS or not (np.isfinite(motion).all() and np.isfinite(onset).all()):
        return np.nan, np.nan
    # A constant signal has no correlation; rounding must not give it one.
    for signal in (motion, onset):
        if np.ptp(signal) <= 1e-6 * np.abs(signal).max():
            return np.nan, np.nan
    a = (motion - motion.mean()) / motion.std()
    b = (onset - onset.mean()) / onset.std()
    lags = np.arange(-(n - 1), n)
    # correlate(b, a)[k] is the sum of b[t + lag] a[t].
    values = np.correlate(b, a, mode="full") / n
    allowed = np.abs(lags) <= max_lag
    best = int(values[allowed].argmax())
    return float(values[allowed][best]), float(lags[allowed][best])
