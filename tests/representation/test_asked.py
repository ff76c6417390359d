"""Probe targets that are refused or left out: one class, cropped clips, unreadable records, too few candidates."""

import dataclasses

import numpy as np
import pytest

from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.representation import retrieval
from selfflow.representation.features.arrays import Arrays
from selfflow.representation.features.extract import Features
from selfflow.representation.maps import layout_of
from selfflow.representation.probes import fit
from selfflow.representation.probes import probe_run as probing
from selfflow.representation.probes.probe_run import Probing, probe_run
from selfflow.representation.probes.targets import ProbeLabels, Target, dataset_of, select_targets
from selfflow.representation.retrieval import Retrieved, retrieval_rows
from selfflow.run.run import open_run
from tests.conftest import mentions


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
    with pytest.raises(UserError, match=mentions("target b test 3 class 4")):
        probe_run(run, Probing(("a", "b")), data=data)
    shifted = {"train": data["train"], "validation": data["validation"], "shifted": data["test"]}
    with pytest.raises(UserError, match=mentions("target b shifted 3 class 4")):
        probe_run(run, Probing(("b",), split="shifted"), data=shifted)
    with pytest.raises(Computed):
        probe_run(run, Probing(), data=data)
    assert mentions("target b test 3 class 4").search(capsys.readouterr().err.splitlines()[0])
    with pytest.raises(UserError, match=mentions("target a train 2 class 0")):
        probe_run(run, Probing(("a",), clips=2), data=labelled({"a": [0, 0, 1]}, two, two, shapes=clips.shapes))
    with pytest.raises(UserError, match=mentions("label --targets none")):
        probe_run(run, Probing(), data=labelled({}, {}, {}, shapes=clips.shapes))
    with pytest.raises(UserError, match=mentions("data train, validation, test rest")):
        probe_run(run, Probing(split="rest"), data=data)


def test_errors_of_a_probe_name_target_and_split(run, monkeypatch):
    def refusing(*splits):
        raise UserError("test: no")

    monkeypatch.setitem(fit.CLASSIFIERS, "knn", refusing)
    with pytest.raises(UserError, match=mentions("target shape test: no")):
        probe_run(run, Probing(("shape",), (1,), sources=("video",), probe="knn", clips=2))


def test_targets_of_whole_clips_are_refused_for_cropped_ones(run, clips, monkeypatch):
    mixture = run.experiment.mixture | {"joint": dataclasses.replace(run.experiment.mixture["joint"], seconds=1.0)}
    monkeypatch.setattr(run, "experiment", dataclasses.replace(run.experiment, mixture=mixture))
    for name in ("contacts", "contact", "position", "velocity"):
        with pytest.raises(UserError, match=mentions("target", name, "mixture.joint.seconds 1 2 s")):
            select_targets(run, clips, (name,))
    with pytest.raises(UserError, match=mentions("mixture.joint.seconds 1")):
        layout_of(run, clips)
    assert len(select_targets(run, clips, ("shape", "material"))) == 2


def test_clips_whose_raw_record_is_unreadable_are_left_out(run, clips, monkeypatch, capsys):
    record, torn = clips.record, {2, 5}

    def read(i):
        if i in torn:
            raise BadRecord("test-00000.array_record", f"record {i} is torn")
        return record(i)

    monkeypatch.setattr(clips, "record", read)
    video, readable = clips.modalities["video"], [i for i in range(12) if i not in torn]
    x = np.arange(12 * video.tokens, dtype=np.float32).reshape(12, -1, 1)
    layer = Features(clips.ids, {}, {1: {"video": x}}, {}, {"video": video.grid})
    asked = ProbeLabels(clips, dataset_of(run, clips))
    (contacts,) = asked.of(Target("contacts", "number"), layer, 1, ("video",))
    assert contacts.ids.tolist() == [clips.ids[i] for i in readable] and len(contacts.y) == 10
    np.testing.assert_array_equal(contacts.x, x[readable])
    (tokens,) = asked.of(Target("position", "token"), layer, 1, ("video",))
    assert len(tokens.ids) == len(tokens.x) == len(tokens.y) and {*tokens.ids} == {*contacts.ids}
    err = capsys.readouterr().err
    assert err.count("warning") == 1 and mentions("2 raw records record 2 is torn").search(err)
    torn = set(range(12))
    with pytest.raises(UserError, match=mentions("none raw records 12")):
        ProbeLabels(clips, dataset_of(run, clips)).of(Target("shape", "class"), layer, 1, ("video",))


class Many(Arrays):
    """Clips of video and audio, of four materials, one of which cannot be read."""

    def __init__(self, modalities, count):
        latents = {m: np.broadcast_to(np.float32(0), (count, *modalities[m].latent)) for m in ("video", "audio")}
        super().__init__(latents, range(count), {"material": np.arange(count) % 4})
        self.modalities = modalities

    def latents(self, i):
        if i == 3:
            raise BadRecord("test-00000.array_record", "torn")
        return super().latents(i)


@pytest.mark.parametrize("queries, clips_read", [(1, 127), (20, 159), (99, 299)])
def test_audio_is_retrieved_among_clips_that_can_be_read(run, clips, monkeypatch, capsys, queries, clips_read):
    def seen(apply, params, modalities, null_label, latents, material, settings, chosen):
        assert {len(x) for x in latents.values()} == {len(material)} == {clips_read}
        np.testing.assert_array_equal(material, np.delete(np.arange(clips_read + 1) % 4, 3))
        assert chosen.tolist() == list(range(queries))
        return Retrieved(chosen, np.zeros((queries, 16), int), np.zeros((queries, 16)), np.ones((queries, 16), bool))

    monkeypatch.setattr(run, "data", lambda *_: Many(clips.modalities, 300))
    monkeypatch.setattr(retrieval, "retrieve", seen)
    assert [row.test_n for row in retrieval_rows(run, queries)] == [queries, queries]
    assert mentions("1 clips").search(capsys.readouterr().err)


def test_retrieval_that_cannot_be_is_refused(run):
    for queries in (0, -3):
        with pytest.raises(UserError, match=mentions("--retrieval", queries)):
            retrieval_rows(run, queries)
    with pytest.raises(UserError, match=mentions("component image video audio")):
        retrieval_rows(run, 1, component="image")
    with pytest.raises(UserError, match=mentions("4 clips material 3 16 8")):
        retrieval_rows(run, 1)
