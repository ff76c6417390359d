"""Straight lines through tracked positions."""

from typing import NamedTuple

import numpy as np

MIN_FRAMES = 3
"""Frames of a line that has a velocity. A line of two frames may mix the velocities before and after a contact."""

# Penalties of a line and of a single point, in units of the variance of the noise.
_LINE, _POINT = 18.0, 14.0


class Lines(NamedTuple):
    """Pieces of uniform motion of N bodies over T frames; velocities in units per second."""

    piece: np.ndarray
    """Index of the line that a frame belongs to, int [N, T]."""
    length: np.ndarray
    """Frames on that line where the body is visible, int [N, T]."""
    velocity: np.ndarray
    """Slope of the line, float64 [N, T, 2]; NaN on lines of fewer than `MIN_FRAMES` frames."""
    position: np.ndarray
    """Positions on the line, units, float64 [N, T, 2]; NaN as for `velocity`."""
    noise: np.ndarray
    """Standard deviation of coordinates around the lines, units, float64 [N]."""


def fit_lines(positions: np.ndarray, seconds: float, least_noise: float = 0.04) -> Lines:
    """Fits the fewest straight lines that explain the positions of each body, by dynamic programming.

    A contact between frames i and i + 1 ends a line at i and starts one at i + 1. The cost of a line is the sum of its
    squared residuals over the variance of the noise, plus a constant, as in the penalised segmentation of Killick et
    al. (arXiv 1101.1438, without its pruning: there are few frames).

    Args:
      positions: [N, T, 2] in units; NaN where a body is not visible.
      seconds: time between two frames.
      least_noise: standard deviation of the tracker on clean frames, units.
    """
    number, frames = positions.shape[:2]
    visible = np.isfinite(positions).all(axis=-1)
    noise = _noise(positions, least_noise)
    fit = _all_lines(np.where(visible[..., None], positions, 0.0), visible)
    # A single frame has a position and no slope, and so a lower penalty.
    cost = fit.residual / noise[:, None, None] ** 2 + np.where(fit.n > 1, _LINE, _POINT)

    # best[:, end] is the least cost of the frames before `end`, start[:, end] the first frame of their last line.
    best = np.zeros((number, frames + 1))
    start = np.zeros((number, frames + 1), int)
    for end in range(1, frames + 1):
        total = best[:, :end] + cost[:, :end, end - 1]
        start[:, end] = total.argmin(axis=1)
        best[:, end] = total.min(axis=1)

    # Trace back from the end: the first and the last frame of each frame's line.
    piece, first = np.zeros((number, frames), int), np.zeros((number, frames), int)
    last = np.zeros((number, frames), int)
    end, rows = np.full(number, frames), np.arange(number)
    for t in range(frames - 1, -1, -1):
        first[:, t], last[:, t] = start[rows, end], end - 1
        end = np.where(start[rows, end] == t, t, end)
    piece[:, 1:] = np.cumsum(first[:, 1:] != first[:, :-1], axis=1)
    # The fitted line of each frame, [N, T, ...].
    line = rows[:, None], first, last
    n, slope = fit.n[line], fit.slope[line]
    velocity = slope / seconds
    position = fit.mean[line] + slope * (np.arange(frames) - fit.time[line])[..., None]
    velocity[n < MIN_FRAMES] = position[n < MIN_FRAMES] = np.nan
    return Lines(piece, n.astype(int), velocity, position, noise)


class _Fits(NamedTuple):
    """Least-squares lines through frames i to j of N bodies."""

    n: np.ndarray
    """Frames in which the body is visible, [N, i, j]."""
    slope: np.ndarray
    """Units per frame, [N, i, j, 2]."""
    time: np.ndarray
    """Mean frame, [N, i, j]."""
    mean: np.ndarray
    """Mean position, [N, i, j, 2]."""
    residual: np.ndarray
    """Sum of squared residuals, [N, i, j]."""


def _all_lines(x: np.ndarray, visible: np.ndarray) -> _Fits:
    """Least-squares lines of all intervals of frames at once, from cumulative sums.

    Args:
      x: positions [N, T, 2], finite.
      visible: frames that count, bool [N, T].
    """
    t = np.arange(x.shape[1], dtype=float)

    def sums(values: np.ndarray) -> np.ndarray:
        """Sums of `values` [N, T, ...] over frames i to j, [N, i, j, ...]."""
        cumulative = np.cumsum(values, axis=1)
        return cumulative[:, None] - (cumulative - values)[:, :, None]

    weight = visible.astype(float)
    n = sums(weight)
    at_least_one = np.maximum(n, 1)
    time = sums(weight * t) / at_least_one
    mean = sums(x * weight[..., None]) / at_least_one[..., None]
    variance = sums(weight * t**2) - n * time**2
    covariance = sums(x * (weight * t)[..., None]) - (n * time)[..., None] * mean
    slope = np.where(variance[..., None] > 1e-9, covariance / np.maximum(variance, 1e-9)[..., None], 0.0)
    residual = sums(np.square(x) * weight[..., None]) - n[..., None] * mean**2 - slope * covariance
    return _Fits(n, slope, time, mean, np.maximum(residual.sum(axis=-1), 0.0))


def _noise(positions: np.ndarray, least: float) -> np.ndarray:
    """Estimates the standard deviation of positions around smooth motion, [N].

    It is computed from second differences, few of which span a contact.
    """
    if positions.shape[1] < 4 or not len(positions):
        return np.full(len(positions), least)
    bends = np.abs(np.diff(positions, n=2, axis=1)).reshape(len(positions), -1)
    known = np.isfinite(bends).any(axis=1)
    quantile = np.zeros(len(positions))
    quantile[known] = np.nanquantile(bends[known], 0.4, axis=1)
    # The 0.4 quantile of |second difference| of white noise is 0.52 sqrt(6) standard deviations.
    return np.clip(quantile / (0.52 * 6**0.5), least, 8 * least)
