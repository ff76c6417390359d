"""What is heard at contacts: attacks, held against the motion that should cause them."""

import numpy as np

from selfflow.evaluation.physics.events import NOTHING, Event
from selfflow.evaluation.physics.motion import Lines
from selfflow.evaluation.physics.track import Tracks

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
    # The window of two hops that rises most begins at the attack or up to a hop before it.
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
    met = _meets(lines, events)
    change = np.where((met[:, 1:] | met[:, :-1]).T, change, 0.0) * tracks.masses
    out[1:-1] = np.nansum(change, axis=1)
    return out


def contacts(lines: Lines, events: list[Event]) -> int:
    """Times between two frames in which the velocity of some body changes and no push is to blame."""
    return int(_meets(lines, events).any(axis=0).sum())


def _meets(lines: Lines, events: list[Event]) -> np.ndarray:
    """Whether a body's velocity changes between a frame and the next, but for pushes, [K, T - 1]."""
    changes = np.diff(lines.piece, axis=1) > 0
    for event in events:
        if event.touched == NOTHING:
            changes[event.body, event.first : event.last] = False
    return changes


def synchrony(shaken: np.ndarray, onset: np.ndarray, count: int) -> float:
    """Correlation over frames of changes of momentum and attacks, of their roots, so that no one contact decides.

    nan for a `count` of fewer than 3 contacts; 0 where there is motion and silence.
    """
    known = np.isfinite(shaken)
    if count < _LEAST_CONTACTS or known.sum() < 3:
        return np.nan
    a, b = np.sqrt(shaken[known]), np.sqrt(onset[known])
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 1e-12 else 0.0


def loudness(event: Event, sound: np.ndarray, sample_rate: int, seconds: float) -> float:
    """The largest attack between the frames of an event, 0 to 1 of full scale."""
    rise, time = attacks(sound, sample_rate)
    # An attack shows within 10 ms of its contact.
    during = (time >= event.first * seconds) & (time < event.last * seconds + 0.01)
    return float(rise[during].max(initial=0.0))


def isolated_attack(event: Event, events: list[Event]) -> bool:
    """Whether an event lies between two frames and no third body meets anything at nearly that time."""
    if event.last > event.first + 1 or event.touched == NOTHING:
        return False
    near = [e for e in events if e.first <= event.last + 1 and e.last >= event.first - 1]
    return {e.body for e in near} <= {event.body, event.touched} and sum(e.body == event.body for e in near) == 1
