"""Physics checks of decoded clips of Collisions: bodies are tracked in the pixels, then the clips are scored."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from selfflow.data.collisions import Collisions
from selfflow.errors import UserError
from selfflow.evaluation.physics import attacks, checks, energy
from selfflow.evaluation.physics.events import WALL, Event, find_events
from selfflow.evaluation.physics.materials import (
    CONTACT_COUNTS,
    MaterialClassifiers,
    audio_features,
    motion_features,
)
from selfflow.evaluation.physics.motion import Lines, fit_lines
from selfflow.evaluation.physics.track import Tracks, track

PASSES = checks.PASSES | {"synchrony": 0.6, "timbre": 0.5}
"""The lowest score that passes, by check."""


class ClipAnalysis(NamedTuple):
    """The tracked bodies of a clip."""

    tracks: Tracks
    lines: Lines
    events: list[Event]


class CheckResult(NamedTuple):
    """A check over many clips."""

    value: float
    """Share of the clips that pass; for `kappa` and `loudness` a correlation; NaN if n is 0."""
    n: int
    """Clips that the check applies to; for `loudness` contacts."""


class PhysicsReport(NamedTuple):
    """Results of the checks on B clips."""

    score: np.ndarray
    """Share of the applicable checks that a clip passes, float64 [B]; NaN if none applies."""
    scores: dict[str, np.ndarray]
    """Score of each check, higher is more plausible, float64 [B]; NaN where it does not apply."""
    materials: dict[str, np.ndarray]
    """Labels predicted from `audio` and from `motion`, int [B]; -1 for silence, or if no contact is isolated."""
    rows: dict[str, CheckResult]
    """The checks over all clips."""


def track_clip(video: np.ndarray, settings: Collisions) -> ClipAnalysis:
    """Tracks the bodies of a uint8 video [T, H, W, 3] and finds the changes of their velocities.

    Raises:
      UserError: a wrong shape or dtype, or settings with gravity, under which bodies do not move along straight lines.
    """
    if settings.gravity:
        raise UserError(f"collisions.gravity = {settings.gravity:g}: the physics verifier requires gravity = 0")
    tracks = track(video, settings)
    lines = fit_lines(tracks.positions.swapaxes(0, 1), 1 / settings.frames_per_second)
    return ClipAnalysis(tracks, lines, find_events(tracks, lines, settings))


def verify(
    videos: Sequence[np.ndarray] | np.ndarray | None,
    audio: Sequence[np.ndarray] | np.ndarray | None,
    settings: Collisions,
    classifiers: MaterialClassifiers | None = None,
    actions: Sequence[np.ndarray] | np.ndarray | None = None,
) -> PhysicsReport:
    """Scores decoded clips by the physics of the data set. Clips with other content are scored, too.

    Spin is not tracked: if bodies rotate, its energy may appear as a rise in a few real clips.

    Args:
      videos: uint8 [B, T, H, W, 3]; None leaves out all checks of the motion.
      audio: int16 [B, S]; None leaves out the checks of the audio.
      settings: settings of the data set.
      classifiers: classifiers from `fit_material_classifiers`; None leaves out `timbre`, `kappa` and `loudness`.
      actions: `action` of the records, [B, T, 4], if the pushes are known; otherwise they are inferred.

    Raises:
      UserError: media of another type or shape, different numbers of clips, or settings with gravity.
    """
    counts = [len(media) for media in (videos, audio, actions) if media is not None]
    if len(set(counts)) > 1:
        raise UserError(f"verify: {' and '.join(map(str, counts))} clips; give equal numbers")
    for clip in () if audio is None else audio:
        if clip.dtype != np.int16 or clip.ndim != 1:
            raise UserError(f"audio of {clip.dtype} {list(clip.shape)}: give int16 [samples]")
    tracked = [track_clip(video, settings) for video in videos] if videos is not None else None
    return score_clips(tracked, audio, settings, classifiers, actions)


def score_clips(
    tracked: list[ClipAnalysis] | None,
    audio: Sequence[np.ndarray] | np.ndarray | None,
    settings: Collisions,
    classifiers: MaterialClassifiers | None = None,
    actions: Sequence[np.ndarray] | np.ndarray | None = None,
) -> PhysicsReport:
    """Applies `verify` to tracked clips, so that the same videos can be scored with other audio.

    Args: as of `verify`; `tracked` has the results of `track_clip`.
    """
    materials = {} if classifiers is None else _predict_materials(tracked, audio, settings, classifiers)
    scores: dict[str, np.ndarray] = {}
    if tracked is not None:
        known_actions = [None] * len(tracked) if actions is None else actions
        by_clip = [motion_scores(clip, settings, action) for clip, action in zip(tracked, known_actions)]
        for check in checks.PASSES:
            scores[check] = np.array([scores_of_clip[check] for scores_of_clip in by_clip], float)
    if tracked is not None and audio is not None:
        synchrony = [measure_av_sync(clip, clip_audio, settings) for clip, clip_audio in zip(tracked, audio)]
        scores["synchrony"] = np.array(synchrony, float)
    if len(materials) == 2:
        agree = materials["audio"] == materials["motion"]
        scores["timbre"] = np.where(materials["motion"] < 0, np.nan, agree)

    passed, rows = {}, {}
    for check, score_B in scores.items():
        passed[check] = np.where(np.isnan(score_B), np.nan, score_B >= PASSES[check])
        rows[check] = _pass_rate(passed[check])
    if len(materials) == 2:
        rows["kappa"] = _kappa(materials)
        rows["loudness"] = _loudness(tracked, audio, materials["audio"], settings)

    count = len(tracked if tracked is not None else audio if audio is not None else ())
    passed_CB = np.array(list(passed.values())).reshape(len(passed), count)  # also if there are no checks or clips
    applicable_B = np.isfinite(passed_CB).sum(axis=0)
    score_B = np.where(applicable_B > 0, np.nansum(passed_CB, axis=0) / np.maximum(applicable_B, 1), np.nan)
    return PhysicsReport(score_B, scores, materials, rows)


def _predict_materials(
    tracked: list[ClipAnalysis] | None,
    audio: Sequence[np.ndarray] | np.ndarray | None,
    settings: Collisions,
    classifiers: MaterialClassifiers,
) -> dict[str, np.ndarray]:
    """`PhysicsReport.materials`: labels from `audio` and from `motion`, as far as they exist."""
    materials = {}
    if audio is not None:
        labels = _predict(classifiers.audio, [audio_features(clip, settings.sample_rate) for clip in audio])
        materials["audio"] = np.where([np.any(clip) for clip in audio], labels, -1)
    if tracked is not None:
        features = [motion_features(clip.events) for clip in tracked]
        has_contacts = [features_of_clip[CONTACT_COUNTS].any() for features_of_clip in features]
        materials["motion"] = np.where(has_contacts, _predict(classifiers.motion, features), -1)
    return materials


def motion_scores(clip: ClipAnalysis, settings: Collisions, action: np.ndarray | None = None) -> dict[str, float]:
    """Computes the scores of the checks that need no audio; a record's `action` [T, 4] gives the push."""
    tracks, lines, events = clip
    return {
        "bodies": checks.bodies(tracks),
        "size": checks.size(tracks, settings.box),
        "apart": checks.apart(tracks, settings.box),
        "unbroken": checks.unbroken(tracks, lines, events, settings),
        "causes": checks.causes(events, lines, settings),
        "energy": energy.energy(tracks, lines, events, settings, action),
        "time": energy.direction(tracks, lines, events, settings, action),
    }


def measure_av_sync(clip: ClipAnalysis, audio: np.ndarray, settings: Collisions) -> float:
    """Synchrony of tracked contacts with audio, int16 [S]: -1 to 1; NaN with fewer than 3 contacts."""
    seconds = 1 / settings.frames_per_second
    change = attacks.momentum_change(*clip, seconds)
    onset = attacks.onset_strength(audio, settings.sample_rate, len(change), seconds)
    return attacks.synchrony(change, onset, attacks.count_contacts(clip.lines, clip.events))


def _predict(classifier: object, features: list[np.ndarray]) -> np.ndarray:
    from threadpoolctl import threadpool_limits

    if not features:
        return np.zeros(0, int)
    with threadpool_limits(1):  # several threads take seconds on busy cores
        return classifier.predict(np.stack(features)).astype(int)


def _pass_rate(passed: np.ndarray) -> CheckResult:
    known = passed[np.isfinite(passed)]
    return CheckResult(float(known.mean()) if len(known) else np.nan, len(known))


def _kappa(materials: dict[str, np.ndarray]) -> CheckResult:
    """Cohen's kappa between the two classifiers, over the clips that both label."""
    both = (materials["audio"] >= 0) & (materials["motion"] >= 0)
    from_audio, from_motion = materials["audio"][both], materials["motion"][both]
    if not both.any():
        return CheckResult(np.nan, 0)
    chance = sum(np.mean(from_audio == label) * np.mean(from_motion == label) for label in np.unique(from_audio))
    if chance >= 1:  # one label: kappa is 0 / 0
        return CheckResult(np.nan, int(both.sum()))
    return CheckResult(float((np.mean(from_audio == from_motion) - chance) / (1 - chance)), int(both.sum()))


def _loudness(
    tracked: list[ClipAnalysis], audio: Sequence[np.ndarray], materials: np.ndarray, settings: Collisions
) -> CheckResult:
    """Rank correlation of impact speed and loudness of isolated contacts, within each material, weighted by contacts.

    Materials are predicted from audio.
    """
    from scipy.stats import rankdata

    impacts: dict[int, list[tuple[float, float]]] = {}
    for clip, clip_audio, material in zip(tracked, audio, materials):
        if material < 0:
            continue
        for event in clip.events:
            # Two bodies in contact produce two events for one contact.
            is_first = event.touched == WALL or event.touched > event.body
            if is_first and attacks.is_isolated(event, clip.events):
                loudness = attacks.loudness(event, clip_audio, settings.sample_rate, 1 / settings.frames_per_second)
                impacts.setdefault(int(material), []).append((event.speed, loudness))

    correlations = []
    for pairs in impacts.values():
        # Materials differ in loudness, so clips are ranked within each material.
        ranks = rankdata(pairs, axis=0)
        if len(pairs) > 2 and (np.ptp(ranks, axis=0) > 0).all():
            correlations.append((np.corrcoef(ranks.T)[0, 1], len(pairs)))
    n = sum(number for _, number in correlations)
    if not n:
        return CheckResult(np.nan, 0)
    return CheckResult(float(sum(rho * number for rho, number in correlations) / n), n)
