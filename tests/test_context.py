import dataclasses

import jax
import numpy as np
import pytest
from scipy import stats

from selfflow.context import (
    CASES,
    draw_context,
    first_frame_context,
    inpaint_region_context,
    inpaint_time_context,
    modality_context,
    prefix_context,
)
from selfflow.errors import UserError
from selfflow.modality import Modality
from selfflow.noise import DualTimestep, UniformTimestep

VIDEO, AUDIO = Modality((5, 4, 6, 3), (1, 2, 2), period=8.0), Modality((10, 6), (2,), period=4.0)
PAIR = {"video": VIDEO, "audio": AUDIO}
KEYS = jax.random.split(jax.random.key(0), 4000)


def draws(table, modalities=PAIR):
    return {m: np.asarray(mask) for m, mask in draw_context(KEYS, table, modalities).items()}


def test_cases_come_as_often_as_the_table_says_and_independently_of_the_taus():
    table = {"modality": 0.2, "first_frame": 0.1}
    masks = draws(table)
    video, audio = masks["video"], masks["audio"]
    kinds = [video.all(1), audio.all(1), video.any(1) & ~video.all(1), ~video.any(1) & ~audio.any(1)]
    counts = np.array([kind.sum() for kind in kinds])
    assert counts.sum() == len(KEYS)  # nothing else was drawn
    expected = np.array([0.1, 0.1, 0.1, 0.7]) * len(KEYS)
    assert stats.chisquare(counts, expected).pvalue > 1e-4
    schedule = UniformTimestep(context=table, draw="per_modality")
    tau = np.asarray(schedule.sample(KEYS, {"video": 30, "audio": 5}).levels["video"])[:, 0]
    held = schedule.with_context(schedule.sample(KEYS, {"video": 30, "audio": 5}), KEYS, PAIR).context["audio"]
    assert stats.ks_2samp(tau[np.asarray(held).all(1)], tau).pvalue > 1e-4


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("modalities", [PAIR, {"image": Modality((4, 6, 3), (2, 2))}, {"audio": AUDIO}])
def test_every_sample_keeps_a_token_to_generate(case, modalities):
    masks = draws({case: 1.0}, modalities)
    assert not np.concatenate([*masks.values()], axis=1).all(axis=1).any()
    applies = {
        "modality": len(modalities) > 1,
        "first_frame": "video" in modalities,
        "inpaint_region": "audio" != [*modalities][0],
    }
    applies |= dict.fromkeys(("prefix", "inpaint_time"), "audio" in modalities)
    assert np.concatenate([*masks.values()], axis=1).any() == applies[case]


def test_with_three_modalities_every_proper_subset_is_context():
    masks = draws({"modality": 1.0}, PAIR | {"image": Modality((4, 6, 3), (2, 2))})
    whole = np.stack([masks[m].all(axis=1) for m in sorted(masks)], axis=1)
    subsets, counts = np.unique(whole, axis=0, return_counts=True)
    assert len(subsets) == 6 and stats.chisquare(counts).pvalue > 1e-4


def test_a_prefix_ends_at_one_time_in_all_modalities():
    masks = draws({"prefix": 1.0})
    frames, steps = masks["video"].reshape(-1, 5, 6).all(axis=2), masks["audio"]
    assert (masks["video"].reshape(-1, 5, 6).any(axis=2) == frames).all()
    assert (np.diff(frames.astype(int), axis=1) <= 0).all() and (np.diff(steps.astype(int), axis=1) <= 0).all()
    assert (frames.sum(1) == steps.sum(1)).all()  # here a token of either lasts 80 ms
    assert stats.chisquare(np.bincount(frames.sum(1))).pvalue > 1e-4  # the end is uniform


def test_masks_by_hand():
    np.testing.assert_array_equal(prefix_context(PAIR, 16.0)["audio"], [1, 1, 0, 0, 0])
    np.testing.assert_array_equal(prefix_context(PAIR, 15.0)["audio"], [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(inpaint_time_context(PAIR, 8.0, 20.0)["audio"], [1, 0, 0, 1, 1])
    video = np.asarray(inpaint_time_context(PAIR, 8.0, 20.0)["video"]).reshape(5, 2, 3)
    assert video[[0, 3, 4]].all() and not video[[1, 2]].any()
    first = first_frame_context(PAIR)
    assert (
        np.asarray(first["video"]).reshape(5, 6)[0].all() and np.sum(first["video"]) == 6 and not first["audio"].any()
    )
    region = inpaint_region_context(PAIR, 0.5, 0.0, 1.0, 0.5)
    np.testing.assert_array_equal(np.asarray(region["video"]).reshape(5, 2, 3)[3], [[1, 0, 0], [1, 1, 1]])
    assert not region["audio"].any()
    assert modality_context(PAIR, ("audio",))["audio"].all()


def test_context_tokens_are_a_level_of_their_own_and_stay_clean_for_the_teacher():
    schedule = DualTimestep(mask_ratio={"video": 0.1, "audio": 0.5}, context={"prefix": 1.0})
    keys_B = KEYS[:64]
    corruption = schedule.with_context(schedule.sample(keys_B, {"video": 30, "audio": 5}), keys_B, PAIR)
    for view in (corruption, corruption.at_min_level()):
        for m, tau_BN in view.tau().items():
            assert (np.asarray(tau_BN)[np.asarray(corruption.context[m])] == 0).all()
            assert (np.asarray(tau_BN)[~np.asarray(corruption.context[m])] > 0).all()
    assert corruption.levels["video"].shape == (64, 3)


def test_without_a_table_nothing_changes():
    schedule = DualTimestep()
    corruption = schedule.sample(KEYS[:2], {"video": 30, "audio": 5})
    assert schedule.with_context(corruption, KEYS[:2], PAIR) is corruption


@pytest.mark.parametrize(
    "table, message",
    [
        ({"last_frame": 0.1}, "schedule.context names 'last_frame'"),
        ({"prefix": -0.1}, "schedule.context.prefix is -0.1"),
        ({"prefix": 0.6, "inpaint_region": 0.5}, "schedule.context sums to 1.1"),
    ],
)
def test_invalid_tables_are_named(table, message):
    with pytest.raises(UserError, match=message):
        UniformTimestep(context=table)


def test_context_tokens_weigh_nothing_in_the_objective(objective, batch, keys_B):
    draw = dataclasses.replace(objective, schedule=DualTimestep(context={"modality": 1.0})).draw(keys_B, batch)
    for m, context_BN in draw.student.corruption.context.items():
        assert np.asarray(context_BN).any()
        assert (np.asarray(draw.weight[m])[np.asarray(context_BN)] == 0).all()
