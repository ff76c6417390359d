"""What physics forbids and demands of tracked bodies: each check scores one clip, higher is more plausible.

A score is nan where the check has nothing to judge. `PASSES` says from where on a clip passes.
"""

import numpy as np

from selfflow.data.collisions import Collisions
from selfflow.evaluation.physics.events import NOTHING, Event
from selfflow.evaluation.physics.motion import Lines
from selfflow.evaluation.physics.track import Tracks

PASSES = {
    "bodies": 0.0,  # share of frames that show another number of bodies
    "size": -0.3,  # largest change of a body's area, natural logarithm
    "apart": -0.3,  # share of the smaller body's area that is hidden
    "unbroken": -2.5,  # units that a body jumps
    "causes": -12.0,  # units per second that a velocity changes by with no cause
    "energy": -1.0,  # rise of the energy, in tolerances
    "time": 0.0,  # share of the energy that is lost over a clip
}
"""The least score that passes, by check."""

_NEAR = 3.0


def bodies(tracks: Tracks) -> float:
    """Every body is seen in every frame: minus the share of frames in which one is missing or one more is there."""
    if not len(tracks.count):
        return np.nan
    number = tracks.positions.shape[1]
    unseen = (tracks.count != number) | np.isnan(tracks.areas).any(axis=1)
    return -float(unseen.mean()) if number else -1.0


def size(tracks: Tracks, box: float) -> float:
    """Bodies keep their area: minus the largest change of its logarithm, of frames in which nothing is near."""
    free = np.where(_near(tracks, box), np.nan, tracks.areas)
    change = np.abs(np.log(free / tracks.masses))
    # Two frames in three, so that one bad frame does not count.
    change = np.sort(np.stack([change[:-2], change[1:-1], change[2:]]), axis=0)[1]
    return -float(np.nanmax(change)) if np.isfinite(change).any() else np.nan


def apart(tracks: Tracks, box: float) -> float:
    """Bodies that meet hide nothing of each other, and walls nothing of them: minus the largest hidden share."""
    typical = tracks.masses
    missing = 1 - tracks.areas / typical
    hidden = [missing[:, k][at] for k, at in enumerate(_at_wall(tracks, box).T)]
    for a, b, close in _pairs(tracks):
        both = (missing[:, a] * typical[a] + missing[:, b] * typical[b]) / min(typical[a], typical[b])
        hidden.append(both[close])
    hidden = np.concatenate(hidden) if hidden else np.zeros(0)
    return -max(float(np.nanmax(hidden)), 0.0) if np.isfinite(hidden).any() else np.nan


def unbroken(tracks: Tracks, lines: Lines, events: list[Event], settings: Collisions) -> float:
    """Paths have no gaps: minus the largest jump between two lines that should meet, or of a step beyond any speed."""
    speeds = np.linalg.norm(lines.velocity, axis=-1)
    if not np.isfinite(speeds).any():
        return np.nan
    seconds = 1 / settings.frames_per_second
    steps = np.linalg.norm(np.diff(tracks.positions, axis=0), axis=-1)
    # A heavy body gives a light one up to twice its own speed, which may last for less than a line.
    most = 1.5 * np.nanmax(speeds) * seconds
    jumps = [0.0, np.nanmax(steps, initial=0.0) - max(settings.speed[1] * seconds, most)]
    for event in events:
        if event.last > event.first + 1:
            jumps.append(np.nanmax(steps[event.first : event.last, event.body], initial=0.0) - most)
        else:
            # Two contacts between two frames hide a way of which neither line knows.
            fastest = max(np.linalg.norm(event.before), np.linalg.norm(event.after))
            jumps.append(event.jump - (0.5 * fastest * seconds if event.touched != NOTHING else 0.0))
    return -float(max(jumps))


def causes(events: list[Event], lines: Lines, settings: Collisions) -> float:
    """Velocities change at contacts, and once by a push: minus the largest change that has no such cause, units/s."""
    if not np.isfinite(lines.velocity).any():
        return np.nan
    changes = sorted(float(np.linalg.norm(e.after - e.before)) for e in events if e.touched == NOTHING)
    pushes = 1 if settings.push_probability > 0 else 0
    left = changes[: len(changes) - pushes]
    return -max(left, default=0.0)


def _pairs(tracks: Tracks):
    """(a, b, in which frames they are near each other) of all pairs of bodies."""
    for a in range(len(tracks.radii)):
        for b in range(a):
            far = np.linalg.norm(tracks.positions[:, a] - tracks.positions[:, b], axis=1)
            yield a, b, far < tracks.radii[a] + tracks.radii[b] + _NEAR


def _near(tracks: Tracks, box: float) -> np.ndarray:
    """Whether a body is near a wall or another body, [T, K]."""
    near = _at_wall(tracks, box)
    for a, b, close in _pairs(tracks):
        near[:, a] |= close
        near[:, b] |= close
    return near


def _at_wall(tracks: Tracks, box: float) -> np.ndarray:
    """Whether a body is near a wall, [T, K]."""
    x, y = tracks.positions[..., 0], tracks.positions[..., 1]
    left, right, up, down = tracks.reach.T
    gap = np.minimum(np.minimum(x - left, box - x - right), np.minimum(y - up, box - y - down))
    return gap < _NEAR
