"""Classifiers of the material by audio and by motion, whose agreement is a physics check."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from selfflow.data.collisions import Collisions
from selfflow.errors import UserError
from selfflow.evaluation.physics.events import WALL, Event

_BANDS = 32
_LOWEST = 80.0  # Hz
_HARDEST = 3  # contacts
_MISSING = -1.0  # in place of a feature that a clip does not have
_MIN_SPEED = 8.0  # units per second
CONTACT_COUNTS = slice(-3, -1)
"""The features of motion that count contacts: with walls, and of two bodies."""


class MaterialClassifiers(NamedTuple):
    """Fitted scikit-learn classifiers of the material, from `audio_features` and from `motion_features`."""

    audio: object
    motion: object


def audio_features(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Computes the spectrum and decay of audio, float64 [36]; zeros for silence.

    The features are log energy shares of 32 bands from 80 Hz to half the sample rate, the log of their centroid, and
    the autocorrelation of the envelope at 20, 60 and 150 ms.

    Args:
      audio: int16 [S].
      sample_rate: samples per second.
    """
    x = audio.astype(np.float64) / 32768
    size = min(1024, len(x))
    if size < 16 or not x.any():
        return np.zeros(_BANDS + 4)

    blocks = x[: len(x) // size * size].reshape(-1, size) * np.hanning(size)
    power = np.square(np.abs(np.fft.rfft(blocks, axis=1))).sum(axis=0)
    frequency = np.fft.rfftfreq(size, 1 / sample_rate)
    edges = np.geomspace(_LOWEST, sample_rate / 2, _BANDS + 1)
    band = np.digitize(frequency, edges) - 1
    inside = (band >= 0) & (band < _BANDS)
    shares = np.bincount(band[inside], power[inside], _BANDS)
    shares = shares / max(shares.sum(), 1e-12)
    # Bands are represented by the geometric means of their edges.
    centroid = np.log(max(shares @ np.sqrt(edges[1:] * edges[:-1]), 1.0))

    hop = max(1, round(0.01 * sample_rate))
    envelope = np.sqrt(np.square(x[: len(x) // hop * hop]).reshape(-1, hop).mean(axis=1))
    envelope = np.pad(envelope, (0, 15))  # pad by the longest lag, so that short audio has all lags
    correlations = []
    for lag in (0, 2, 6, 15):  # hops of 10 ms
        correlations.append(float(envelope[lag:] @ envelope[: len(envelope) - lag]))
    decay = np.array(correlations[1:]) / max(correlations[0], 1e-12)
    return np.concatenate([np.log(shares + 1e-3), [centroid], decay])


class _WallContact(NamedTuple):
    """A contact with one wall. Ordered by speed."""

    speed: float
    """Speed along the normal, units per second."""
    restitution: float
    friction: float


class _BodyContact(NamedTuple):
    """A contact of two bodies. Ordered by speed."""

    speed: float
    """Speed at which they approach, units per second."""
    restitution: float


def motion_features(events: list[Event]) -> np.ndarray:
    """Computes restitution and friction of tracked contacts, float64 [15]; -1 where a clip has no such contact.

    The features are: restitution and friction of the three hardest wall contacts, and their medians; restitution of the
    three hardest contacts of two bodies, and its median; the numbers of both kinds of contact; and the median ratio of
    the speeds after and before all other events.
    """
    walls, pairs, ratios = [], [], []
    for event in events:
        before, after = np.linalg.norm(event.before), np.linalg.norm(event.after)
        if event.last > event.first + 1:
            # Only the total effect of several contacts in a short time on the speed is known.
            if before > _MIN_SPEED:
                ratios.append(after / before)
        elif event.touched == WALL:
            walls += _wall_contact(event)
        elif event.touched > event.body:  # count a pair once; NOTHING is negative
            partners = [e for e in events if e.body == event.touched and abs(e.first - event.first) <= 1]
            if len(partners) == 1 and partners[0].last == partners[0].first + 1:
                pairs += _body_contact(event.before - partners[0].before, event.after - partners[0].after)
    walls.sort(reverse=True)
    pairs.sort(reverse=True)
    return np.array(
        [
            *_hardest_and_median([contact.restitution for contact in walls]),
            *_hardest_and_median([contact.friction for contact in walls]),
            *_hardest_and_median([contact.restitution for contact in pairs]),
            len(walls),
            len(pairs),
            np.median(ratios) if ratios else _MISSING,
        ]
    )


def _wall_contact(event: Event) -> list[_WallContact]:
    """The contact, or nothing if the wall does not reverse the velocity or the contact is too slow."""
    change = np.abs(event.after - event.before)
    # Friction is below 1, so the change along the normal is the larger one.
    normal = int(change.argmax())
    speed = abs(event.before[normal])
    if event.before[normal] * event.after[normal] > 0 or speed < _MIN_SPEED:
        return []
    return [_WallContact(speed, abs(event.after[normal]) / speed, change[1 - normal] / change[normal])]


def _body_contact(before: np.ndarray, after: np.ndarray) -> list[_BodyContact]:
    """The contact of two bodies with relative velocities [2] before and after, or nothing if it is too slow."""
    change = after - before
    length = np.linalg.norm(change)
    if length < _MIN_SPEED:
        return []
    closing, parting = -before @ change / length, after @ change / length
    if closing < _MIN_SPEED or parting < 0:
        return []
    # The restitution of a contact is the product of both bodies', which are equal in a clip.
    return [_BodyContact(closing, float(np.sqrt(parting / closing)))]


def _hardest_and_median(values: list[float]) -> list[float]:
    """The first three values, -1 for missing ones, and the median of all."""
    padded = (values + [_MISSING] * _HARDEST)[:_HARDEST]
    return padded + [float(np.median(values)) if values else _MISSING]


def fit_material_classifiers(
    audio: Sequence[np.ndarray], events: Sequence[list[Event]], materials: Sequence[int], settings: Collisions
) -> MaterialClassifiers:
    """Fits both classifiers to real clips, deterministically and in seconds.

    Args:
      audio: int16 [S] each.
      events: events of the same clips, as `track_clip` finds them.
      materials: labels, int [n].
      settings: settings of the data set.

    Raises:
      UserError: the clips have no labels, or one label.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    labels = np.asarray(materials)
    if len(set(labels.tolist())) < 2 or labels.min() < 0:
        raise UserError('material classifiers need clips of two materials or more, and materials="clip"')
    of_audio = np.stack([audio_features(clip, settings.sample_rate) for clip in audio])
    of_motion = np.stack([motion_features(clip) for clip in events])
    of_motion[:, np.isnan(of_motion).all(axis=0)] = 0.0  # scikit-learn's trees raise on a column of NaN
    with threadpool_limits(1):  # threads of such a small fit mostly wait for each other
        from_audio = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(of_audio, labels)
        from_motion = HistGradientBoostingClassifier(
            max_iter=80, max_leaf_nodes=12, min_samples_leaf=15, learning_rate=0.08, random_state=0
        ).fit(of_motion, labels)
    return MaterialClassifiers(from_audio, from_motion)
