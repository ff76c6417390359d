"""How well the verifier measures: on held-out real clips, and on the same clips corrupted."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from selfflow.data.collisions import Collisions
from selfflow.data.collisions.generate import draw_motion
from selfflow.data.collisions.names import SPLITS
from selfflow.errors import UserError
from selfflow.evaluation.physics import corruptions
from selfflow.evaluation.physics.materials import MaterialClassifiers, fit_material_classifiers
from selfflow.evaluation.physics.track import Tracks
from selfflow.evaluation.physics.verify import PASSES, Row, measure_av_sync, score_clips, track_clip
from selfflow.progress import progress

Through = Callable[[np.ndarray], np.ndarray]
SHIFTS = range(1, 9)
_NOTICED_BY = {
    "body teleported": ("unbroken",),
    "body shrinking": ("size",),
    "body duplicated": ("bodies",),
    "bodies pass through each other": ("apart",),
    "world with gravity": ("causes",),
    "time reversed": ("energy", "time"),
}
"""The checks that should notice a corruption of the video."""


class Calibration(NamedTuple):
    """What `calibrate` measured."""

    tracker: Row
    """RMS distance of tracked from true centres, units, over body-frames; see `tracking_error`."""
    unmatched: int
    """Clips whose number of bodies the tracker got wrong; not in `tracker`."""
    checks: dict[str, Row]
    """The checks on real clips, pushes inferred."""
    with_action: dict[str, Row]
    """`energy` and `time` again, pushes known from the records."""
    auc: dict[str, tuple[str, float, int]]
    """By corruption: the check that should notice it, AUC of its score for real against corrupted clips, and clips."""
    noticed: dict[str, tuple[float, float]]
    """By corruption: share of the real and of the corrupted clips that this check flags."""


def fit_to(records: Iterable[dict[str, Any]], settings: Collisions) -> MaterialClassifiers:
    """Both judges, fitted to the records of a split: 1000 clips take a quarter of a minute."""
    records = list(records)
    events = [
        track_clip(record["video"], settings).events for record in progress(records, "fitting judges", unit="clips")
    ]
    return fit_material_classifiers([r["audio"] for r in records], events, [r["material"] for r in records], settings)


def tracking_error(tracks: Tracks, record: dict[str, Any]) -> np.ndarray | None:
    """Distances of tracked from true centres, units, [T, bodies], nan where unseen; None for another number of bodies.

    Bodies are matched once for the whole clip.
    """
    count = int(record["count"])
    if tracks.positions.shape[1] != count:
        return None
    true = record["positions"][:, :count]
    orders = [list(order) for order in itertools.permutations(range(count))]
    errors = [np.linalg.norm(tracks.positions[:, order] - true, axis=-1) for order in orders]
    return min(errors, key=lambda error: np.nansum(error**2))


def calibrate(
    records: Iterable[dict[str, Any]],
    settings: Collisions,
    judges: MaterialClassifiers | None = None,
    through_video: Through | None = None,
    through_sound: Through | None = None,
    seed: int = 0,
) -> Calibration:
    """Measures the verifier on real clips and on corrupted ones.

    Args:
      records: of a split that the judges were not fitted to, with the ids that the data set gave them.
      settings: of the data set.
      judges: see `fit_to`.
      through_video: what all videos, corrupted ones too, go through before they are judged, such as an autoencoder.
      through_sound: likewise for sounds.
      seed: of the choice of partners, frames and bodies.
    """
    records = list(records)
    video_of, sound_of = through_video or (lambda video: video), through_sound or (lambda sound: sound)
    seen, wrong, whose = [], {}, {}
    for i, record in enumerate(progress(records, "calibrating", unit="clips")):
        seen.append(track_clip(video_of(record["video"]), settings))
        for name, video in _corrupted(record, settings, np.random.default_rng([seed, i])):
            if video is not None:
                wrong.setdefault(name, []).append(track_clip(video_of(video), settings))
                whose.setdefault(name, []).append(i)
    sounds = [sound_of(record["audio"]) for record in records]
    verdict = score_clips(seen, sounds, settings, judges)
    known = score_clips(seen, None, settings, None, [record["action"] for record in records])
    auc, noticed = {}, {}

    def compare(name: str, check: str, real: np.ndarray, corrupted: np.ndarray) -> None:
        both = np.isfinite(real) & np.isfinite(corrupted)
        auc[name] = check, _auc(real[both], corrupted[both]), int(both.sum())
        flags = [side[both] < PASSES[check] for side in (real, corrupted)]
        noticed[name] = tuple(float(f.mean()) if len(f) else np.nan for f in flags)

    real = verdict.scores["synchrony"]
    hop = settings.samples // settings.frames
    for sign, way in ((1, "late"), (-1, "early")):
        for frames in SHIFTS:
            late = [
                measure_av_sync(clip, corruptions.shift(s, sign * frames * hop), settings)
                for clip, s in zip(seen, sounds)
            ]
            compare(f"sound {frames} frames {way}", "synchrony", real, np.array(late))
    contacts = [len(record["contacts"]["time"]) for record in records]
    partners = {
        "sound of a random clip": corruptions.random_partners(len(records), seed),
        "sound of a hard partner": corruptions.hard_partners([r["material"] for r in records], contacts, seed),
    }
    for name, chosen in partners.items():
        swapped = [measure_av_sync(clip, sounds[j], settings) for clip, j in zip(seen, chosen)]
        compare(name, "synchrony", np.where(chosen < 0, np.nan, real), np.array(swapped))
    for name in (name for name in _NOTICED_BY if name in wrong):
        corrupted = score_clips(wrong[name], None, settings).scores
        for check in _NOTICED_BY[name]:
            title = name if len(_NOTICED_BY[name]) == 1 else f"{name}, by {check}"
            compare(title, check, verdict.scores[check][whose[name]], corrupted[check])
    errors = [tracking_error(clip.tracks, record) for clip, record in zip(seen, records)]
    squares = [np.square(error[np.isfinite(error)]) for error in errors if error is not None]
    squares = np.concatenate(squares) if squares else np.zeros(0)
    tracker = Row(float(np.sqrt(squares.mean())) if len(squares) else np.nan, len(squares))
    unmatched = sum(error is None for error in errors)
    with_action = {check: known.rows[check] for check in ("energy", "time")}
    return Calibration(tracker, unmatched, verdict.rows, with_action, auc, noticed)


def _corrupted(record: dict[str, Any], settings: Collisions, rng: np.random.Generator):
    """(name, video or None) of every corruption of a clip's video; its motion is drawn again from its id."""
    split, _, index = str(record["id"]).rpartition("-")
    if split not in SPLITS or not index.isdigit():
        raise UserError(f"record {record['id']!r}: calibration needs clips with the ids that Collisions gives")
    motion = draw_motion(settings, split, int(index))
    yield "body teleported", corruptions.teleported(motion, rng)
    yield "body shrinking", corruptions.shrinking(motion, rng)
    yield "body duplicated", corruptions.duplicated(motion, rng)
    yield "bodies pass through each other", corruptions.passing(motion)
    yield "world with gravity", corruptions.falling(motion)
    yield "time reversed", record["video"][::-1]


def _auc(real: np.ndarray, corrupted: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    if not len(real) or not len(corrupted):
        return float("nan")
    truth = np.repeat([1, 0], [len(real), len(corrupted)])
    return float(roc_auc_score(truth, np.concatenate([real, corrupted])))


def as_rows(calibrations: dict[str, Calibration]) -> tuple[list[list[str]], list[list[str]]]:
    """Two tables, the first row the head: checks on real clips, and corruptions; a column or three per calibration."""
    known = list(calibrations.values())
    checks = [["on real clips", *calibrations]]
    checks.append(["tracker: RMS error in units, of body-frames", *(_cell(c.tracker, 3) for c in known)])
    checks.append(["tracker: clips with another number of bodies", *(str(c.unmatched) for c in known)])
    for check in known[0].checks:
        checks.append([_TITLES.get(check, f"{check}: pass"), *(_cell(c.checks[check], 3) for c in known)])
    for check in known[0].with_action:
        checks.append([f"{check}, pushes known: pass", *(_cell(c.with_action[check], 3) for c in known)])
    wrong = [["corruption", "check", *(f"{label}: {what}" for label in calibrations for what in ("AUC", "flagged"))]]
    for name, (check, _, _) in known[0].auc.items():
        row = [name, check]
        for calibration in known:
            found = calibration.auc.get(name, (check, float("nan"), 0))
            flagged = calibration.noticed.get(name, (float("nan"),) * 2)[1]
            row += [_cell(Row(found[1], found[2]), 3), f"{100 * flagged:.0f} %"]
        wrong.append(row)
    return checks, wrong


_TITLES = {"kappa": "timbre against motion: kappa", "loudness": "loudness with impact speed: rank correlation"}


def _cell(row: Row, digits: int) -> str:
    return f"{row.value:.{digits}f} ({row.n})"


def as_text(calibrations: dict[str, Calibration]) -> str:
    """Both tables, aligned; numbers of clips (of contacts, of body-frames) in brackets."""
    return "\n\n".join(_aligned(rows) for rows in as_rows(calibrations))


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def as_markdown(calibrations: dict[str, Calibration]) -> str:
    """Both tables in Markdown, for a card."""
    line = lambda cells: f"| {' | '.join(cells)} |"
    tables = []
    for head, *rows in as_rows(calibrations):
        tables.append("\n".join([line(head), line(["---"] * len(head)), *map(line, rows)]))
    return "\n\n".join(tables)
