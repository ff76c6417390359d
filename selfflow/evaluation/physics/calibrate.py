"""Calibration of the physics verifier on held-out real clips and on the same clips with corruptions."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from selfflow.data.collisions import Collisions
from selfflow.data.collisions.generate import draw_motion
from selfflow.data.collisions.names import SPLITS
from selfflow.errors import UserError
from selfflow.evaluation.physics import corruptions
from selfflow.evaluation.physics.materials import MaterialClassifiers
from selfflow.evaluation.physics.track import Tracks
from selfflow.evaluation.physics.verify import (
    PASSES,
    CheckResult,
    ClipAnalysis,
    PhysicsReport,
    measure_av_sync,
    score_clips,
    track_clip,
)
from selfflow.progress import progress

Transform = Callable[[np.ndarray], np.ndarray]
"""Maps a clip to another of the same shape, such as its reconstruction by an autoencoder."""
_SHIFTS = range(1, 9)  # frames
_DETECTED_BY = {
    "body teleported": ("unbroken",),
    "body shrinking": ("size",),
    "body duplicated": ("bodies",),
    "bodies pass through each other": ("apart",),
    "world with gravity": ("causes",),
    "time reversed": ("energy", "time"),
}
"""The check that should detect each corruption of the video."""


class Calibration(NamedTuple):
    """Results of `calibrate`."""

    tracker: CheckResult
    """RMS distance between tracked and true centres, units, over body-frames; see `tracking_error`."""
    unmatched: int
    """Number of clips with a wrong number of tracked bodies, which `tracker` does not include."""
    checks: dict[str, CheckResult]
    """The checks on real clips, with inferred pushes."""
    with_action: dict[str, CheckResult]
    """`energy` and `time` with the pushes of the records."""
    auc: dict[str, tuple[str, float, int]]
    """By corruption: the check that should detect it, AUC of its score for real against corrupted clips, clips."""
    flagged: dict[str, tuple[float, float]]
    """By corruption: shares of the real and of the corrupted clips that fail this check."""


def tracking_error(tracks: Tracks, record: dict[str, Any]) -> np.ndarray | None:
    """Distances between tracked and true centres, units, [T, bodies]; NaN where a body is not visible.

    Bodies are matched once for the whole clip. None if the number of tracked bodies is wrong.
    """
    count = int(record["count"])
    if tracks.positions.shape[1] != count:
        return None
    true = record["positions"][:, :count]
    # Tracked bodies have no order: they are matched to the record by the least squared error.
    errors = []
    for order in itertools.permutations(range(count)):
        errors.append(np.linalg.norm(tracks.positions[:, list(order)] - true, axis=-1))
    return min(errors, key=lambda error: np.nansum(error**2))


def calibrate(
    records: Iterable[dict[str, Any]],
    settings: Collisions,
    classifiers: MaterialClassifiers | None = None,
    through_video: Transform | None = None,
    through_audio: Transform | None = None,
    seed: int = 0,
) -> Calibration:
    """Measures the verifier on real and on corrupted clips.

    Args:
      records: records of a split that the classifiers were not fitted to, with the ids of the data set.
      settings: settings of the data set.
      classifiers: see `fit_classifiers`.
      through_video: function applied to all videos, real and corrupted, before they are scored, such as an
        autoencoder.
      through_audio: the same for audio.
      seed: seed for the choice of partners, frames and bodies.
    """
    records = list(records)
    # By corruption: the corrupted clips, and the indices of their records. Some corruptions do not apply to all clips.
    real, corrupted, sources = [], {}, {}
    for i, record in enumerate(progress(records, "calibrating", unit="clips")):
        real.append(_tracked(record["video"], settings, through_video))
        for name, video in _corrupted_videos(record, settings, np.random.default_rng([seed, i])):
            if video is not None:
                corrupted.setdefault(name, []).append(_tracked(video, settings, through_video))
                sources.setdefault(name, []).append(i)
    audio = [record["audio"] if through_audio is None else through_audio(record["audio"]) for record in records]
    report = score_clips(real, audio, settings, classifiers)
    with_action = score_clips(real, None, settings, None, [record["action"] for record in records])

    detection = _Detection()
    _compare_audio(detection, records, real, audio, report, settings, seed)
    for name in _DETECTED_BY:
        if name not in corrupted:
            continue
        scores = score_clips(corrupted[name], None, settings).scores
        for check in _DETECTED_BY[name]:
            title = name if len(_DETECTED_BY[name]) == 1 else f"{name}, by {check}"
            detection.add(title, check, report.scores[check][sources[name]], scores[check])

    tracker, unmatched = _tracker_accuracy(real, records)
    return Calibration(
        tracker=tracker,
        unmatched=unmatched,
        checks=report.rows,
        with_action={check: with_action.rows[check] for check in ("energy", "time")},
        auc=detection.auc,
        flagged=detection.flagged,
    )


class _Detection:
    """Separation of real and corrupted clips by the checks: `Calibration.auc` and `Calibration.flagged`."""

    def __init__(self):
        self.auc: dict[str, tuple[str, float, int]] = {}
        self.flagged: dict[str, tuple[float, float]] = {}

    def add(self, name: str, check: str, real: np.ndarray, corrupted: np.ndarray) -> None:
        """Compares scores [n] of real clips with scores of the same clips after corruption, where both exist."""
        both = np.isfinite(real) & np.isfinite(corrupted)
        real, corrupted = real[both], corrupted[both]
        self.auc[name] = check, _auc(real, corrupted), len(real)
        self.flagged[name] = _share_below(real, PASSES[check]), _share_below(corrupted, PASSES[check])


def _share_below(scores: np.ndarray, threshold: float) -> float:
    return float((scores < threshold).mean()) if len(scores) else np.nan


def _tracked(video: np.ndarray, settings: Collisions, through: Transform | None) -> ClipAnalysis:
    return track_clip(video if through is None else through(video), settings)


def _compare_audio(
    detection: _Detection,
    records: list[dict[str, Any]],
    real: list[ClipAnalysis],
    audio: list[np.ndarray],
    report: PhysicsReport,
    settings: Collisions,
    seed: int,
) -> None:
    """Compares the synchrony of clips with the synchrony of their videos with shifted or exchanged audio."""
    synchrony = report.scores["synchrony"]
    hop = settings.samples // settings.frames
    for sign, direction in ((1, "late"), (-1, "early")):
        for frames in _SHIFTS:
            shifted = []
            for clip, of_clip in zip(real, audio):
                shifted.append(measure_av_sync(clip, corruptions.shift(of_clip, sign * frames * hop), settings))
            detection.add(f"audio {frames} frames {direction}", "synchrony", synchrony, np.array(shifted))

    contacts = [len(record["contacts"]["time"]) for record in records]
    materials = [record["material"] for record in records]
    partners = {
        "audio of a random clip": corruptions.random_partners(len(records), seed),
        "audio of a hard partner": corruptions.hard_partners(materials, contacts, seed),
    }
    for name, partner_of in partners.items():
        swapped = [measure_av_sync(clip, audio[partner], settings) for clip, partner in zip(real, partner_of)]
        detection.add(name, "synchrony", np.where(partner_of < 0, np.nan, synchrony), np.array(swapped))


def _tracker_accuracy(real: list[ClipAnalysis], records: list[dict[str, Any]]) -> tuple[CheckResult, int]:
    """RMS distance between tracked and true centres, and the number of clips with a wrong number of bodies."""
    squares, unmatched = [np.zeros(0)], 0  # one empty array, as there may be no clip to concatenate
    for clip, record in zip(real, records):
        error = tracking_error(clip.tracks, record)
        if error is None:
            unmatched += 1
        else:
            squares.append(np.square(error[np.isfinite(error)]))
    known = np.concatenate(squares)
    return CheckResult(float(np.sqrt(known.mean())) if len(known) else np.nan, len(known)), unmatched


def _corrupted_videos(
    record: dict[str, Any], settings: Collisions, rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray | None]]:
    """Yields (name, video or None) for every corruption of a clip's video.

    Records do not contain the motion of the video, which is drawn again from the record's id.
    """
    split, _, index = str(record["id"]).rpartition("-")
    if split not in SPLITS or not index.isdigit():
        raise UserError(f"record {record['id']!r}: calibration needs clips with the ids of Collisions")
    motion = draw_motion(settings, split, int(index))
    yield "body teleported", corruptions.teleported(motion, rng)
    yield "body shrinking", corruptions.shrinking(motion, rng)
    yield "body duplicated", corruptions.duplicated(motion, rng)
    yield "bodies pass through each other", corruptions.passing(motion)
    yield "world with gravity", corruptions.falling(motion)
    yield "time reversed", record["video"][::-1]


def _auc(real: np.ndarray, corrupted: np.ndarray) -> float:
    """Probability that a real clip has a higher score than a corrupted one; NaN without clips."""
    from sklearn.metrics import roc_auc_score

    if not len(real) or not len(corrupted):
        return float("nan")
    is_real = np.repeat([1, 0], [len(real), len(corrupted)])
    return float(roc_auc_score(is_real, np.concatenate([real, corrupted])))


_TITLES = {"kappa": "timbre against motion: kappa", "loudness": "loudness with impact speed: rank correlation"}


def as_rows(calibrations: dict[str, Calibration]) -> tuple[list[list[str]], list[list[str]]]:
    """Returns two tables with headers: checks on real clips, one column per calibration; corruptions, two columns."""
    columns = list(calibrations.values())
    checks = [["on real clips", *calibrations]]
    checks.append(["tracker: RMS error in units, of body-frames", *(_cell(c.tracker) for c in columns)])
    checks.append(["tracker: clips with another number of bodies", *(str(c.unmatched) for c in columns)])
    for check in columns[0].checks:
        checks.append([_TITLES.get(check, f"{check}: pass"), *(_cell(c.checks[check]) for c in columns)])
    for check in columns[0].with_action:
        checks.append([f"{check}, pushes known: pass", *(_cell(c.with_action[check]) for c in columns)])

    header = ["corruption", "check"]
    for label in calibrations:
        header += [f"{label}: AUC", f"{label}: flagged"]
    corrupted = [header]
    for name, (check, _, _) in columns[0].auc.items():
        row = [name, check]
        for calibration in columns:
            _, auc, count = calibration.auc.get(name, (check, float("nan"), 0))
            _, share = calibration.flagged.get(name, (float("nan"), float("nan")))
            row += [_cell(CheckResult(auc, count)), f"{100 * share:.0f} %"]
        corrupted.append(row)
    return checks, corrupted


def _cell(result: CheckResult) -> str:
    return f"{result.value:.3f} ({result.n})"


def as_text(calibrations: dict[str, Calibration]) -> str:
    """Formats both tables as aligned text; numbers of clips, contacts or body-frames are in brackets."""
    return "\n\n".join(_aligned(rows) for rows in as_rows(calibrations))


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = map(str.ljust, row, widths)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def as_markdown(calibrations: dict[str, Calibration]) -> str:
    """Formats both tables as Markdown, for the card of the data set."""
    tables = []
    for header, *rows in as_rows(calibrations):
        lines = [header, ["---"] * len(header), *rows]
        tables.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(tables)
