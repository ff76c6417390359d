"""Energy of tracked bodies: it never rises but by a push, and so tells the direction of time."""

import numpy as np

from selfflow.data.collisions import Collisions
from selfflow.evaluation.physics.events import NOTHING, Event
from selfflow.evaluation.physics.motion import Lines
from selfflow.evaluation.physics.track import Tracks

_UNSURE = 0.03


def energies(tracks: Tracks, lines: Lines, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Kinetic energy of all bodies in each frame and its standard error, [T]; nan where a body is on no line.

    Mass is the area that a body covers, as in the world: units^2 times (units per second)^2.
    """
    if not len(tracks.radii):
        return np.full((2, len(tracks.count)), np.nan)
    mass = tracks.masses[:, None]
    speed = np.linalg.norm(lines.velocity, axis=-1)
    # A slope of n places with this noise has n (n^2 - 1) / 12 as the sum of squares of its times.
    n = np.maximum(lines.length, 2)
    error = lines.noise[:, None] / seconds / np.sqrt(n * (n**2 - 1) / 12)
    total = np.sum(mass * speed**2, axis=0) / 2
    # Where one body's line starts and another's ends, the two may be parts of one contact that one shows a frame late.
    ends = np.pad(np.diff(lines.piece, axis=1) > 0, ((0, 0), (0, 1)))
    starts = np.roll(ends, 1, axis=1)
    total[starts.any(axis=0) & ends.any(axis=0) & ~(starts & ends).any(axis=0)] = np.nan
    return total, np.sqrt(np.sum(np.square(mass * speed * error), axis=0))


def energy(tracks: Tracks, lines: Lines, events: list[Event], settings: Collisions, action: np.ndarray | None) -> float:
    """Minus the largest rise of the energy in tolerances: three standard errors and 3 % of what was there.

    With the record's `action` the work of the push is subtracted: on a body of mass m whose velocity the impulse J
    meets at v it is J v + J^2 / 2m, known to 3 %. Without it the push is inferred: it is the event that touches nothing
    and changes momentum most, or, where every event touches something, the one event without which the energy rises
    least; the energies on its two sides are not compared. nan where fewer than two energies can be.

    Args:
      tracks: of a clip.
      lines: of its bodies.
      events: of its bodies.
      settings: of the data set.
      action: [T, 4] as in a record, or None where the push is unknown.
    """
    seconds = 1 / settings.frames_per_second
    total, error = energies(tracks, lines, seconds)
    if action is not None:
        work = _work(tracks, lines, events, action, seconds)
        return _largest_rise(total - work, error + _UNSURE * np.abs(work) / 3, [])
    if settings.push_probability == 0:
        return _largest_rise(total, error, [])
    free = [event for event in events if event.touched == NOTHING]
    if free:
        return _largest_rise(total, error, [max(free, key=lambda e: _impulse(e, tracks))])
    scores = [_largest_rise(total, error, [e]) for e in events if _may_be_pushed(e, tracks, settings)]
    return max([_largest_rise(total, error, []), *scores])


def direction(
    tracks: Tracks, lines: Lines, events: list[Event], settings: Collisions, action: np.ndarray | None
) -> float:
    """Minus the slope of the energy over the clip, as a share of its mean; above 0 time runs forwards.

    nan for a clip with a push (without `action`: with an event that touches nothing, or with an energy that both rises
    and falls), and where the energy shows no change beyond its tolerance.
    """
    pushed = np.any(action[:, :2]) if action is not None else any(e.touched == NOTHING for e in events)
    total, error = energies(tracks, lines, 1 / settings.frames_per_second)
    rises, falls = _largest_rise(total, error, []) < -1, _largest_rise(total[::-1], error[::-1], []) < -1
    if pushed or not (rises or falls) or (action is None and rises and falls):
        return np.nan
    known = np.flatnonzero(np.isfinite(total))
    slope = np.polyfit(known / (len(total) - 1), total[known], 1)[0]
    return -float(slope / total[known].mean())


def _impulse(event: Event, tracks: Tracks) -> float:
    return float(np.linalg.norm(event.after - event.before) * tracks.masses[event.body])


def _may_be_pushed(event: Event, tracks: Tracks, settings: Collisions) -> bool:
    """Whether the hardest push could give a body the energy that it has after an event."""
    mass, before, after = tracks.masses[event.body], np.linalg.norm(event.before), np.linalg.norm(event.after)
    return after <= 1.1 * (before + settings.push_force[1] * settings.push_seconds / mass)


def _largest_rise(total: np.ndarray, error: np.ndarray, pushes: list[Event]) -> float:
    """Minus the largest rise between two frames on one side of a push, in tolerances."""
    known = np.flatnonzero(np.isfinite(total))
    early, late = np.triu_indices(len(known), 1)
    early, late = known[early], known[late]
    for push in pushes:
        same = (late <= push.first) | (early >= push.last)
        early, late = early[same], late[same]
    if not len(early):
        return np.nan if len(known) < 2 else 0.0
    tolerance = 3 * np.hypot(error[early], error[late]) + _UNSURE * np.abs(total[early]) + 1e-9
    return -max(0.0, float(np.max((total[late] - total[early]) / tolerance)))


def _work(tracks: Tracks, lines: Lines, events: list[Event], action: np.ndarray, seconds: float) -> np.ndarray:
    """Work of the push that was done before each frame, [T]; where a contact falls into it, the most it may be."""
    done = np.zeros(len(tracks.count))
    pushed = np.flatnonzero(np.any(action[: len(done), :2] != 0, axis=1))
    if not len(pushed) or not len(tracks.radii):
        return done
    far = np.linalg.norm(tracks.positions[pushed[0]] - action[pushed[0], 2:], axis=1)
    body = int(np.argmin(np.where(np.isfinite(far), far, np.inf)))
    impulse, mass = action[pushed, :2].sum(axis=0) * seconds, tracks.masses[body]
    own = impulse @ impulse / (2 * mass)
    # A line may end a frame early or late.
    during = [e for e in events if e.body == body and e.first <= pushed[-1] + 1 and e.last >= pushed[0]]
    if not during:
        return done
    first, last = during[0], during[-1]
    if len(during) == 1 and first.touched == NOTHING:
        done[last.last :] = impulse @ first.before + own
    else:
        steps = np.linalg.norm(np.diff(tracks.positions[first.first : last.last + 1, body], axis=0), axis=-1)
        speeds = [np.linalg.norm(first.before), np.linalg.norm(last.after), np.nanmax(steps, initial=0.0) / seconds]
        done[last.last :] = np.linalg.norm(impulse) * max(speeds) + own
    return done
