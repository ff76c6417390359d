"""What cannot be asked of clips: labels of one class, cropped clips, torn records, too few sounds."""

import dataclasses

import numpy as np
import pytest

from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.representation import retrieval
from selfflow.representation.features.arrays import Arrays
from selfflow.representation.features.extract import Features
from selfflow.representation.maps import layout_of
from selfflow.representation.probes import probe_run as probing
from selfflow.representation.probes.probe_run import Probing, probe_run
from selfflow.representation.probes.targets import ProbeLabels, Target, select_targets
from selfflow.representation.retrieval import Retrieved, retrieval_rows
from selfflow.run.run import open_run


@pytest.fixture(scope="module")
def run(tiny_run):
    return open_run(tiny_run)


@pytest.fixture(scope="module")
def clips(run):
    return run.data("test")


def labelled(train, validation, test, **more):
    """Arrays of three splits with these labels each, {field: [n]}."""
    latents = {m: np.zeros((1, *shape), np.float32) for m, shape in more["shapes"].items()}
    repeat = lambda n: {m: np.repeat(x, n, axis=0) for m, x in latents.items()}
    sizes = {
        name: len(next(iter(one.values()), range(4))) for name, one in (("a", train), ("b", validation), ("c", test))
    }
    splits = zip(("train", "validation", "test"), (train, validation, test), sizes.items())
    return {
        split: Arrays(repeat(n), [f"{name}{i}" for i in range(n)], {k: np.array(v) for k, v in labels.items()})
        for split, labels, (name, n) in splits
    }


def test_labels_of_one_class_are_named_before_anything_is_computed(run, clips, monkeypatch, capsys):
    class Computed(Exception):
        pass

    def computing(*_, **__):
        raise Computed

    monkeypatch.setattr(probing, "features", computing)
    two, one = {"a": [0, 1, 0, 1], "b": [0, 1, 1, 0]}, {"a": [0, 1, 0, 1], "b": [-1, 4, 4, 4]}
    data = labelled(two, two, one, shapes=clips.shapes)
    with pytest.raises(UserError, match="target b: test: all 3 samples are of class 4: take another split"):
        probe_run(run, Probing(("a", "b")), data=data)
    shifted = {"train": data["train"], "validation": data["validation"], "shifted": data["test"]}
    with pytest.raises(UserError, match="target b: shifted: all 3 samples"):
        probe_run(run, Probing(("b",), split="shifted"), data=shifted)
    with pytest.raises(Computed):
        probe_run(run, Probing(), data=data)
    assert capsys.readouterr().err.splitlines()[0] == "target b is left out: test: all 3 samples are of class 4"
    with pytest.raises(UserError, match="train: all 2 samples are of class 0"):
        probe_run(run, Probing(("a",), clips=2), data=labelled({"a": [0, 0, 1]}, two, two, shapes=clips.shapes))
    with pytest.raises(UserError, match="no label of the data can be probed: name other --targets; there are none"):
        probe_run(run, Probing(), data=labelled({}, {}, {}, shapes=clips.shapes))
    with pytest.raises(UserError, match="data has train, validation, test, and no rest: give train, validation, rest"):
        probe_run(run, Probing(split="rest"), data=data)


def test_what_a_probe_refuses_tells_of_target_and_split(run, monkeypatch):
    def refusing(*splits):
        raise UserError("test: no")

    monkeypatch.setitem(probing._CLASSES, "knn", refusing)
    with pytest.raises(UserError, match="target shape, tested on test: test: no"):
        probe_run(run, Probing(("shape",), (1,), sources=("video",), probe="knn", clips=2))


def test_the_truth_of_whole_clips_is_not_asked_of_cropped_ones(run, clips, monkeypatch):
    mixture = run.experiment.mixture | {"joint": dataclasses.replace(run.experiment.mixture["joint"], seconds=1.0)}
    monkeypatch.setattr(run, "experiment", dataclasses.replace(run.experiment, mixture=mixture))
    for name in ("contacts", "contact", "position", "velocity"):
        with pytest.raises(UserError, match=f"target '{name}': mixture.joint.seconds is 1, .* whole clips of 2 s"):
            select_targets(run, clips, (name,))
    with pytest.raises(UserError, match="bodies and their sounds: mixture.joint.seconds is 1"):
        layout_of(run, clips)
    assert len(select_targets(run, clips, ("shape", "material"))) == 2


def test_clips_whose_raw_record_is_torn_are_asked_nothing(run, clips, monkeypatch, capsys):
    record, torn = clips.record, {2, 5}

    def read(i):
        if i in torn:
            raise BadRecord("test-00000.array_record", f"record {i} is torn")
        return record(i)

    monkeypatch.setattr(clips, "record", read)
    video, there = clips.modalities["video"], [i for i in range(12) if i not in torn]
    x = np.arange(12 * video.tokens, dtype=np.float32).reshape(12, -1, 1)
    found = Features(clips.ids, {}, {1: {"video": x}}, {}, {"video": video.grid})
    asked = ProbeLabels(run, clips)
    (contacts,) = asked.of(Target("contacts", "number"), found, 1, ("video",))
    assert contacts.ids.tolist() == [clips.ids[i] for i in there] and len(contacts.y) == 10
    np.testing.assert_array_equal(contacts.x, x[there])
    (tokens,) = asked.of(Target("position", "token"), found, 1, ("video",))
    assert len(tokens.ids) == len(tokens.x) == len(tokens.y) and {*tokens.ids} == {*contacts.ids}
    told = capsys.readouterr().err
    assert told.count("warning") == 1 and "2 raw records cannot be read" in told and "record 2 is torn" in told
    torn = set(range(12))
    with pytest.raises(UserError, match="none of the raw records of 12 clips"):
        ProbeLabels(run, clips).of(Target("shape", "class"), found, 1, ("video",))


class Many(Arrays):
    """Clips of film and sound, of four materials, one of which cannot be read."""

    def __init__(self, modalities, count):
        latents = {m: np.broadcast_to(np.float32(0), (count, *modalities[m].latent)) for m in ("video", "audio")}
        super().__init__(latents, range(count), {"material": np.arange(count) % 4})
        self.modalities = modalities

    def latents(self, i):
        if i == 3:
            raise BadRecord("test-00000.array_record", "torn")
        return super().latents(i)


@pytest.mark.parametrize("queries, clips_read", [(1, 127), (20, 159), (99, 299)])
def test_sounds_are_found_among_clips_that_can_be_read(run, clips, monkeypatch, capsys, queries, clips_read):
    def seen(apply, params, modalities, null_label, latents, material, settings, chosen):
        assert {len(x) for x in latents.values()} == {len(material)} == {clips_read}
        np.testing.assert_array_equal(material, np.delete(np.arange(clips_read + 1) % 4, 3))
        assert chosen.tolist() == list(range(queries))
        return Retrieved(chosen, np.zeros((queries, 16), int), np.zeros((queries, 16)), np.ones((queries, 16), bool))

    monkeypatch.setattr(run, "data", lambda *_: Many(clips.modalities, 300))
    monkeypatch.setattr(retrieval, "retrieve", seen)
    assert [row.test_n for row in retrieval_rows(run, queries)] == [queries, queries]
    assert "1 clips cannot be read" in capsys.readouterr().err


def test_retrieval_that_cannot_be_is_refused(run):
    for queries in (0, -3):
        with pytest.raises(UserError, match=f"--retrieval is {queries}: give the number of films, at least 1"):
            retrieval_rows(run, queries)
    with pytest.raises(UserError, match="component 'image' has no"):
        retrieval_rows(run, 1, component="image")
    with pytest.raises(UserError, match="16 candidates need 8: give more clips, as of a larger split$"):
        retrieval_rows(run, 1)
