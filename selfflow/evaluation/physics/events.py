"""Where tracked bodies change their velocity, and what they touch there."""

from typing import NamedTuple

import numpy as np

from selfflow.data.collisions import Collisions
from selfflow.evaluation.physics.motion import Lines
from selfflow.evaluation.physics.track import Tracks

WALL, NOTHING = -1, -2
_WALL_SLACK, _BODY_SLACK = 3.0, 2.0
# Units per second; less is how well a line is known.
_LEAST_CHANGE = 5.0
# Units; likewise.
_LEAST_JUMP = 1.0


class Event(NamedTuple):
    """A change between two lines of a body, each of at least LEAST_FRAMES frames; velocities in units per second."""

    body: int
    first: int
    """Last frame of the line before."""
    last: int
    """First frame of the line after; more than first + 1 where frames between lie on neither."""
    time: float
    """When the two lines come nearest to each other, in frames."""
    before: np.ndarray
    """Velocity before, [2]."""
    after: np.ndarray
    jump: float
    """Distance of the two lines at that time, units."""
    touched: int
    """The other body, WALL, or NOTHING."""
    speed: float
    """Speed against what is touched before the change, units per second; nan where nothing is."""


def find_events(tracks: Tracks, lines: Lines, settings: Collisions) -> list[Event]:
    """The changes of velocity of all bodies of a clip, by body and time.

    Args:
      tracks: of a clip, T frames and K bodies.
      lines: of the same bodies, N = K.
      settings: of the data set.
    """
    found = []
    for body in range(len(lines.piece)):
        # One frame of every piece that is long enough to tell a velocity.
        long = np.flatnonzero(np.isfinite(lines.velocity[body, :, 0]))
        pieces = lines.piece[body, long]
        cuts = np.flatnonzero(np.diff(pieces))
        for first, last in zip(long[cuts], long[cuts + 1]):
            event = _event(body, int(first), int(last), tracks, lines, settings)
            if np.linalg.norm(event.after - event.before) >= _LEAST_CHANGE or event.jump >= _LEAST_JUMP:
                found.append(event)
    return found


def _event(body: int, first: int, last: int, tracks: Tracks, lines: Lines, settings: Collisions) -> Event:
    before, after = lines.velocity[body, first], lines.velocity[body, last]
    change, step = after - before, 1 / settings.frames_per_second
    # Both lines at the frame `first`, and how much later they meet.
    gap = lines.position[body, last] - after * (last - first) * step - lines.position[body, first]
    later = np.clip(-(gap @ change) / max(change @ change, 1e-9), 0, (last - first) * step)
    jump = float(np.linalg.norm(gap + change * later))
    met = lines.position[body, first] + before * later
    places = np.concatenate([tracks.positions[first : last + 1, body], [met]])
    touched, speed = _touched(body, first, last, later / step, places, tracks, lines, settings)
    return Event(body, first, last, first + later / step, before, after, jump, touched, speed)


def _touched(body, first, last, later, places, tracks: Tracks, lines: Lines, settings: Collisions) -> tuple[int, float]:
    """What a body at any of `places` [M, 2] is nearest to, if it touches it, and its speed against that."""
    before, change = lines.velocity[body, first], lines.velocity[body, last] - lines.velocity[body, first]
    box = settings.box
    left, right, up, down = tracks.reach[body]
    x, y = places.T
    gaps = np.stack([x - left, box - x - right, y - up, box - y - down])
    # Only a wall that the velocity was turned away from.
    away = np.array([change[0], -change[0], change[1], -change[1]])
    gap = np.where(away > 0, np.nanmin(gaps, axis=1), np.inf)
    best, touched, speed = _WALL_SLACK, NOTHING, np.nan
    if gap.min() < best:
        wall = int(gap.argmin())
        best, touched, speed = gap[wall], WALL, abs(before[wall // 2])
    for other in range(len(lines.piece)):
        if other == body:
            continue
        moving = np.nan_to_num(lines.velocity[other, first])
        # Where the other is then, by its line before and by its line after: its own change may be a frame off.
        since = np.array([later, later - (last - first)])[:, None] / settings.frames_per_second
        theirs = lines.position[other, [first, last]] + lines.velocity[other, [first, last]] * since
        theirs = np.concatenate([tracks.positions[first : last + 1, other], theirs])
        between = theirs - np.concatenate([places, places[-1:]])
        far = np.linalg.norm(between, axis=1)
        far = np.where(np.isfinite(far), far, np.inf)
        nearest = int(far.argmin())
        gap = far[nearest] - tracks.radii[body] - tracks.radii[other]
        if gap < min(best, _BODY_SLACK) and far[nearest] > 0:
            normal = between[nearest] / far[nearest]
            best, touched, speed = gap, other, abs((before - moving) @ normal)
    return touched, float(speed)
