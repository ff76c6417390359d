"""Controls: batches whose audio belongs less to the video, and in which nothing else is changed."""

import dataclasses

import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.input.mixture import Component
from selfflow.latents.store import shard_name
from tests.conftest import mentions
from tests.input.made import feed, numbers, record, write

MATCHED = Component(("video", "audio"), 1.0, 4, data="a")
STEPS = 50


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    # Longer than the clips, so that their place is drawn too.
    return {"a": write(tmp_path_factory.mktemp("controls") / "a", [record(i, frames=8) for i in range(20)])}


def batches(folders, component, **more):
    return [batch for batch, _ in feed(folders, {"joint": component}, **more).batches(0, STEPS)]


def audio_numbers(stream):
    return [int(x.ravel()[0]) for batch in stream for x in batch["latents"]["audio"]]


def test_shuffled_audio_is_of_another_record_and_the_video_is_the_same(folders):
    matched = batches(folders, MATCHED)
    shuffled = batches(folders, dataclasses.replace(MATCHED, shuffled=("audio",)))
    for a, b in zip(matched, shuffled, strict=True):
        np.testing.assert_array_equal(a["latents"]["video"], b["latents"]["video"])
    own = [i for batch in matched for i in numbers(batch)]
    assert audio_numbers(matched) == own and not any(a == b for a, b in zip(own, audio_numbers(shuffled)))


def test_shuffled_audio_is_drawn_anew_in_each_epoch_and_as_often(folders):
    matched = batches(folders, MATCHED)
    others = audio_numbers(batches(folders, dataclasses.replace(MATCHED, shuffled=("audio",))))
    own = [i for batch in matched for i in numbers(batch)]
    pairs = [dict(zip(own[k : k + 20], others[k : k + 20])) for k in range(0, 200, 20)]
    assert all(a != b for i, a in enumerate(pairs) for b in pairs[:i])
    counts = np.bincount(others, minlength=20)
    assert counts.sum() == 200 and counts.min() >= 7 and counts.max() <= 13  # 10 but for records drawn for themselves


def test_shuffled_batches_are_the_same_from_any_start(folders):
    made = feed(folders, {"joint": dataclasses.replace(MATCHED, shuffled=("audio",))})
    whole = [batch["latents"]["audio"] for batch, _ in made.batches(0, STEPS)]
    for n, (batch, _) in enumerate(made.batches(7, STEPS)):
        np.testing.assert_array_equal(batch["latents"]["audio"], whole[7 + n])


def test_delayed_audio_is_rolled_and_held_out_clips_are_not(folders):
    late = dataclasses.replace(MATCHED, delayed={"audio": 0.08})
    for a, b in zip(batches(folders, MATCHED), batches(folders, late), strict=True):
        np.testing.assert_array_equal(a["latents"]["video"], b["latents"]["video"])
        np.testing.assert_array_equal(np.roll(a["latents"]["audio"], 2, axis=1), b["latents"]["audio"])
    plain, control = (feed(folders, {"joint": component}).held_out(("train",)) for component in (MATCHED, late))
    np.testing.assert_array_equal(plain["joint"][1]["latents"]["audio"], control["joint"][1]["latents"]["audio"])


def test_padding_stays_behind_delayed_audio(tmp_path):
    folders = {"a": write(tmp_path / "a", [record(i, frames=4) for i in range(4)])}
    (batch, *_) = batches(folders, dataclasses.replace(MATCHED, delayed={"audio": 0.04}))
    assert (batch["frames"]["audio"] == 8).all()
    for clip in batch["latents"]["audio"]:
        np.testing.assert_array_equal(clip[:8, 0] % 1 * 64, [3, 0, 0, 1, 1, 2, 2, 3])
        assert (clip[8:] == 0).all()


def test_delays_of_half_a_frame_are_refused(folders):
    with pytest.raises(UserError, match=mentions("mixture.joint.delayed.audio 0.05 1.25 0.04")):
        batches(folders, dataclasses.replace(MATCHED, delayed={"audio": 0.05}))


def test_audio_changes_nothing_of_the_video(folders):
    """An arm without audio draws the same videos as one with it, in the same order."""
    matched, alone = batches(folders, MATCHED), batches(folders, dataclasses.replace(MATCHED, modalities=("video",)))
    for a, b in zip(matched, alone, strict=True):
        assert set(b["latents"]) == {"video"}
        np.testing.assert_array_equal(a["latents"]["video"], b["latents"]["video"])


def test_a_single_record_has_no_other(tmp_path):
    folders = {"a": write(tmp_path / "a", [record(0)])}
    assert len(batches(folders, MATCHED)) == STEPS
    with pytest.raises(UserError, match=mentions("mixture.joint.shuffled one training split a video audio")):
        feed(folders, {"joint": dataclasses.replace(MATCHED, shuffled=("audio",))}).batches(0, STEPS)


def test_an_unreadable_other_is_named(tmp_path):
    folder = write(tmp_path / "a", [record(i) for i in range(20)], per_shard=1)
    (folder / shard_name("train", 7, 20)).write_bytes(b"no record")
    component = dataclasses.replace(MATCHED, shuffled=("audio",))
    from selfflow.input.batches import LoaderOptions

    made = feed({"a": folder}, {"joint": component}, loader=LoaderOptions(unreadable_share=0.2))
    told = [name for _, facts in made.batches(0, STEPS) for name in facts.get("unreadable", ())]
    assert set(told) == {"made-7"} and len(told) >= 15  # as itself and as another's audio
