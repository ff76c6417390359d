"""Batches: the same for every number of readers, from every start; cropped, padded, excluded, and never poisoned."""

import dataclasses

import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.input.batches import LoaderOptions
from selfflow.input.mixture import Component, Stage
from selfflow.latents.store import shard_name
from tests.conftest import mentions
from tests.input.made import MODALITIES, feed, numbers, record, write

MIXTURE = {
    "joint": Component(("video", "audio"), 0.5, 4, data="a"),
    "images": Component(("image",), 0.3, 8, data="b"),
    "more": Component(("image",), 0.2, 4, data="a"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("latents")
    return {
        "a": write(root / "a", [record(i) for i in range(20)], labels=np.arange(20) % 3, name="a"),
        "b": write(root / "b", [record(100 + i, ("image",)) for i in range(12)], name="b"),
    }


def seen(feed, start=0, steps=24, rows=None):
    return [(facts["component"], numbers(batch)) for batch, facts in feed.batches(start, steps, rows)]


def part(number, parts):
    """The rows of one of several equal parts."""
    return lambda size: np.arange(size).reshape(parts, -1)[number]


def test_readers_yield_the_same_global_batches(folders):
    whole = seen(feed(folders, MIXTURE))
    assert {name for name, _ in whole} == set(MIXTURE) and len(whole) == 24
    for parts in (2, 4):
        cut = [seen(feed(folders, MIXTURE), rows=part(number, parts)) for number in range(parts)]
        joined = [(rows[0][0], sum((r[1] for r in rows), [])) for rows in zip(*cut)]
        assert joined == whole


def test_a_reader_yields_any_rows(folders):
    """Those of devices that lie apart, or that other processes read too; facts are of the whole batch."""
    whole = [(numbers(batch), facts) for batch, facts in feed(folders, MIXTURE).batches(0, 24)]
    found = list(feed(folders, MIXTURE).batches(0, 24, lambda size: np.array([0, size - 2, size - 1])))
    for (batch, facts), (everything, expected) in zip(found, whole, strict=True):
        assert numbers(batch) == [everything[0], everything[-2], everything[-1]] and facts == expected


@pytest.mark.resilience
def test_reader_processes_yield_the_same_batches(folders):
    """The same in worker processes, whatever their number, from a step in the middle."""
    made = feed(folders, MIXTURE)
    whole = seen(made)
    for workers in (1, 2):
        assert seen(dataclasses.replace(made, loader=LoaderOptions(workers=workers)), start=5) == whole[5:]


def test_a_run_resumes_with_the_next_sample_on_another_number_of_readers(folders):
    whole = seen(feed(folders, MIXTURE))
    first = whole[:7]
    then = [seen(feed(folders, MIXTURE), start=7, rows=part(number, 2)) for number in range(2)]
    assert first + [(a[0], a[1] + b[1]) for a, b in zip(*then)] == whole


def test_no_record_is_repeated_or_lost_in_an_epoch(folders):
    """By ids: what the components saw, whatever the mixture did between."""
    found = seen(feed(folders, MIXTURE), steps=60)
    for name, records in (("joint", range(20)), ("images", range(100, 112)), ("more", range(20))):
        drawn = [i for n, rows in found if n == name for i in rows]
        epochs = len(drawn) // len(records)
        assert epochs >= 2
        for epoch in range(epochs):
            assert sorted(drawn[epoch * len(records) : (epoch + 1) * len(records)]) == list(records)
        assert drawn[: len(records)] != drawn[len(records) : 2 * len(records)]


def test_ids_of_a_step_are_those_of_its_samples(folders):
    """Of the whole batch, also where a process reads some of its rows; asked for in any order."""
    made = feed(folders, MIXTURE)
    whole = seen(made)
    for batches in (made.batches(0, 24), made.batches(7, 24, part(1, 2))):
        for step in (23, 0, 11, 7, 8):
            letter = {"joint": "a", "images": "b", "more": "a"}[whole[step][0]]
            assert batches.ids(step) == [f"{letter}-{i % 100}" for i in whole[step][1]]


def test_seed_and_mixture_alone_decide(folders):
    assert seen(feed(folders, MIXTURE)) == seen(feed(folders, MIXTURE, loader=LoaderOptions(threads=1, prefetch=1)))
    assert seen(feed(folders, MIXTURE)) != seen(feed(folders, MIXTURE, seed=1))


def test_excluded_ids_are_never_read(folders):
    """Not even from the disk: the source is asked for every record but these."""
    made = feed(folders, MIXTURE, exclude=("a-3", "a-17", "b-0", "nobody"))
    asked = set()
    for name in MIXTURE:
        reader = made.reader(name, "train")
        asked |= {reader.source.id(i) for i in reader.records}
    assert len(asked) == 20 + 12 - 3 and not asked & {"a-3", "a-17", "b-0"}
    drawn = {i for _, rows in seen(made, steps=60) for i in rows}
    assert drawn == (set(range(20)) | set(range(100, 112))) - {3, 17, 100}
    _, batch = made.held_out(("train",), 20)["joint"]
    assert not {3, 17} & set(numbers(batch))


def test_a_floor_on_quality_and_its_change_at_a_step(tmp_path):
    folder = write(tmp_path / "a", [record(i) for i in range(8)], quality=np.arange(8) / 8)
    mixture = {"image": Component(("image",), 1.0, 2, data="a", quality=0.5)}
    found = seen(feed({"a": folder}, mixture, curriculum=(Stage(step=6, quality={"image": 0.0}),)), steps=16)
    assert {i for _, rows in found[:6] for i in rows} == {4, 5, 6, 7}
    assert {i for _, rows in found[6:] for i in rows} == set(range(8))
    with pytest.raises(UserError, match=mentions("mixture.image quality 2 training split a")):
        feed({"a": folder}, {"image": dataclasses.replace(mixture["image"], quality=2.0)}).batches(0, 4)


def test_longer_clips_are_cropped_at_one_time_for_all_modalities(tmp_path):
    folder = write(tmp_path / "a", [record(i, frames=9) for i in range(8)])
    starts = set()
    for batch, _ in feed({"a": folder}, {"joint": Component(("video", "audio"), 1.0, 4, data="a")}).batches(0, 12):
        assert "frames" not in batch  # nothing is padded
        video, audio = batch["latents"]["video"][:, :, 0, 0, 0], batch["latents"]["audio"][:, :, 0]
        np.testing.assert_array_equal(audio[:, ::2], video)
        moments = (video - np.floor(video)) * 64
        np.testing.assert_array_equal(moments, moments[:, :1] + np.arange(5))
        starts |= set(moments[:, 0].astype(int).tolist())
    assert starts == {0, 1, 2, 3, 4}


def test_videos_with_a_separate_first_frame_are_cropped_at_their_start(tmp_path):
    folder = write(tmp_path / "a", [record(i, frames=9) for i in range(8)])
    made = feed({"a": folder}, {"joint": Component(("video", "audio"), 1.0, 4, data="a")})
    causal = dataclasses.replace(made.modalities["joint"]["video"], offset=(-6.0, 0.0, 0.0, 0.0))
    made = dataclasses.replace(made, modalities={"joint": made.modalities["joint"] | {"video": causal}})
    for batch, _ in made.batches(0, 12):
        for m, each in (("video", 1), ("audio", 2)):
            first = batch["latents"][m].reshape(4, 5 * each, -1)[:, :, 0]
            np.testing.assert_array_equal((first - np.floor(first)) * 64, np.tile(np.arange(5 * each) // each, (4, 1)))


def test_shorter_clips_are_padded_and_report_their_frames(tmp_path):
    lengths = [5, 3, 5, 2, 7, 5, 1, 5]
    folder = write(tmp_path / "a", [record(i, frames=n) for i, n in enumerate(lengths)])
    for batch, _ in feed({"a": folder}, {"joint": Component(("video", "audio"), 1.0, 4, data="a")}).batches(0, 6):
        expected = [min(lengths[i], 5) for i in numbers(batch)]
        assert batch["frames"]["video"].tolist() == expected
        assert batch["frames"]["audio"].tolist() == [2 * n for n in expected]
        for row, n in enumerate(expected):
            assert (batch["latents"]["video"][row, n:] == 0).all() and batch["latents"]["video"].shape[1] == 5


def test_stochastic_latents_are_drawn_anew_each_epoch_with_their_moments(tmp_path):
    std = np.full(MODALITIES["image"].latent, 0.5, np.float16)
    records = [record(i, ("image",)) | {"image.std": std} for i in range(4)]
    made = feed({"a": write(tmp_path / "a", records)}, {"image": Component(("image",), 1.0, 4, data="a")})
    batches = [batch for batch, _ in made.batches(0, 300)]
    drawn = np.stack([b["latents"]["image"][np.argsort(_order(b))] for b in batches])
    noise = (drawn - np.arange(4)[None, :, None, None, None]) / 0.5  # 300 epochs of 4 records of 12 numbers
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size) and abs(noise.std() - 1) < 5 / np.sqrt(2 * noise.size)
    assert not np.array_equal(drawn[0], drawn[1])
    again = [batch["latents"]["image"] for batch, _ in made.batches(7, 10)]
    for a, b in zip(again, batches[7:]):
        np.testing.assert_array_equal(a, b["latents"]["image"])


def _order(batch) -> np.ndarray:
    return np.round(batch["latents"]["image"].mean((1, 2, 3))).astype(int)


def test_labels_and_captions_belong_to_their_samples(tmp_path):
    records = [record(i, ("image",)) for i in range(6)]
    for i in (0, 1, 2, 3):
        records[i]["caption"] = np.full((i + 2, 3), i, np.float16)  # up to 5 tokens, cut at 4; two records have none
    folder = write(tmp_path / "a", records, labels=[0, 1, 2, 0, 1, -1])
    made = feed({"a": folder}, {"x": Component(("image",), 1.0, 3, data="a")}, label="kind", classes=3, caption=(4, 3))
    for batch, _ in made.batches(0, 6):
        embedding, mask = batch["caption"]
        for row, i in enumerate(numbers(batch)):
            assert batch["label"][row] == [0, 1, 2, 0, 1, -1][i]
            length = min(i + 2, 4) if i < 4 else 0
            assert mask[row].tolist() == [True] * length + [False] * (4 - length)
            assert (embedding[row, :length] == i).all() and (embedding[row, length:] == 0).all()


def test_labels_and_modalities_that_the_data_lacks_are_named(folders):
    with pytest.raises(UserError, match=mentions("label colour kind")):
        feed(folders, MIXTURE, label="colour", classes=3).batches(0, 4)
    with pytest.raises(UserError, match=mentions("label kind 2 model.labels 3")):
        feed(folders, MIXTURE, label="kind", classes=2).batches(0, 4)
    with pytest.raises(UserError, match=mentions("mixture.clips training split b video")):
        feed(folders, {"clips": Component(("video",), 1.0, 4, data="b")}).batches(0, 4)


DAMAGE = {
    "flipped": ("image", None),
    "nan": ("image", np.full((2, 2, 3), np.nan, np.float16)),
    "inf": ("image", np.full((2, 2, 3), np.inf, np.float16)),
    "wrong shape": ("image", np.zeros((2, 3, 3), np.float16)),
    "missing": ("audio", np.zeros((10, 4), np.float16)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_corrupt_record_keeps_its_slot_with_weight_0_and_is_named(tmp_path, kind, capsys):
    name, value = DAMAGE[kind]
    records = [record(i, ("image",)) for i in range(20)]
    folder = write(tmp_path / "a", records)
    if value is not None:
        records[6] = {name: value}
        index = (folder / "train.index.safetensors").read_bytes()
        write(folder, records)
        (folder / "train.index.safetensors").write_bytes(index)  # which promises an image
    else:
        path = folder / shard_name("train", 1, 5)
        data = bytearray(path.read_bytes())
        at = data.find(np.full(4, 6, np.float16).tobytes())
        data[at + 3] ^= 16
        path.write_bytes(data)
    mixture = {"x": Component(("image",), 1.0, 5, data="a")}
    made = feed({"a": folder}, mixture, loader=LoaderOptions(unreadable_share=0.1))
    batches = list(made.batches(0, 8))
    lost = [(step, row) for step, (batch, _) in enumerate(batches) for row in np.flatnonzero(batch["weight"] == 0)]
    assert len(lost) == 2  # once an epoch
    for step, (batch, facts) in enumerate(batches):
        assert np.isfinite(batch["latents"]["image"]).all() and batch["weight"].sum() >= 4
        assert facts.get("unreadable", []) == (["made-6"] if step in [s for s, _ in lost] else [])
    others = [i for (batch, _) in batches for i, w in zip(numbers(batch), batch["weight"]) if w]
    assert sorted(others) == sorted(2 * [i for i in range(20) if i != 6])
    err = capsys.readouterr().err
    assert mentions("made-6 train-00001-of-00005.array_record").search(err) and err.count("made-6") == 1
    strict = dataclasses.replace(made, loader=LoaderOptions(unreadable_share=0.01))
    shard = folder / shard_name("train", 1, 5)
    with pytest.raises(UserError, match=mentions("mixture.x 1 20 loader.unreadable_share 0.01", shard)):
        list(strict.batches(0, 8))


def test_a_truncated_shard_stops_the_run_by_name(tmp_path):
    folder = write(tmp_path / "a", [record(i, ("image",)) for i in range(20)])
    path = folder / shard_name("train", 2, 5)
    path.write_bytes(path.read_bytes()[:-40])
    made = feed({"a": folder}, {"x": Component(("image",), 1.0, 5, data="a")})
    with pytest.raises(UserError, match=mentions("mixture.x loader.unreadable_share 0.01", path)):
        list(made.batches(0, 8))


_READER = """
import multiprocessing, sys, time
from pathlib import Path
from selfflow.input.batches import LoaderOptions
from tests.input.test_batches import MIXTURE
from tests.input.made import feed

if __name__ == "__main__":
    made = feed({"a": Path(sys.argv[1]), "b": Path(sys.argv[2])}, MIXTURE, loader=LoaderOptions(workers=1))
    stream = iter(made.batches(0, 1000))
    next(stream)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(60)
"""


@pytest.mark.resilience
def test_reader_processes_end_with_a_killed_parent(folders):
    import subprocess
    import sys
    import time
    from pathlib import Path

    arguments = [sys.executable, "-c", _READER, str(folders["a"]), str(folders["b"])]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2]
    )
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert workers
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20

    def running(pid):
        status = Path(f"/proc/{pid}/status")
        return status.exists() and "\nState:\tZ" not in status.read_text(encoding="utf-8")

    while any(running(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker waits for a parent that is gone"
        time.sleep(0.1)
