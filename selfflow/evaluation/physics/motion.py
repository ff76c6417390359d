"""Straight lines through tracked places, and what changes between them."""

from typing import NamedTuple

import numpy as np

LEAST_FRAMES = 3
"""Frames of a line that tells a velocity. Differences of two frames mix what was before and after a contact."""

_LINE, _POINT = 18.0, 14.0


class Lines(NamedTuple):
    """Bodies as pieces of uniform motion, N bodies of T frames; velocities in units per second."""

    piece: np.ndarray
    """Number of the line that a frame belongs to, from 0 on, int [N, T]."""
    length: np.ndarray
    """Frames on that line where the body is seen, int [N, T]."""
    velocity: np.ndarray
    """Slope of the line, float64 [N, T, 2]; nan on lines of fewer than LEAST_FRAMES frames."""
    position: np.ndarray
    """Places on the line, units, float64 [N, T, 2]; nan likewise."""
    noise: np.ndarray
    """Deviation of a coordinate from the lines, units, float64 [N]."""


def fit_lines(positions: np.ndarray, seconds: float, least_noise: float = 0.04) -> Lines:
    """The fewest straight lines that explain the places of each body, by dynamic programming.

    A contact between frames i and i + 1 ends a line at i and starts one at i + 1. Each line costs its squared
    residuals over the noise's variance and a constant, as in the penalised segmentation of Killick et al.
    (arXiv 1101.1438, without its pruning: there are few frames).

    Args:
      positions: [N, T, 2] in units; nan where a body is not seen.
      seconds: time between two frames.
      least_noise: standard deviation of the tracker on clean frames, units.
    """
    number, frames = positions.shape[:2]
    seen = np.isfinite(positions).all(axis=-1)
    noise = _noise(positions, least_noise)
    fit = _all_lines(np.where(seen[..., None], positions, 0.0), seen)
    # A frame alone needs a place and no slope; else two frames would be as good a line as many.
    cost = fit.rest / noise[:, None, None] ** 2 + np.where(fit.n > 1, _LINE, _POINT)
    best = np.zeros((number, frames + 1))
    start = np.zeros((number, frames + 1), int)
    for end in range(1, frames + 1):
        total = best[:, :end] + cost[:, :end, end - 1]
        start[:, end] = total.argmin(axis=1)
        best[:, end] = total.min(axis=1)
    piece, first = np.zeros((number, frames), int), np.zeros((number, frames), int)
    last = np.zeros((number, frames), int)
    end, rows = np.full(number, frames), np.arange(number)
    for t in range(frames - 1, -1, -1):
        first[:, t], last[:, t] = start[rows, end], end - 1
        end = np.where(start[rows, end] == t, t, end)
    piece[:, 1:] = np.cumsum(first[:, 1:] != first[:, :-1], axis=1)
    n, slope, middle, place = (part[rows[:, None], first, last] for part in fit[:4])
    velocity, position = slope / seconds, place + slope * (np.arange(frames) - middle)[..., None]
    velocity[n < LEAST_FRAMES] = position[n < LEAST_FRAMES] = np.nan
    return Lines(piece, n.astype(int), velocity, position, noise)


class _Fits(NamedTuple):
    """Lines through frames i to j, [N, i, j]: frames seen, slope per frame, mean time, mean place, residuals."""

    n: np.ndarray
    slope: np.ndarray
    middle: np.ndarray
    place: np.ndarray
    rest: np.ndarray


def _all_lines(x: np.ndarray, seen: np.ndarray) -> _Fits:
    t = np.arange(x.shape[1], dtype=float)

    def sums(values: np.ndarray) -> np.ndarray:
        """Of `values` [N, T, ...] over frames i to j."""
        upto = np.cumsum(values, axis=1)
        return upto[:, None] - (upto - values)[:, :, None]

    weight = seen.astype(float)
    n = sums(weight)
    least_one = np.maximum(n, 1)
    middle = sums(weight * t) / least_one
    place = sums(x * weight[..., None]) / least_one[..., None]
    spread = sums(weight * t**2) - n * middle**2
    together = sums(x * (weight * t)[..., None]) - (n * middle)[..., None] * place
    slope = np.where(spread[..., None] > 1e-9, together / np.maximum(spread, 1e-9)[..., None], 0.0)
    rest = sums(np.square(x) * weight[..., None]) - n[..., None] * place**2 - slope * together
    return _Fits(n, slope, middle, place, np.maximum(rest.sum(axis=-1), 0.0))


def _noise(positions: np.ndarray, least: float) -> np.ndarray:
    """Standard deviation of places about smooth motion, from second differences, most of which hold no contact."""
    if positions.shape[1] < 4 or not len(positions):
        return np.full(len(positions), least)
    bends = np.abs(np.diff(positions, n=2, axis=1)).reshape(len(positions), -1)
    known = np.isfinite(bends).any(axis=1)
    middle = np.zeros(len(positions))
    middle[known] = np.nanquantile(bends[known], 0.4, axis=1)
    # The 0.4 quantile of |second difference| of white noise is 0.52 sqrt(6) standard deviations.
    return np.clip(middle / (0.52 * 6**0.5), least, 8 * least)
