"""Probe targets of Collisions."""

import numpy as np

from selfflow.data.collisions import Collisions
from selfflow.modality import frames_of_tokens

TARGETS = Collisions().ground_truth


def clip():
    record = {
        "material": 2,
        "count": 2,
        "shapes": np.array([0, 2, -1, -1]),
        "contacts": {"time": np.array([0.0, 0.0799, 0.08, 0.4, 1.99])},
        "positions": np.full((25, 4, 2), 0.0),
        "velocities": np.full((25, 4, 2), 0.0),
    }
    record["positions"][:, 0] = [10, 20]  # right 10, down 20: upper left token of 2 x 2, whose centre is (16, 16)
    record["positions"][:, 1] = [60, 50]
    record["velocities"][:, 1, 0] = np.arange(25)
    return record


def test_targets_of_a_clip():
    targets = TARGETS.of_clip(clip())
    shapes = {"shape/circle": 1, "shape/square": 0, "shape/triangle": 1}
    assert targets == {"material": 2, "count": 2, "contacts": 5.0} | shapes


def test_bodies_in_tokens():
    targets = TARGETS.of_tokens(clip(), (25, 2, 2))
    assert targets.tokens[:2].tolist() == [0, 3] and len(targets.tokens) == 50
    np.testing.assert_array_equal(targets.values["position"][:2], [[-6, 4], [12, 2]])
    np.testing.assert_array_equal(targets.values["velocity"][::2], 0)
    np.testing.assert_array_equal(targets.values["velocity"][1::2], np.stack([np.arange(25), np.zeros(25)], axis=-1))


def test_a_token_of_several_frames_looks_at_its_first():
    targets = TARGETS.of_tokens(clip(), (5, 2, 2))
    assert targets.tokens.tolist() == [0, 3, 4, 7, 8, 11, 12, 15, 16, 19]
    np.testing.assert_array_equal(targets.values["velocity"][1::2, 0], [0, 5, 10, 15, 20])


def test_the_nearest_of_two_bodies_in_a_token():
    record = clip()
    record["positions"][:, 1] = [15, 16]
    targets = TARGETS.of_tokens(record, (25, 2, 2))
    np.testing.assert_array_equal(targets.tokens, np.arange(25) * 4)
    np.testing.assert_array_equal(targets.values["position"], [[-1, 0]] * 25)
    np.testing.assert_array_equal(targets.values["velocity"][:, 0], np.arange(25))


def test_contacts_in_time_steps():
    targets = TARGETS.of_time_steps(clip(), np.arange(26) * 0.08)["contact"]
    assert targets.tolist() == [2, 1, 0, 0, 0, 1] + [0] * 18 + [1]
    assert TARGETS.of_time_steps(clip(), np.arange(6) * 0.4)["contact"].tolist() == [3, 1, 0, 0, 1]
    none = clip() | {"contacts": {"time": np.zeros(0)}}
    assert TARGETS.of_time_steps(none, np.arange(4) * 0.4)["contact"].tolist() == [0, 0, 0]


def test_a_first_frame_that_stands_alone():
    assert frames_of_tokens(25, 7).tolist() == [0, 1, 5, 9, 13, 17, 21, 25]
    assert frames_of_tokens(25, 5).tolist() == [0, 5, 10, 15, 20, 25] and frames_of_tokens(3, 3).tolist() == [
        0,
        1,
        2,
        3,
    ]
    record = clip()
    record["velocities"][:, 0, 0] = np.arange(25)
    targets = TARGETS.of_tokens(record, (7, 2, 2))
    assert targets.tokens.max() < 7 * 4 and set(targets.values["velocity"][:, 0]) >= {1, 5, 9, 13, 17, 21}
