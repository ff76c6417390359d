"""Two judges of the material, one that only hears and one that only sees: do sound and motion tell the same?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from selfflow.data.collisions import Collisions
from selfflow.errors import UserError
from selfflow.evaluation.physics.events import WALL, Event

_BANDS = 32
_LOWEST = 80.0
_KEPT = 3
_MISSING = -1.0
_LEAST_SPEED = 8.0
CLEAN = slice(-3, -1)
"""The features of motion that count clean contacts."""


class MaterialClassifiers(NamedTuple):
    """Fitted classifiers of the material (scikit-learn), of `sound_features` and of `motion_features`."""

    sound: object
    motion: object


def sound_features(sound: np.ndarray, sample_rate: int) -> np.ndarray:
    """How the energy of int16 sound [S] is spread over pitch and how fast it fades, float64 [36].

    Log shares of bands from 80 Hz to half the sample rate, the log of their centre, and how much of the envelope is
    still there 20, 60 and 150 ms later. Silence gives zeros.
    """
    x = sound.astype(np.float64) / 32768
    size = min(1024, len(x))
    if size < 16 or not x.any():
        return np.zeros(_BANDS + 4)
    blocks = x[: len(x) // size * size].reshape(-1, size) * np.hanning(size)
    power = np.square(np.abs(np.fft.rfft(blocks, axis=1))).sum(axis=0)
    pitch = np.fft.rfftfreq(size, 1 / sample_rate)
    edges = np.geomspace(_LOWEST, sample_rate / 2, _BANDS + 1)
    band = np.digitize(pitch, edges) - 1
    inside = (band >= 0) & (band < _BANDS)
    shares = np.bincount(band[inside], power[inside], _BANDS)
    shares = shares / max(shares.sum(), 1e-12)
    centre = np.log(max(shares @ np.sqrt(edges[1:] * edges[:-1]), 1.0))
    hop = max(1, round(0.01 * sample_rate))
    envelope = np.sqrt(np.square(x[: len(x) // hop * hop]).reshape(-1, hop).mean(axis=1))
    envelope = np.pad(envelope, (0, 15))
    kept = [float(envelope[lag:] @ envelope[: len(envelope) - lag]) for lag in (0, 2, 6, 15)]
    return np.concatenate([np.log(shares + 1e-3), [centre], np.array(kept[1:]) / max(kept[0], 1e-12)])


def motion_features(events: list[Event]) -> np.ndarray:
    """What tracked contacts tell of the material, float64 [15]; -1 where a clip has none of a kind.

    Of walls: restitution and friction of the hardest three contacts, the medians, and their number. Of two bodies:
    the root of the ratio of relative speeds of the hardest three, the median, and their number. Then the median share
    of speed that other contacts leave.
    """
    walls, meetings, kept = [], [], []
    for event in events:
        speeds = np.linalg.norm(event.before), np.linalg.norm(event.after)
        if event.last > event.first + 1:
            if speeds[0] > _LEAST_SPEED:
                kept.append(speeds[1] / speeds[0])
        elif event.touched == WALL:
            walls += _wall(event)
        elif event.touched > event.body:
            partners = [e for e in events if e.body == event.touched and abs(e.first - event.first) <= 1]
            if len(partners) == 1 and partners[0].last == partners[0].first + 1:
                meetings += _meeting(event.before - partners[0].before, event.after - partners[0].after)
    walls, meetings = (sorted(found, reverse=True) for found in (walls, meetings))
    column = lambda found, i: [entry[i] for entry in found]
    return np.array(
        [
            *(_some(column(walls, 1)) + _some(column(walls, 2))),
            *_some(column(meetings, 1)),
            *(len(walls), len(meetings), np.median(kept) if kept else _MISSING),
        ]
    )


def _wall(event: Event) -> list[tuple[float, float, float]]:
    """(normal speed, restitution, friction) of a contact with one wall; none if that does not turn the velocity."""
    change = np.abs(event.after - event.before)
    normal = int(change.argmax())  # friction is below 1
    speed = abs(event.before[normal])
    if event.before[normal] * event.after[normal] > 0 or speed < _LEAST_SPEED:
        return []
    return [(speed, abs(event.after[normal]) / speed, change[1 - normal] / change[normal])]


def _meeting(before: np.ndarray, after: np.ndarray) -> list[tuple[float, float]]:
    """(closing speed, restitution of either body) of a contact of two, from relative velocities [2]."""
    change = after - before
    length = np.linalg.norm(change)
    if length < _LEAST_SPEED:
        return []
    closing, parting = -before @ change / length, after @ change / length
    if closing < _LEAST_SPEED or parting < 0:
        return []
    return [(closing, float(np.sqrt(parting / closing)))]


def _some(values: list[float]) -> list[float]:
    """The first three, -1 where there are fewer, and the median."""
    return (values + [_MISSING] * _KEPT)[:_KEPT] + [float(np.median(values)) if values else _MISSING]


def fit_material_classifiers(
    sounds: Sequence[np.ndarray], events: Sequence[list[Event]], materials, settings: Collisions
) -> MaterialClassifiers:
    """Fits both judges to real clips, in seconds; the same clips give the same judges.

    Args:
      sounds: int16 [S] each.
      events: of the same clips, as `see` finds them.
      materials: their labels, int [n].
      settings: of the data set.

    Raises:
      UserError: the clips have no label, or only one.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    materials = np.asarray(materials)
    if len(set(materials.tolist())) < 2 or materials.min() < 0:
        raise UserError('judges of the material need clips of two materials or more, and materials="clip"')
    heard = np.stack([sound_features(sound, settings.sample_rate) for sound in sounds])
    seen = np.stack([motion_features(found) for found in events])
    seen[:, np.isnan(seen).all(axis=0)] = 0.0  # what no clip has: trees take no column of nothing
    with threadpool_limits(1):  # such small fits wait for other threads most of the time
        sound = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(heard, materials)
        motion = HistGradientBoostingClassifier(
            max_iter=80, max_leaf_nodes=12, min_samples_leaf=15, learning_rate=0.08, random_state=0
        ).fit(seen, materials)
    return MaterialClassifiers(sound, motion)
