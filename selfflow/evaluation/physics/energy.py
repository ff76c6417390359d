"""Kinetic energy of tracked bodies. Only a push raises it, and its loss at contacts gives the direction of time."""

import numpy as np

from selfflow.data.collisions import Collisions
from selfflow.evaluation.physics.events import NOTHING, Event
from selfflow.evaluation.physics.motion import Lines
from selfflow.evaluation.physics.track import Tracks

_RELATIVE_ERROR = 0.03  # relative to the energy


def energies(tracks: Tracks, lines: Lines, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Kinetic energy of all bodies in each frame and its standard error, [T]; NaN where a body is on no line.

    The mass of a body is its area, as in the simulation: energies are in units^2 times (units per second)^2.
    """
    if not len(tracks.radii):
        return np.full((2, len(tracks.count)), np.nan)
    mass = tracks.masses[:, None]
    speed = np.linalg.norm(lines.velocity, axis=-1)
    # The slope of n positions has variance noise^2 / (n (n^2 - 1) / 12).
    n = np.maximum(lines.length, 2)
    error = lines.noise[:, None] / seconds / np.sqrt(n * (n**2 - 1) / 12)
    total = np.sum(mass * speed**2, axis=0) / 2
    # Where a line of one body starts and a line of another ends, both changes may belong to one contact, a frame apart.
    ends = np.pad(np.diff(lines.piece, axis=1) > 0, ((0, 0), (0, 1)))
    starts = np.roll(ends, 1, axis=1)
    total[starts.any(axis=0) & ends.any(axis=0) & ~(starts & ends).any(axis=0)] = np.nan
    return total, np.sqrt(np.sum(np.square(mass * speed * error), axis=0))


def energy(tracks: Tracks, lines: Lines, events: list[Event], settings: Collisions, action: np.ndarray | None) -> float:
    """Minus the largest rise of the energy, in tolerances of three standard errors plus 3 % of the energy.

    If the record's `action` is given, the work of the push is subtracted: an impulse J on a body of mass m and velocity
    v does the work J v + J^2 / 2m, known to 3 %. Otherwise the push is inferred: it is the event without contact that
    changes momentum most or, if every event has a contact, the event whose removal leaves the smallest rise of the
    energy. Energies before and after the inferred push are not compared. NaN if fewer than two energies can be
    compared.

    Args:
      tracks: tracks of a clip.
      lines: lines of its bodies.
      events: events of its bodies.
      settings: settings of the data set.
      action: [T, 4] as in a record, or None if the push is unknown.
    """
    seconds = 1 / settings.frames_per_second
    total, error = energies(tracks, lines, seconds)
    if action is not None:
        work = _work(tracks, lines, events, action, seconds)
        return _largest_rise(total - work, error + _RELATIVE_ERROR * np.abs(work) / 3, [])
    if settings.push_probability == 0:
        return _largest_rise(total, error, [])
    free = [event for event in events if event.touched == NOTHING]
    if free:
        return _largest_rise(total, error, [max(free, key=lambda event: _impulse(event, tracks))])
    scores = [_largest_rise(total, error, [])]
    for event in events:
        if _may_be_pushed(event, tracks, settings):
            scores.append(_largest_rise(total, error, [event]))
    return max(scores)


def direction(
    tracks: Tracks, lines: Lines, events: list[Event], settings: Collisions, action: np.ndarray | None
) -> float:
    """Minus the slope of the energy over the clip, relative to its mean; above 0 if time runs forwards.

    NaN for a clip with a push (without `action`: with an event that touches nothing, or with an energy that both rises
    and falls), and if the energy does not change beyond its tolerance.
    """
    pushed = np.any(action[:, :2]) if action is not None else any(e.touched == NOTHING for e in events)
    total, error = energies(tracks, lines, 1 / settings.frames_per_second)
    # A fall of the energy is a rise in reversed time.
    rises, falls = _largest_rise(total, error, []) < -1, _largest_rise(total[::-1], error[::-1], []) < -1
    if pushed or not (rises or falls) or (action is None and rises and falls):
        return np.nan
    known = np.flatnonzero(np.isfinite(total))
    slope = np.polyfit(known / (len(total) - 1), total[known], 1)[0]
    return -float(slope / total[known].mean())


def _impulse(event: Event, tracks: Tracks) -> float:
    """Change of momentum, units^2 times units per second."""
    return float(np.linalg.norm(event.after - event.before) * tracks.masses[event.body])


def _may_be_pushed(event: Event, tracks: Tracks, settings: Collisions) -> bool:
    """Whether the strongest push explains the energy of a body after an event."""
    mass, before, after = tracks.masses[event.body], np.linalg.norm(event.before), np.linalg.norm(event.after)
    return after <= 1.1 * (before + settings.push_force[1] * settings.push_seconds / mass)


def _largest_rise(total: np.ndarray, error: np.ndarray, pushes: list[Event]) -> float:
    """Minus the largest rise between two frames on the same side of each push, in tolerances; see `energy`."""
    known = np.flatnonzero(np.isfinite(total))
    # Compare all pairs of frames, since a rise may be spread over several.
    early, late = np.triu_indices(len(known), 1)
    early, late = known[early], known[late]
    for push in pushes:
        same_side = (late <= push.first) | (early >= push.last)
        early, late = early[same_side], late[same_side]
    if not len(early):
        return np.nan if len(known) < 2 else 0.0
    tolerance = 3 * np.hypot(error[early], error[late]) + _RELATIVE_ERROR * np.abs(total[early]) + 1e-9
    return -max(0.0, float(np.max((total[late] - total[early]) / tolerance)))


def _work(tracks: Tracks, lines: Lines, events: list[Event], action: np.ndarray, seconds: float) -> np.ndarray:
    """Work of the push before each frame, [T]; an upper bound if a contact happens during the push."""
    work = np.zeros(len(tracks.count))
    pushed = np.flatnonzero(np.any(action[: len(work), :2] != 0, axis=1))
    if not len(pushed) or not len(tracks.radii):
        return work

    # The pushed body is the one nearest to the position of the action.
    distance = np.linalg.norm(tracks.positions[pushed[0]] - action[pushed[0], 2:], axis=1)
    body = int(np.argmin(np.where(np.isfinite(distance), distance, np.inf)))
    impulse, mass = action[pushed, :2].sum(axis=0) * seconds, tracks.masses[body]
    at_rest = impulse @ impulse / (2 * mass)

    # Events of this body during the push. A line may end a frame early or late.
    during = [e for e in events if e.body == body and e.first <= pushed[-1] + 1 and e.last >= pushed[0]]
    if not during:
        return work
    first, last = during[0], during[-1]
    if len(during) == 1 and first.touched == NOTHING:
        work[last.last :] = impulse @ first.before + at_rest
    else:
        # The velocity at the push is unknown: its largest possible value bounds the work.
        steps = np.linalg.norm(np.diff(tracks.positions[first.first : last.last + 1, body], axis=0), axis=-1)
        speeds = [np.linalg.norm(first.before), np.linalg.norm(last.after), np.nanmax(steps, initial=0.0) / seconds]
        work[last.last :] = np.linalg.norm(impulse) * max(speeds) + at_rest
    return work
