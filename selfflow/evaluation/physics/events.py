"""Events: changes of velocity of tracked bodies, with the wall or the body in contact."""

from typing import NamedTuple

import numpy as np

from selfflow.data.collisions import Collisions
from selfflow.evaluation.physics.motion import Lines
from selfflow.evaluation.physics.track import Tracks

WALL, NOTHING = -1, -2
_WALL_SLACK, _BODY_SLACK = 3.0, 2.0  # units
# Changes and jumps below these are within the accuracy of a line.
_MIN_CHANGE = 5.0  # units per second
_MIN_JUMP = 1.0  # units


class Event(NamedTuple):
    """A change between two lines of a body, each of at least `MIN_FRAMES` frames; velocities in units per second."""

    body: int
    first: int
    """Last frame of the line before."""
    last: int
    """First frame of the line after; above first + 1 if frames in between are on neither line."""
    time: float
    """Time at which the two lines are nearest to each other, in frames."""
    before: np.ndarray
    """Velocity before, [2]."""
    after: np.ndarray
    """Velocity after, [2]."""
    jump: float
    """Distance of the two lines at that time, units."""
    touched: int
    """Index of the other body, WALL, or NOTHING."""
    speed: float
    """Speed before the change along the normal of the contact, units per second; NaN for NOTHING."""


def find_events(tracks: Tracks, lines: Lines, settings: Collisions) -> list[Event]:
    """Finds the changes of velocity of all bodies of a clip, ordered by body and time.

    Args:
      tracks: tracks of a clip, T frames and K bodies.
      lines: lines of the same bodies, N = K.
      settings: settings of the data set.
    """
    events = []
    for body in range(len(lines.piece)):
        # Frames on lines that are long enough to have a velocity.
        frames = np.flatnonzero(np.isfinite(lines.velocity[body, :, 0]))
        ends = np.flatnonzero(np.diff(lines.piece[body, frames]))
        for first, last in zip(frames[ends], frames[ends + 1]):
            event = _event(body, int(first), int(last), tracks, lines, settings)
            if np.linalg.norm(event.after - event.before) >= _MIN_CHANGE or event.jump >= _MIN_JUMP:
                events.append(event)
    return events


def _event(body: int, first: int, last: int, tracks: Tracks, lines: Lines, settings: Collisions) -> Event:
    """Returns the event of a body between the last frame of one line and the first frame of the next."""
    before, after = lines.velocity[body, first], lines.velocity[body, last]
    change, step = after - before, 1 / settings.frames_per_second
    # Difference of the two lines at the frame `first`, and the delay after which they are nearest.
    gap = lines.position[body, last] - after * (last - first) * step - lines.position[body, first]
    # The distance |gap + change delay| is least at -gap.change / |change|^2.
    delay = np.clip(-(gap @ change) / max(change @ change, 1e-9), 0, (last - first) * step)
    jump = float(np.linalg.norm(gap + change * delay))
    corner = lines.position[body, first] + before * delay
    positions = np.concatenate([tracks.positions[first : last + 1, body], [corner]])
    touched, speed = _touched(body, first, last, delay / step, positions, tracks, lines, settings)
    return Event(body, first, last, first + delay / step, before, after, jump, touched, speed)


def _touched(
    body: int,
    first: int,
    last: int,
    delay: float,
    positions: np.ndarray,
    tracks: Tracks,
    lines: Lines,
    settings: Collisions,
) -> tuple[int, float]:
    """Finds the nearest wall or body in contact: WALL, its index or NOTHING, and the speed along the normal.

    Args:
      body, first, last: the event's body, and the frames that bound it.
      delay: frames from `first` to the event.
      positions: positions of the body during the event, units, [M, 2]; the last is the corner of its two lines.
      tracks, lines, settings: tracks, lines and settings of the clip.
    """
    before, change = lines.velocity[body, first], lines.velocity[body, last] - lines.velocity[body, first]
    box = settings.box
    left, right, up, down = tracks.reach[body]
    x, y = positions.T
    gaps = np.stack([x - left, box - x - right, y - up, box - y - down])
    # A contact turns the velocity away from the wall.
    away = np.array([change[0], -change[0], change[1], -change[1]])
    gap = np.where(away > 0, np.nanmin(gaps, axis=1), np.inf)
    best, touched, speed = _WALL_SLACK, NOTHING, np.nan
    if gap.min() < best:
        wall = int(gap.argmin())
        best, touched, speed = gap[wall], WALL, abs(before[wall // 2])  # walls 0, 1 are along x, 2, 3 along y
    for other in range(len(lines.piece)):
        if other == body:
            continue
        velocity = np.nan_to_num(lines.velocity[other, first])
        # Position of the other body at the event, from its line before and its line after, as lines may end a frame
        # off.
        since = np.array([delay, delay - (last - first)])[:, None] / settings.frames_per_second
        extrapolated = lines.position[other, [first, last]] + lines.velocity[other, [first, last]] * since
        of_other = np.concatenate([tracks.positions[first : last + 1, other], extrapolated])
        between = of_other - np.concatenate([positions, positions[-1:]])
        distance = np.linalg.norm(between, axis=1)
        distance = np.where(np.isfinite(distance), distance, np.inf)
        nearest = int(distance.argmin())
        gap = distance[nearest] - tracks.radii[body] - tracks.radii[other]
        if gap < min(best, _BODY_SLACK) and distance[nearest] > 0:
            normal = between[nearest] / distance[nearest]
            best, touched, speed = gap, other, abs((before - velocity) @ normal)
    return touched, float(speed)
