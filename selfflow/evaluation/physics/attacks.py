"""Attacks in the audio of a clip, compared with the contacts that should cause them."""

import numpy as np

from selfflow.evaluation.physics.events import NOTHING, Event
from selfflow.evaluation.physics.motion import Lines
from selfflow.evaluation.physics.track import Tracks

_HOP = 0.005  # s
_MEMORY = 5  # hops
_MIN_CONTACTS = 3  # fewer contacts yield correlations by chance


def attacks(audio: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Computes the rises of the amplitude and their times.

    The envelope is the RMS of 10 ms every 5 ms. A rise is the excess of the envelope over its maximum in the last 25
    ms, so that neither decay nor the beating of modes is counted.

    Args:
      audio: int16 [S].
      sample_rate: samples per second.

    Returns:
      Rises, 0 to 1 of full scale, and times in seconds, float64 [n] each.
    """
    hop = max(1, round(_HOP * sample_rate))
    x = audio.astype(np.float64) / 32768
    count = len(x) // hop
    if count < 2:
        return np.zeros(0), np.zeros(0)

    power = np.square(x[: count * hop]).reshape(count, hop).mean(axis=1)
    envelope = np.sqrt((power[1:] + power[:-1]) / 2)
    # past[i] is the maximum of the `_MEMORY` values before envelope[i].
    past = np.zeros_like(envelope)
    for lag in range(1, _MEMORY + 1):
        past = np.maximum(past, np.pad(envelope, (lag, 0))[: len(envelope)])
    # The window of two hops with the largest rise starts at the attack or up to one hop earlier.
    return np.maximum(envelope - past, 0.0), (np.arange(len(envelope)) + 0.5) * hop / sample_rate


def onset_strength(audio: np.ndarray, sample_rate: int, frames: int, seconds: float) -> np.ndarray:
    """Attacks around each frame, float64 [T]; the weight falls from 1 at a frame to 0 at its neighbours.

    The second difference of positions weights a contact between two frames in the same way.

    Args:
      audio: int16 [S].
      sample_rate: samples per second.
      frames: T.
      seconds: time between two frames.
    """
    rise, time = attacks(audio, sample_rate)
    position = time / seconds
    before = np.floor(position).astype(int)
    # Linear weights of the frames before and after. Attacks after the last frame are in two entries that are cut off.
    strength = np.zeros(frames + 2)
    for frame, weight in ((before, 1 - (position - before)), (before + 1, position - before)):
        np.add.at(strength, np.clip(frame, 0, frames + 1), rise * weight)
    return strength[:frames]


def momentum_change(tracks: Tracks, lines: Lines, events: list[Event], seconds: float) -> np.ndarray:
    """Change of momentum around each frame, summed over bodies, units^2 times units per second, float64 [T].

    Computed from second differences of positions. They are set to 0 within a line, where they are noise, and at pushes.
    NaN in the first and the last frame.
    """
    total = np.full(len(tracks.count), np.nan)
    if len(total) < 3 or not len(tracks.radii):
        return total
    change_TK = np.linalg.norm(np.diff(tracks.positions, n=2, axis=0), axis=-1) / seconds
    at_contact_KT = _contacts_by_body(lines, events)
    # A second difference spans the intervals before and after its frame.
    near_contact_TK = (at_contact_KT[:, 1:] | at_contact_KT[:, :-1]).T
    total[1:-1] = np.nansum(np.where(near_contact_TK, change_TK, 0.0) * tracks.masses, axis=1)
    return total


def count_contacts(lines: Lines, events: list[Event]) -> int:
    """Number of intervals between two frames in which the velocity of a body changes other than by a push."""
    return int(_contacts_by_body(lines, events).any(axis=0).sum())


def _contacts_by_body(lines: Lines, events: list[Event]) -> np.ndarray:
    """Whether the velocity of a body changes between a frame and the next, other than by a push, bool [K, T - 1]."""
    changes = np.diff(lines.piece, axis=1) > 0
    for event in events:
        if event.touched == NOTHING:
            changes[event.body, event.first : event.last] = False
    return changes


def synchrony(change: np.ndarray, onset: np.ndarray, contacts: int) -> float:
    """Correlation over frames of the square roots of momentum changes [T] and onset strength [T].

    The root reduces the weight of single loud contacts. NaN for fewer than 3 contacts; 0 for silent audio.
    """
    known = np.isfinite(change)
    if contacts < _MIN_CONTACTS or known.sum() < 3:
        return np.nan
    a, b = np.sqrt(change[known]), np.sqrt(onset[known])
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 1e-12 else 0.0


def loudness(event: Event, audio: np.ndarray, sample_rate: int, seconds: float) -> float:
    """The largest attack between the frames of an event, 0 to 1 of full scale."""
    rise, time = attacks(audio, sample_rate)
    # An attack follows its contact within 10 ms.
    during = (time >= event.first * seconds) & (time < event.last * seconds + 0.01)
    return float(rise[during].max(initial=0.0))


def is_isolated(event: Event, events: list[Event]) -> bool:
    """Whether an event lies between two successive frames, with no contact of a third body near that time."""
    if event.last > event.first + 1 or event.touched == NOTHING:
        return False
    near = [e for e in events if e.first <= event.last + 1 and e.last >= event.first - 1]
    bodies = [e.body for e in near]
    # Two bodies in contact produce two events, one for each body.
    return set(bodies) <= {event.body, event.touched} and bodies.count(event.body) == 1
