"""Physics checks of tracked bodies. Each check scores a clip; a higher score is more plausible.

A score is NaN where the check does not apply.
"""

from collections.abc import Iterator

import numpy as np

from selfflow.data.collisions import Collisions
from selfflow.evaluation.physics.events import NOTHING, Event
from selfflow.evaluation.physics.motion import Lines
from selfflow.evaluation.physics.track import Tracks

PASSES = {
    "bodies": 0.0,  # share of frames that show another number of bodies
    "size": -0.3,  # largest change of a body's area, natural logarithm
    "apart": -0.3,  # share of the smaller body's area that is hidden
    "unbroken": -2.5,  # jump of a body, units
    "causes": -12.0,  # change of a velocity without a cause, units per second
    "energy": -1.0,  # rise of the energy, in tolerances
    "time": 0.0,  # share of the energy that is lost over a clip
}
"""The lowest score that passes, by check."""

_NEAR = 3.0  # units


def bodies(tracks: Tracks) -> float:
    """Every body is visible in every frame: minus the share of frames with a missing or an additional body."""
    if not len(tracks.count):
        return np.nan
    number = tracks.positions.shape[1]
    wrong = (tracks.count != number) | np.isnan(tracks.areas).any(axis=1)
    return -float(wrong.mean()) if number else -1.0


def size(tracks: Tracks, box: float) -> float:
    """Bodies keep their area: minus the largest change of its logarithm, in frames away from walls and other bodies."""
    # Near walls and other bodies part of an area may be hidden.
    free = np.where(_near_anything(tracks, box), np.nan, tracks.areas)
    change = np.abs(np.log(free / tracks.masses))
    # The median of three successive frames, so that one bad frame does not count.
    change = np.sort(np.stack([change[:-2], change[1:-1], change[2:]]), axis=0)[1]
    return -float(np.nanmax(change)) if np.isfinite(change).any() else np.nan


def apart(tracks: Tracks, box: float) -> float:
    """Bodies in contact do not overlap, and do not enter walls: minus the largest hidden share of an area."""
    typical = tracks.masses
    missing = 1 - tracks.areas / typical
    near_wall = _near_wall(tracks, box)
    hidden = [missing[near_wall]]
    for a, b, near in _pairs(tracks):
        both = (missing[:, a] * typical[a] + missing[:, b] * typical[b]) / min(typical[a], typical[b])
        hidden.append(both[near])
    shares = np.concatenate(hidden)
    return -max(float(np.nanmax(shares)), 0.0) if np.isfinite(shares).any() else np.nan


def unbroken(tracks: Tracks, lines: Lines, events: list[Event], settings: Collisions) -> float:
    """Paths have no gaps: minus the largest jump between two lines that should meet, or excess of a step."""
    speeds = np.linalg.norm(lines.velocity, axis=-1)
    if not np.isfinite(speeds).any():
        return np.nan
    seconds = 1 / settings.frames_per_second
    steps = np.linalg.norm(np.diff(tracks.positions, axis=0), axis=-1)
    # A heavy body can accelerate a light one to twice its own speed, for a time that may be shorter than a line.
    most = 1.5 * np.nanmax(speeds) * seconds
    jumps = [0.0, np.nanmax(steps, initial=0.0) - max(settings.speed[1] * seconds, most)]
    for event in events:
        if event.last > event.first + 1:
            jumps.append(np.nanmax(steps[event.first : event.last, event.body], initial=0.0) - most)
        else:
            # After two contacts between two frames, the path between them lies on neither line.
            fastest = max(np.linalg.norm(event.before), np.linalg.norm(event.after))
            jumps.append(event.jump - (0.5 * fastest * seconds if event.touched != NOTHING else 0.0))
    return -float(max(jumps))


def causes(events: list[Event], lines: Lines, settings: Collisions) -> float:
    """Velocities change at contacts, and once by a push: minus the largest other change, units per second."""
    if not np.isfinite(lines.velocity).any():
        return np.nan
    changes = sorted(float(np.linalg.norm(e.after - e.before)) for e in events if e.touched == NOTHING)
    pushes = 1 if settings.push_probability > 0 else 0
    # A clip has at most one push, which may explain the largest change.
    unexplained = changes[: len(changes) - pushes]
    return -max(unexplained, default=0.0)


def _pairs(tracks: Tracks) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields (a, b, frames in which they are near each other, bool [T]) for all pairs of bodies."""
    for a in range(len(tracks.radii)):
        for b in range(a):
            distance = np.linalg.norm(tracks.positions[:, a] - tracks.positions[:, b], axis=1)
            yield a, b, distance < tracks.radii[a] + tracks.radii[b] + _NEAR


def _near_anything(tracks: Tracks, box: float) -> np.ndarray:
    """Whether a body is near a wall or another body, bool [T, K]."""
    near = _near_wall(tracks, box)
    for a, b, near_each_other in _pairs(tracks):
        near[:, a] |= near_each_other
        near[:, b] |= near_each_other
    return near


def _near_wall(tracks: Tracks, box: float) -> np.ndarray:
    """Whether a body is near a wall, bool [T, K]."""
    x, y = tracks.positions[..., 0], tracks.positions[..., 1]
    left, right, up, down = tracks.reach.T
    gap = np.minimum(np.minimum(x - left, box - x - right), np.minimum(y - up, box - y - down))
    return gap < _NEAR
