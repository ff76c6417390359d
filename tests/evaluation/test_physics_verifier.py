"""The verifier of Collisions clips: what it measures on real clips, and what it notices on wrong ones."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from selfflow.autoencoders.linear import LinearAutoencoder, MdctPCA, PatchPCA
from selfflow.data.collisions import Collisions
from selfflow.data.collisions.generate import draw_motion, record
from selfflow.data.collisions.render import render_video
from selfflow.errors import UserError
from selfflow.evaluation.physics import corruptions
from selfflow.evaluation.physics.calibrate import as_markdown, as_text, calibrate, tracking_error
from selfflow.evaluation.physics.energy import energies, energy
from selfflow.evaluation.physics.materials import fit_material_classifiers
from selfflow.evaluation.physics.track import track
from selfflow.evaluation.physics.verifier import fit_classifiers, physics_verifier
from selfflow.evaluation.physics.verify import PASSES, score_clips, track_clip, verify
from tests.conftest import mentions

SETTINGS = Collisions(seed=5)
CLIPS, FITTED = 40, 140


@pytest.fixture(scope="module")
def records():
    return [record(SETTINGS, "test", index) for index in range(CLIPS)]


@pytest.fixture(scope="module")
def train():
    return [record(SETTINGS, "train", index) for index in range(FITTED)]


@pytest.fixture(scope="module")
def judges(train):
    return fit_classifiers(train, SETTINGS)


@pytest.fixture(scope="module")
def seen(records):
    return [track_clip(row["video"], SETTINGS) for row in records]


@pytest.fixture(scope="module")
def calibration(records, judges):
    return calibrate(records, SETTINGS, judges)


def test_the_tracker_is_within_a_third_of_a_unit(calibration):
    assert calibration.unmatched == 0
    assert calibration.tracker.value <= 0.15 and calibration.tracker.n > 25 * CLIPS


def test_bodies_that_touch_are_tracked_as_well(records, seen):
    squares = []
    for row, clip in zip(records, seen):
        error, places, radii = tracking_error(clip.tracks, row), row["positions"], row["radii"]
        for i in range(int(row["count"])):
            for j in range(i):
                close = np.linalg.norm(places[:, i] - places[:, j], axis=1) < radii[i] + radii[j]
                squares += np.square(error[close][:, [i, j]]).ravel().tolist()
    assert len(squares) > 50 and np.sqrt(np.mean(squares)) <= 0.3


def test_two_bodies_of_one_colour_are_two_also_while_they_touch():
    errors = []
    for index in range(80):
        motion = draw_motion(SETTINGS, "test", index)
        if len(motion.scene.bodies) != 2:
            continue
        colour = motion.scene.bodies[0].colour
        bodies = tuple(replace(body, colour=colour) for body in motion.scene.bodies)
        video = render_video(replace(motion, scene=replace(motion.scene, bodies=bodies)))
        truth = {"count": 2, "positions": motion.positions}
        error = tracking_error(track(video, SETTINGS), truth)
        assert error is not None
        errors.append(error)
    assert len(errors) > 15 and np.sqrt(np.nanmean(np.square(errors))) <= 1.0
    assert np.isfinite(errors).mean() > 0.99


@pytest.mark.parametrize("split, size", [("shifted", 32), ("test", 64)])
def test_other_bodies_and_frames_are_tracked_as_well(split, size):
    settings = Collisions(size=size)
    rows = [record(settings, split, index) for index in range(8)]
    found = [track_clip(row["video"], settings) for row in rows]
    errors = [tracking_error(clip.tracks, row) for row, clip in zip(rows, found)]
    assert np.sqrt(np.mean(np.concatenate([np.square(error).ravel() for error in errors]))) <= 0.3
    assert min(row.value for row in score_clips(found, None, settings).rows.values()) >= 0.85


def test_masses_are_areas(records, seen):
    for row, clip in zip(records, seen):
        share = np.array([np.pi, 2, 3 * 3**0.5 / 4])[row["shapes"][: row["count"]]]
        areas = np.sort(share * row["radii"][: row["count"]] ** 2)
        np.testing.assert_allclose(np.sort(clip.tracks.masses), areas, rtol=0.08)


def test_velocities_of_lines_are_the_true_ones(records, seen):
    errors = []
    for row, clip in zip(records, seen):
        count = int(row["count"])
        matched = np.linalg.norm(clip.tracks.positions[:, :, None] - row["positions"][:, None, :count], axis=-1)
        order = matched.mean(axis=0).argmin(axis=1)
        # Inside a line: at its ends a contact may be a frame off.
        piece = clip.lines.piece
        inside = np.zeros(piece.shape, bool)
        inside[:, 1:-1] = (piece[:, 2:] == piece[:, 1:-1]) & (piece[:, :-2] == piece[:, 1:-1])
        true = row["velocities"][:, order].swapaxes(0, 1)
        errors += np.linalg.norm(clip.lines.velocity - true, axis=-1)[inside].tolist()
    assert np.isfinite(errors).all() and np.quantile(errors, 0.95) < 1.5


def test_each_check_passes_real_clips(calibration):
    least = {"unbroken": 0.95, "timbre": 0.85, "kappa": 0.8, "loudness": 0.4}
    for check, row in calibration.checks.items():
        assert row.value >= least.get(check, 0.97), check
        assert row.n > 0.6 * CLIPS, check
    assert min(row.value for row in calibration.with_action.values()) >= 0.97


def test_differences_of_frames_would_flag_the_energy_of_many_real_clips(records, seen):
    flagged = []
    for row, clip in zip(records, seen):
        if np.any(row["action"]):
            continue
        steps = np.diff(clip.tracks.positions, axis=0) * SETTINGS.frames_per_second
        total = (clip.tracks.masses * np.square(steps).sum(axis=-1)).sum(axis=1) / 2
        rise = total[None, :] - 1.1 * total[:, None]
        flagged.append(np.triu(rise > 0, 1).any())
        assert energy(*clip, SETTINGS, row["action"]) >= PASSES["energy"]
    assert np.mean(flagged) > 0.2


def test_the_energy_is_the_true_one_and_the_work_of_a_push_is_subtracted(records, seen):
    unexplained = 0
    for row, clip in zip(records, seen):
        count = int(row["count"])
        share = np.array([np.pi, 2, 3 * 3**0.5 / 4])[row["shapes"][:count]] * row["radii"][:count] ** 2
        true = (share * np.square(row["velocities"][:, :count]).sum(axis=-1)).sum(axis=1) / 2
        total, _ = energies(clip.tracks, clip.lines, 1 / SETTINGS.frames_per_second)
        known = np.isfinite(total)
        assert np.median(np.abs(total - true)[known] if known.any() else 0) < 0.05 * true.max()
        assert energy(*clip, SETTINGS, row["action"]) >= PASSES["energy"]
        unexplained += energy(*clip, SETTINGS, np.zeros_like(row["action"])) < PASSES["energy"]
    pushed = sum(np.any(row["action"]) for row in records)
    assert 3 <= unexplained <= pushed


def test_shifted_and_swapped_audio_is_noticed(calibration):
    for name, (check, auc, n) in calibration.auc.items():
        if name.startswith("audio"):
            assert check == "synchrony" and n > CLIPS // 3
            assert auc >= (0.9 if "audio 1 " in name or "hard" in name else 0.95), name
    assert sum(name.startswith("audio") for name in calibration.auc) == 18


@pytest.mark.parametrize(
    "name, least, flagged",
    [
        ("body teleported", 0.9, 0.75),
        ("body shrinking", 0.95, 0.9),
        ("body duplicated", 0.95, 0.9),
        ("bodies pass through each other", 0.95, 0.8),
        ("world with gravity", 0.7, 0.4),
        ("time reversed, by energy", 0.75, 0.5),
        ("time reversed, by time", 0.95, 0.95),
    ],
)
def test_each_check_flags_its_corruption(calibration, name, least, flagged):
    _, auc, n = calibration.auc[name]
    real, wrong = calibration.flagged[name]
    assert n >= 15 and auc >= least and wrong >= flagged and real <= 0.05


def test_tables_name_every_check_and_corruption_with_its_number(calibration):
    text, markdown = as_text({"real": calibration}), as_markdown({"real": calibration, "again": calibration})
    for name in [*calibration.auc, "kappa", "loudness", "tracker: RMS", *PASSES]:
        assert name in text and name in markdown
    assert f"({calibration.tracker.n})" in text
    assert {line.count("|") for line in markdown.splitlines() if line} == {4, 7}


def test_clips_through_a_lossy_autoencoder_pass(records, train):
    video = LinearAutoencoder.fit(PatchPCA(patch=8, channels=32), [np.stack([row["video"] for row in train[:60]])])
    audio = LinearAutoencoder.fit(
        MdctPCA(temporal_stride=320, channels=128), [np.stack([row["audio"] for row in train[:60]])]
    )
    videos = [video.decode(video.encode(row["video"])) for row in records[:24]]
    tracks = [audio.decode(audio.encode(row["audio"])) for row in records[:24]]
    verdict = verify(videos, tracks, SETTINGS)
    for check, row in verdict.rows.items():
        assert row.value >= 0.85, check
    assert np.nanmean(verdict.score) > 0.95


def test_judges_agree_on_real_clips_and_not_on_swapped_audio(records, seen, judges, train):
    tracks = [row["audio"] for row in records]
    real = score_clips(seen, tracks, SETTINGS, judges)
    swapped = score_clips(seen, tracks[7:] + tracks[:7], SETTINGS, judges)
    assert real.rows["kappa"].value > 0.8 and abs(swapped.rows["kappa"].value) < 0.35
    assert swapped.rows["loudness"].value < real.rows["loudness"].value - 0.2


def test_the_same_clips_give_the_same_judges(records, seen):
    rows = [[row[name] for row in records] for name in ("audio", "material")]
    events = [clip.events for clip in seen]
    first, second = (fit_material_classifiers(rows[0], events, rows[1], SETTINGS) for _ in range(2))
    for source, labels in score_clips(seen, rows[0], SETTINGS, first).materials.items():
        np.testing.assert_array_equal(score_clips(seen, rows[0], SETTINGS, second).materials[source], labels)


def test_checks_that_need_what_is_not_given_are_left_out(records, seen, judges):
    videos, tracks = [row["video"] for row in records[:4]], np.stack([row["audio"] for row in records[:4]])
    alone = verify(videos, None, SETTINGS, judges)
    assert "synchrony" not in alone.rows and "kappa" not in alone.rows and alone.rows["energy"].n == 4
    assert set(alone.materials) == {"motion"} and np.isfinite(alone.score).all()
    heard = verify(None, tracks, SETTINGS, judges)
    assert heard.rows == {} and np.isnan(heard.score).all() and heard.materials["audio"].shape == (4,)
    np.testing.assert_array_equal(verify(np.stack(videos), tracks, SETTINGS).scores["energy"], alone.scores["energy"])
    few = [i for i, row in enumerate(records) if len(row["contacts"]["time"]) < 2]
    scores = score_clips([seen[i] for i in few], [records[i]["audio"] for i in few], SETTINGS).scores
    assert few and np.isnan(scores["synchrony"]).all()


_RNG = np.random.default_rng(0)
HOSTILE = {
    "noise": _RNG.integers(0, 256, (2, 25, 32, 32, 3), np.uint8),
    "sparse noise": (_RNG.integers(0, 256, (2, 25, 32, 32, 3)) * (_RNG.random((2, 25, 32, 32, 1)) < 0.2)).astype("u1"),
    "black": np.zeros((2, 25, 32, 32, 3), np.uint8),
    "white": np.full((2, 25, 32, 32, 3), 255, np.uint8),
    "no clips": np.zeros((0, 25, 32, 32, 3), np.uint8),
    "no frames": np.zeros((2, 0, 32, 32, 3), np.uint8),
    "one pixel": _RNG.integers(0, 256, (2, 25, 1, 1, 3), np.uint8),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_shows_no_bodies_passes_nothing_and_does_not_warn(name, judges):
    videos = HOSTILE[name]
    for tracks in (np.zeros((len(videos), 16000), np.int16), _RNG.integers(-9999, 9999, (len(videos), 700), np.int16)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            verdict = verify(videos, tracks, SETTINGS, judges)
        assert verdict.score.shape == (len(videos),) and not np.nansum(verdict.score)
        assert verdict.rows["bodies"].n == (0 if name.startswith("no ") else len(videos))
        assert all(verdict.rows[check].n == 0 for check in ("energy", "time", "timbre", "kappa", "loudness"))


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_few_frames_leave_out_what_needs_more(records, judges, frames):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verdict = verify([row["video"][:frames] for row in records[:6]], np.zeros((6, 0), np.int16), SETTINGS, judges)
    assert verdict.rows["bodies"] == (1.0, 6)
    assert verdict.rows["time"].n == 0 and verdict.rows["synchrony"].n == 0
    assert frames > 2 or verdict.rows["unbroken"].n == 0


def test_a_silent_clip_and_a_clip_that_stands_still(records, seen, judges):
    silent = score_clips(seen, np.zeros((CLIPS, 16000), np.int16), SETTINGS, judges)
    assert silent.rows["synchrony"].value == 0 and silent.rows["timbre"].value == 0
    assert (silent.materials["audio"] == -1).all() and silent.rows["kappa"].n == 0
    still = verify([np.repeat(row["video"][:1], 25, axis=0) for row in records[:8]], None, SETTINGS, judges)
    assert still.rows["time"].n == 0 and (still.materials["motion"] == -1).all()


def test_wrong_media_and_settings_are_refused(records):
    video, audio = records[0]["video"], records[0]["audio"]
    for videos, audios, settings, words in (
        ([video.astype(np.float32)], None, SETTINGS, "video float32 [25, 32, 32, 3] uint8"),
        ([video[:, :16]], None, SETTINGS, "video uint8 [25, 16, 32, 3] [T, size, size, 3]"),
        (None, [audio.astype(np.float32)], SETTINGS, "float32 [16000] int16"),
        ([video], [audio] * 2, SETTINGS, "1 2"),
        ([video], None, Collisions(gravity=10.0), "collisions.gravity 10"),
    ):
        with pytest.raises(UserError, match=mentions(words)):
            verify(videos, audios, settings)
    with pytest.raises(UserError, match=mentions('two materials="clip"')):
        fit_material_classifiers([audio] * 2, [track_clip(video, SETTINGS).events] * 2, [-1, -1], SETTINGS)
    with pytest.raises(UserError, match=mentions("other ids Collisions")):
        calibrate([records[0] | {"id": "other"}], SETTINGS)


def test_corruptions_are_what_they_say(records):
    waveform = np.arange(1, 9, dtype=np.int16)
    np.testing.assert_array_equal(corruptions.shift(waveform, 3), [0, 0, 0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(corruptions.shift(waveform, -6), [7, 8, 0, 0, 0, 0, 0, 0])
    assert not corruptions.shift(waveform, 20).any() and not corruptions.shift(waveform, -20).any()
    partners = corruptions.random_partners(50)
    assert (partners != np.arange(50)).all() and partners.max() < 50 and corruptions.random_partners(1).tolist() == [-1]
    materials, contacts = [r["material"] for r in records], [len(r["contacts"]["time"]) for r in records]
    hard = corruptions.hard_partners(materials, contacts)
    assert (hard >= 0).any()
    for i, j in enumerate(hard):
        assert j == -1 or (i != j and materials[i] == materials[j] and contacts[i] == contacts[j])
    motion = draw_motion(SETTINGS, "test", 0)
    teleported = corruptions.teleported(motion, np.random.default_rng(0))
    wrong = (teleported != records[0]["video"]).any(axis=(1, 2, 3))
    assert not wrong[: len(wrong) // 4].any() and wrong[-1]


def test_an_unknown_verifier_is_refused():
    toy = SimpleNamespace(kind="toy", verifier="chemistry")
    with pytest.raises(UserError, match=mentions("toy verifier chemistry physics")):
        physics_verifier(toy, ("video",), None)
    assert physics_verifier(SimpleNamespace(kind="toy", verifier=""), ("video",), None) is None
