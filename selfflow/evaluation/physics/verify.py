"""A verifier of Collisions clips that needs no human: tracks bodies from pixels and scores what physics demands."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from selfflow.data.collisions import Collisions
from selfflow.errors import UserError
from selfflow.evaluation.physics import attacks, checks, energy
from selfflow.evaluation.physics.events import WALL, Event, find_events
from selfflow.evaluation.physics.materials import CLEAN, MaterialClassifiers, motion_features, sound_features
from selfflow.evaluation.physics.motion import Lines, fit_lines
from selfflow.evaluation.physics.track import Tracks, track

PASSES = checks.PASSES | {"synchrony": 0.6, "timbre": 0.5}
"""The least score of a clip that passes, by check."""


class ClipAnalysis(NamedTuple):
    """What the pixels of a clip show."""

    tracks: Tracks
    lines: Lines
    events: list[Event]


class Row(NamedTuple):
    """A check over many clips."""

    value: float
    """Share of the clips that pass; for `loudness` and `kappa` what their names say; nan where n is 0."""
    n: int
    """Clips that it applies to; for `loudness` contacts."""


class PhysicsReport(NamedTuple):
    """What the checks say of B clips."""

    score: np.ndarray
    """Share of the checks that apply to a clip and that it passes, float64 [B]; nan where none applies."""
    scores: dict[str, np.ndarray]
    """Score of each check, higher is more plausible, float64 [B]; nan where it does not apply."""
    materials: dict[str, np.ndarray]
    """Labels that the judges gave by `sound` and by `motion`, int [B]; -1 for silence and for no clean contact."""
    rows: dict[str, Row]
    """The checks over all clips."""


def track_clip(video: np.ndarray, settings: Collisions) -> ClipAnalysis:
    """Tracks the bodies of a uint8 video [T, H, W, 3] and finds where their velocities change.

    Raises:
      UserError: it is no such video, or `settings` have gravity, with which nothing moves in lines.
    """
    if settings.gravity:
        raise UserError(f"collisions.gravity = {settings.gravity:g}: the verifier knows worlds without gravity only")
    tracks = track(video, settings)
    lines = fit_lines(tracks.positions.swapaxes(0, 1), 1 / settings.frames_per_second)
    return ClipAnalysis(tracks, lines, find_events(tracks, lines, settings))


def verify(
    videos: Sequence[np.ndarray] | np.ndarray | None,
    sounds: Sequence[np.ndarray] | np.ndarray | None,
    settings: Collisions,
    judges: MaterialClassifiers | None = None,
    actions: Sequence[np.ndarray] | np.ndarray | None = None,
) -> PhysicsReport:
    """Judges decoded clips by the world they should be of. Nothing that a clip shows is an error.

    With `rotation` the energy of the spin, which is not tracked, may turn up as a rise in a few real clips.

    Args:
      videos: uint8 [B, T, H, W, 3]; None leaves out all that is seen, and so every check.
      sounds: int16 [B, S]; None leaves out the checks that listen.
      settings: of the data set.
      judges: fitted by `fit_judges`; None leaves out `timbre`, `kappa` and `loudness`.
      actions: the records' `action`, [B, T, 4], where the pushes are known; else they are inferred.

    Raises:
      UserError: media of another type or shape, of different numbers of clips, or settings with gravity.
    """
    given = [media for media in (videos, sounds, actions) if media is not None]
    if len({len(media) for media in given}) > 1:
        raise UserError(f"verify: {' and '.join(str(len(m)) for m in given)} clips; give as many of each")
    for clip in () if sounds is None else sounds:
        if clip.dtype != np.int16 or clip.ndim != 1:
            raise UserError(f"sound of {clip.dtype} {list(clip.shape)}: the verifier takes int16 [samples]")
    seen = [track_clip(video, settings) for video in videos] if videos is not None else None
    return score_clips(seen, sounds, settings, judges, actions)


def score_clips(
    seen: list[ClipAnalysis] | None,
    sounds: Sequence[np.ndarray] | np.ndarray | None,
    settings: Collisions,
    judges: MaterialClassifiers | None = None,
    actions: Sequence[np.ndarray] | np.ndarray | None = None,
) -> PhysicsReport:
    """`verify` for clips that were seen before: the same videos can be judged with several sounds."""
    materials, scores = {}, {}
    if judges is not None and sounds is not None:
        labels = _ask(judges.sound, [sound_features(s, settings.sample_rate) for s in sounds])
        materials["sound"] = np.where([np.any(s) for s in sounds], labels, -1)
    if judges is not None and seen is not None:
        features = [motion_features(clip.events) for clip in seen]
        clean = [f[CLEAN].any() for f in features]
        materials["motion"] = np.where(clean, _ask(judges.motion, features), -1)
    if seen is not None:
        known = [None] * len(seen) if actions is None else actions
        looked = [analyse_clip(clip, settings, action) for clip, action in zip(seen, known)]
        scores |= {check: np.array([each[check] for each in looked], float) for check in checks.PASSES}
    if seen is not None and sounds is not None:
        scores["synchrony"] = np.array([measure_av_sync(clip, s, settings) for clip, s in zip(seen, sounds)], float)
    if len(materials) == 2:
        agree = materials["sound"] == materials["motion"]
        scores["timbre"] = np.where(materials["motion"] < 0, np.nan, agree)
    passed = {check: np.where(np.isnan(s), np.nan, s >= PASSES[check]) for check, s in scores.items()}
    rows = {check: _rate(values) for check, values in passed.items()}
    if len(materials) == 2:
        rows["kappa"] = _kappa(materials)
        rows["loudness"] = _loudness(seen, sounds, materials["sound"], settings)
    count = len(seen if seen is not None else sounds if sounds is not None else ())
    every = np.array(list(passed.values())).reshape(len(passed), count)
    applies = np.isfinite(every).sum(axis=0)
    score = np.where(applies > 0, np.nansum(every, axis=0) / np.maximum(applies, 1), np.nan)
    return PhysicsReport(score, scores, materials, rows)


def analyse_clip(seen: ClipAnalysis, settings: Collisions, action: np.ndarray | None = None) -> dict[str, float]:
    """Scores of the checks that need no sound; with the record's `action` [T, 4] the push is known."""
    tracks, lines, events = seen
    return {
        "bodies": checks.bodies(tracks),
        "size": checks.size(tracks, settings.box),
        "apart": checks.apart(tracks, settings.box),
        "unbroken": checks.unbroken(tracks, lines, events, settings),
        "causes": checks.causes(events, lines, settings),
        "energy": energy.energy(tracks, lines, events, settings, action),
        "time": energy.direction(tracks, lines, events, settings, action),
    }


def measure_av_sync(seen: ClipAnalysis, clip: np.ndarray, settings: Collisions) -> float:
    """Synchrony of what is seen with a sound, int16 [S]: -1 to 1; nan with fewer than 3 contacts."""
    seconds = 1 / settings.frames_per_second
    moved = attacks.shaken(*seen, seconds)
    onset = attacks.onset_strength(clip, settings.sample_rate, len(moved), seconds)
    return attacks.synchrony(moved, onset, attacks.contacts(seen.lines, seen.events))


def _ask(judge, features: list[np.ndarray]) -> np.ndarray:
    from threadpoolctl import threadpool_limits

    if not features:
        return np.zeros(0, int)
    with threadpool_limits(1):  # threads that wait for busy cores take seconds over this
        return judge.predict(np.stack(features)).astype(int)


def _rate(passed: np.ndarray) -> Row:
    known = passed[np.isfinite(passed)]
    return Row(float(known.mean()) if len(known) else np.nan, len(known))


def _kappa(materials: dict[str, np.ndarray]) -> Row:
    """Agreement of both judges beyond chance (Cohen's kappa), of clips in which both have something to judge."""
    both = (materials["sound"] >= 0) & (materials["motion"] >= 0)
    heard, moved = materials["sound"][both], materials["motion"][both]
    if not both.any():
        return Row(np.nan, 0)
    chance = sum(np.mean(heard == label) * np.mean(moved == label) for label in np.unique(heard))
    return Row(float((np.mean(heard == moved) - chance) / (1 - chance)) if chance < 1 else np.nan, int(both.sum()))


def _loudness(seen: list[ClipAnalysis], sounds, heard: np.ndarray, settings: Collisions) -> Row:
    """Rank correlation of impact speed and loudness over all lone contacts, within each material, averaged by number.

    A material is what the sound judge heard.
    """
    from scipy.stats import rankdata

    impacts: dict[int, list[tuple[float, float]]] = {}
    for clip, wave, label in zip(seen, sounds, heard):
        for event in clip.events if label >= 0 else ():
            # Two bodies that meet are two events and one contact.
            if (event.touched == WALL or event.touched > event.body) and attacks.isolated_attack(event, clip.events):
                loud = attacks.loudness(event, wave, settings.sample_rate, 1 / settings.frames_per_second)
                impacts.setdefault(int(label), []).append((event.speed, loud))
    rows = []
    for pairs in impacts.values():
        ranks = rankdata(pairs, axis=0)
        if len(pairs) > 2 and (np.ptp(ranks, axis=0) > 0).all():
            rows.append((np.corrcoef(ranks.T)[0, 1], len(pairs)))
    n = sum(number for _, number in rows)
    return Row(float(sum(rho * number for rho, number in rows) / n), n) if n else Row(np.nan, 0)
