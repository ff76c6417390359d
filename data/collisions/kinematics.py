"""What the true motion tells of the material: the ceiling that a probe of features can be held against."""

from collections.abc import Mapping

import numpy as np

FEATURES = (
    "restitution of the hardest clean wall contact",
    "restitution of the second hardest clean wall contact",
    "median restitution of the clean wall contacts",
    "friction of the hardest clean wall contact",
    "friction of the second hardest clean wall contact",
    "largest friction of the clean wall contacts",
    "normal speed of the hardest clean wall contact",
    "normal speed of the second hardest clean wall contact",
    "clean wall contacts",
    "restitution of the hardest clean contact of two bodies",
    "median restitution of the clean contacts of two bodies",
    "relative speed of the hardest clean contact of two bodies",
    "clean contacts of two bodies",
    "least speed kept over a window with other contacts",
    "median speed kept over a window with other contacts",
    "speed at the end over speed at the start",
)
"""What `features` returns, in order."""

_MISSING = -1.0
_LEAST_SPEED = 2.0


def features(record: Mapping, frames_per_second: float = 12.5) -> np.ndarray:
    """Kinematic cues of the material of a clip, float32 [len(FEATURES)]; -1 where a cue is missing.

    Reads positions, velocities and the times and bodies of contacts; never a sound, an impulse or a material.
    A wall contact is clean if its body has no other in the window between two frames: the velocity component
    along the normal changes its sign, its ratio is the restitution, and the change of the other component over
    that of the first is the friction (or less, if the body stopped sliding). For two bodies the change of their
    relative velocity stands in for the normal and the root of the ratio for the restitution of either.
    """
    velocities = np.asarray(record["velocities"], np.float64)
    count = int(record["count"])
    times = np.asarray(record["contacts"]["time"], np.float64)
    pairs = np.asarray(record["contacts"]["bodies"])
    # A contact at the very time of a frame has already changed it, so it belongs to the window before.
    windows = np.ceil(np.round(times * frames_per_second, 4)).astype(int) - 1
    known = (windows >= 0) & (windows < len(velocities) - 1)
    pairs, windows = pairs[known], windows[known]

    touched = np.zeros((len(velocities), count), int)
    for window, pair in zip(windows, pairs, strict=True):
        for body in pair[pair >= 0]:
            touched[window, body] += 1

    walls, meetings, kept = [], [], []
    for window, (first, second) in zip(windows, pairs, strict=True):
        bodies = [first] if second < 0 else [first, second]
        before, after = velocities[window], velocities[window + 1]
        if any(touched[window, body] > 1 for body in bodies):
            for body in bodies:
                speed = np.linalg.norm(before[body])
                if speed > _LEAST_SPEED:
                    kept.append(np.linalg.norm(after[body]) / speed)
        elif second < 0:
            walls += _wall(before[first], after[first])
        else:
            meetings += _meeting(before[first] - before[second], after[first] - after[second])

    walls.sort(reverse=True)
    meetings.sort(reverse=True)
    speed, restitution, friction = (np.array([wall[i] for wall in walls]) for i in range(3))
    closing, returned = (np.array([meeting[i] for meeting in meetings]) for i in range(2))
    start, end = (np.linalg.norm(velocities[i, :count]) for i in (0, -1))
    return np.array(
        [
            _nth(restitution, 0),
            _nth(restitution, 1),
            _median(restitution),
            _nth(friction, 0),
            _nth(friction, 1),
            friction.max(initial=_MISSING),
            _nth(speed, 0),
            _nth(speed, 1),
            len(walls),
            _nth(returned, 0),
            _median(returned),
            _nth(closing, 0),
            len(meetings),
            min(kept, default=_MISSING),
            _median(np.array(kept)),
            end / max(start, 1e-9),
        ],
        np.float32,
    )


def _wall(before: np.ndarray, after: np.ndarray) -> list[tuple[float, float, float]]:
    """(normal speed, restitution, friction) of a wall contact; none if the velocities do not show one wall."""
    turned = before * after < 0
    if turned.sum() != 1:
        return []
    normal = int(np.argmax(turned))
    speed = abs(before[normal])
    restitution = abs(after[normal]) / speed
    change = abs(after[normal] - before[normal])
    if speed < _LEAST_SPEED or restitution > 1.0:
        return []
    return [(speed, restitution, abs(after[1 - normal] - before[1 - normal]) / change)]


def _meeting(before: np.ndarray, after: np.ndarray) -> list[tuple[float, float]]:
    """(closing speed, restitution of either body) of a contact of two; velocities are relative, [2]."""
    change = after - before
    length = np.linalg.norm(change)
    if length < _LEAST_SPEED:
        return []
    closing, parting = -before @ change / length, after @ change / length
    if closing < _LEAST_SPEED or not 0.0 <= parting <= closing:
        return []
    return [(float(closing), float(np.sqrt(parting / closing)))]


def _nth(values: np.ndarray, n: int) -> float:
    return float(values[n]) if len(values) > n else _MISSING


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else _MISSING
