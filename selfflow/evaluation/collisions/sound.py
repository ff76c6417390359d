"""What is heard at contacts: attacks, held against the motion that should cause them."""

import numpy as np

from selfflow.evaluation.collisions.events import NOTHING, Event
from selfflow.evaluation.collisions.motion import Lines
from selfflow.evaluation.collisions.track import Tracks

_HOP = 0.005
_MEMORY = 5
_LEAST_CONTACTS = 3


def attacks(sound: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Rises of the amplitude, 0 to 1 of full scale, and their times in seconds, each [n].

    The envelope is the RMS of 10 ms every 5 ms. It rises by what it exceeds the largest of the last 25 ms by, so that
    neither decay nor the beating of modes is a rise.
    """
    hop = max(1, round(_HOP * sample_rate))
    x = sound.astype(np.float64) / 32768
    count = len(x) // hop
    if count < 2:
        return np.zeros(0), np.zeros(0)
    power = np.square(x[: count * hop]).reshape(count, hop).mean(axis=1)
    envelope = np.sqrt((power[1:] + power[:-1]) / 2)
    past = np.stack([np.pad(envelope, (k, 0))[: len(envelope)] for k in range(1, _MEMORY + 1)]).max(axis=0)
    # Half of the energy of an attack is in a window that begins with it, at the middle of the two hops.
    return np.maximum(envelope - past, 0.0), (np.arange(len(envelope)) + 0.5) * hop / sample_rate


def onset_strength(sound: np.ndarray, sample_rate: int, frames: int, seconds: float) -> np.ndarray:
    """Attacks around each frame, [T]: weight 1 at the frame's time, down to 0 at its neighbours'.

    The second difference of places sees a contact between two frames with just these weights.
    """
    rise, time = attacks(sound, sample_rate)
    place = time / seconds
    low = np.floor(place).astype(int)
    out = np.zeros(frames + 2)
    for frame, weight in ((low, 1 - (place - low)), (low + 1, place - low)):
        np.add.at(out, np.clip(frame, 0, frames + 1), rise * weight)
    return out[:frames]


def shaken(tracks: Tracks, lines: Lines, events: list[Event], seconds: float) -> np.ndarray:
    """Change of momentum around each frame, units^2 times units per second, summed over bodies, [T]; nan at both ends.

    From second differences of places, but 0 within a line, where they are noise, and where a body is pushed.
    """
    out = np.full(len(tracks.count), np.nan)
    if len(out) < 3 or not len(tracks.radii):
        return out
    change = np.linalg.norm(np.diff(tracks.positions, n=2, axis=0), axis=-1) / seconds
    quiet = (lines.piece[:, 2:] == lines.piece[:, :-2]).T
    for event in events:
        if event.touched == NOTHING:
            quiet[max(event.first - 1, 0) : event.last, event.body] = True
    out[1:-1] = np.nansum(np.where(quiet, 0.0, change) * np.nan_to_num(tracks.masses), axis=1)
    return out


def synchrony(shaken: np.ndarray, onset: np.ndarray, contacts: int) -> float:
    """Correlation over frames of changes of momentum and attacks, of their roots, so that no one contact decides.

    nan for fewer than 3 contacts; 0 where there is motion and silence.
    """
    known = np.isfinite(shaken)
    if contacts < _LEAST_CONTACTS or known.sum() < 3:
        return np.nan
    a, b = np.sqrt(shaken[known]), np.sqrt(onset[known])
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 1e-12 else 0.0
