"""Shortcuts: the material shows in motion and audio, and in nothing else.

2000 clips to fit and 2000 to score: one standard error of an accuracy near chance is 1 point, so that a probe
whose true accuracy is at chance stays below chance + 5 points and one that finds a leak of 8 does not.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from selfflow.data.collisions import Collisions
from selfflow.data.collisions.generate import record
from selfflow.data.collisions.kinematics import FEATURES, features

pytestmark = pytest.mark.slow  # 4000 clips

CLIPS = 4000
CHANCE = 0.25
SETTINGS = Collisions(seed=11)


def clips(start: int, stop: int) -> list[dict]:
    return [record(SETTINGS, "train", index) for index in range(start, stop)]


@pytest.fixture(scope="module")
def records():
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        return sum(pool.map(clips, range(0, CLIPS, 100), range(100, CLIPS + 1, 100)), [])


@pytest.fixture(scope="module")
def labels(records):
    return np.array([row["material"] for row in records])


def boosted() -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(
        max_iter=50, max_leaf_nodes=8, min_samples_leaf=30, early_stopping=False, random_state=0
    )


def linear():
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.01))


def accuracy(probe, inputs: np.ndarray, labels: np.ndarray) -> float:
    inputs = np.asarray(inputs, np.float32).reshape(len(labels), -1)
    half = len(labels) // 2
    # One thread: these fits are small, and threads that wait for each other on busy cores make them crawl.
    with threadpool_limits(1):
        return probe.fit(inputs[:half], labels[:half]).score(inputs[half:], labels[half:])


def test_materials_are_even_and_independent_of_looks(records, labels):
    assert np.bincount(labels, minlength=4).min() > 0.22 * CLIPS
    looks = [np.concatenate([[row["count"]], row["shapes"], row["radii"], row["image"].max((0, 1))]) for row in records]
    assert accuracy(boosted(), looks, labels) <= CHANCE + 0.05


def test_the_mean_raw_video_token_does_not_tell_the_material(records, labels):
    video = np.stack([row["video"] for row in records]).astype(np.float32) / 255
    tokens = video.reshape(CLIPS, 5, 5, 8, 4, 8, 4, 3).mean((1, 3, 5))
    for probe in (boosted(), linear()):
        assert accuracy(probe, tokens, labels) <= CHANCE + 0.05


@pytest.mark.parametrize("frame", [0, 2, 4, 6, 8, 10, 12, 15, 18, 21, 24])
def test_no_single_frame_tells_the_material(records, labels, frame):
    image = np.stack([row["video"][frame] for row in records]).astype(np.float32) / 255
    shown = image.max(-1)
    # What a leak would look like: bodies that linger at walls (outer rows and columns) and at each other.
    sides = [side for i in range(4) for side in (shown[:, i], shown[:, -1 - i], shown[:, :, i], shown[:, :, -1 - i])]
    walls = np.concatenate([np.sort(np.stack([side.max(1) for side in sides[i : i + 4]]), 0) for i in range(0, 16, 4)])
    spread = np.concatenate([(shown > 0.3).sum(1), (shown > 0.3).sum(2)], axis=1)
    assert accuracy(boosted(), walls.T, labels) <= CHANCE + 0.05
    assert accuracy(boosted(), spread, labels) <= CHANCE + 0.05
    assert accuracy(linear(), shown, labels) <= CHANCE + 0.05
    assert accuracy(linear(), image.reshape(CLIPS, 16, 2, 16, 2, 3).mean((2, 4)), labels) <= CHANCE + 0.05


def places(row: dict, frame: int) -> np.ndarray:
    """What the truth about one frame holds: gaps of every body to the walls and between bodies, closest first."""
    count = row["count"]
    position, radius = row["positions"][frame, :count], row["radii"][:count, None]
    gaps = np.sort(np.concatenate([position - radius, 64 - position - radius], 1), 1)[:, :2]
    out = np.full(10, 99.0)
    gaps = gaps[np.argsort(gaps[:, 0])].reshape(-1)
    out[: len(gaps)] = gaps
    pairs = [(i, j) for i in range(count) for j in range(i)]
    between = [np.linalg.norm(position[i] - position[j]) - radius[i, 0] - radius[j, 0] for i, j in pairs]
    out[6 : 6 + len(between)] = sorted(between)
    out[9] = count
    return out


@pytest.mark.parametrize("frame", [2, 4, 6, 8, 12, 18, 24])
def test_the_true_places_at_one_time_do_not_tell_the_material(records, labels, frame):
    assert accuracy(boosted(), [places(row, frame) for row in records], labels) <= CHANCE + 0.05


def test_true_kinematics_tell_the_material(records, labels):
    inputs = np.stack([features(row) for row in records])
    assert inputs.shape == (CLIPS, len(FEATURES)) and np.isfinite(inputs).all()
    assert accuracy(boosted(), inputs, labels) >= 0.95


def test_kinematics_read_neither_sound_nor_material(records):
    for row in records[:50]:
        allowed = {"count": row["count"], "velocities": row["velocities"], "positions": row["positions"]}
        allowed["contacts"] = {name: row["contacts"][name] for name in ("time", "bodies")}
        np.testing.assert_array_equal(features(allowed), features(row))


def test_sound_tells_the_material(records, labels):
    spectra = np.stack([np.abs(np.fft.rfft(row["audio"][:16000].astype(np.float32))) for row in records])
    bands = np.log(spectra[:, :8000].reshape(CLIPS, 100, -1).mean(-1) + 1)
    assert accuracy(boosted(), bands - bands.mean(1, keepdims=True), labels) >= 0.95


def test_clipping_is_rare_and_loudness_varies(records):
    peaks = np.array([np.abs(row["audio"].astype(int)).max() for row in records]) / 32767
    assert peaks.max() < 1 and 0.05 < np.median(peaks) < 0.3 and peaks.std() > 0.03
    crowded = [record(SETTINGS, "shifted", index)["audio"] for index in range(100)]
    assert np.mean([np.abs(audio.astype(int)).max() >= 32767 for audio in crowded]) <= 0.03
    assert all(len(row["contacts"]["time"]) for row in records)
