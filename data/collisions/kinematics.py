"""Kinematic cues of the material, computed from the true motion: an upper bound for probes of video features."""

from collections.abc import Mapping
from typing import Any, NamedTuple

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
"""Names of the `features`, in order."""

_MISSING = -1.0
_LEAST_SPEED = 2.0


class WallContact(NamedTuple):
    """Cues of a contact with a wall; ordered by speed first."""

    speed: float
    restitution: float
    friction: float


class BodyContact(NamedTuple):
    """Cues of a contact of two bodies; ordered by speed first."""

    speed: float
    restitution: float


def features(record: Mapping[str, Any], frames_per_second: float = 12.5) -> np.ndarray:
    """Returns kinematic cues of the material of a clip, float32 [len(FEATURES)], with -1 for missing cues.

    The cues are computed from velocities and from the times and bodies of contacts, but not from audio, impulses or
    materials. A contact is clean if its bodies have no other contact in the window between two frames. At a clean wall
    contact the normal component of the velocity changes its sign: the ratio of its magnitudes is the restitution, and
    the change of the tangential component over the change of the normal one is the friction (or less than the friction,
    if the body stopped sliding). The normal of a contact of two bodies is the direction in which their relative
    velocity changes, and the restitution of a body is the square root of the ratio.
    """
    velocities = np.asarray(record["velocities"], np.float64)
    count = int(record["count"])
    wall_contacts, body_contacts, kept_speeds = _contacts(record, velocities, frames_per_second)
    # The hardest contacts come first, because their cues are the most accurate.
    wall_contacts.sort(reverse=True)
    body_contacts.sort(reverse=True)
    wall_restitution = np.array([contact.restitution for contact in wall_contacts])
    wall_friction = np.array([contact.friction for contact in wall_contacts])
    wall_speed = np.array([contact.speed for contact in wall_contacts])
    body_restitution = np.array([contact.restitution for contact in body_contacts])
    body_speed = np.array([contact.speed for contact in body_contacts])
    start, end = (np.linalg.norm(velocities[i, :count]) for i in (0, -1))
    return np.array(
        [
            _nth(wall_restitution, 0),
            _nth(wall_restitution, 1),
            _median(wall_restitution),
            _nth(wall_friction, 0),
            _nth(wall_friction, 1),
            wall_friction.max(initial=_MISSING),
            _nth(wall_speed, 0),
            _nth(wall_speed, 1),
            len(wall_contacts),
            _nth(body_restitution, 0),
            _median(body_restitution),
            _nth(body_speed, 0),
            len(body_contacts),
            min(kept_speeds, default=_MISSING),
            _median(np.array(kept_speeds)),
            end / max(start, 1e-9),
        ],
        np.float32,
    )


def _contacts(
    record: Mapping[str, Any], velocities: np.ndarray, frames_per_second: float
) -> tuple[list[WallContact], list[BodyContact], list[float]]:
    """Returns clean contacts with walls, clean contacts of two bodies, and the speed after over the speed before each
    window with several contacts."""
    times = np.asarray(record["contacts"]["time"], np.float64)
    pairs = np.asarray(record["contacts"]["bodies"])
    # A frame at the time of a contact shows the state after it, so the contact belongs to the previous window.
    windows = np.ceil(np.round(times * frames_per_second, 4)).astype(int) - 1
    in_clip = (windows >= 0) & (windows < len(velocities) - 1)
    pairs, windows = pairs[in_clip], windows[in_clip]

    contacts_in_window = np.zeros((len(velocities), int(record["count"])), int)
    for window, pair in zip(windows, pairs, strict=True):
        for body in pair[pair >= 0]:
            contacts_in_window[window, body] += 1

    wall_contacts: list[WallContact] = []
    body_contacts: list[BodyContact] = []
    kept_speeds: list[float] = []
    for window, (first, second) in zip(windows, pairs, strict=True):
        bodies = [first] if second < 0 else [first, second]
        before, after = velocities[window], velocities[window + 1]
        if any(contacts_in_window[window, body] > 1 for body in bodies):
            # The velocities between the contacts are unknown; only the total loss of speed is known.
            for body in bodies:
                speed = np.linalg.norm(before[body])
                if speed > _LEAST_SPEED:
                    kept_speeds.append(np.linalg.norm(after[body]) / speed)
        elif second < 0:
            contact = _wall_contact(before[first], after[first])
            wall_contacts += [contact] if contact else []
        else:
            contact = _body_contact(before[first] - before[second], after[first] - after[second])
            body_contacts += [contact] if contact else []
    return wall_contacts, body_contacts, kept_speeds


def _wall_contact(before: np.ndarray, after: np.ndarray) -> WallContact | None:
    """Returns the cues from velocities [2] before and after; None unless exactly one component changes its sign."""
    reversed_sign = before * after < 0
    if reversed_sign.sum() != 1:
        return None
    normal = int(np.argmax(reversed_sign))
    speed = abs(before[normal])
    restitution = abs(after[normal]) / speed
    change = abs(after[normal] - before[normal])
    if speed < _LEAST_SPEED or restitution > 1.0:
        return None
    return WallContact(speed, restitution, abs(after[1 - normal] - before[1 - normal]) / change)


def _body_contact(before: np.ndarray, after: np.ndarray) -> BodyContact | None:
    """Returns the cues from relative velocities [2] before and after; None if the bodies hardly approach each other."""
    change = after - before
    length = np.linalg.norm(change)
    if length < _LEAST_SPEED:
        return None
    approach, separation = -before @ change / length, after @ change / length
    if approach < _LEAST_SPEED or not 0.0 <= separation <= approach:
        return None
    return BodyContact(float(approach), float(np.sqrt(separation / approach)))


def _nth(values: np.ndarray, n: int) -> float:
    return float(values[n]) if len(values) > n else _MISSING


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else _MISSING
