"""Building Collisions: records, determinism, failures."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from selfflow.data.built import load_builder
from selfflow.data.collisions import Collisions, Material
from selfflow.data.collisions import builder as builder_module
from selfflow.data.collisions.generate import record
from selfflow.data.collisions.names import MATERIAL_NAMES, SHAPE_NAMES, SPLITS
from selfflow.errors import UserError
from tests.conftest import mentions

SMALL = Collisions(train_clips=40, validation_clips=8, test_clips=8, shifted_clips=8, workers=2)


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    return load_builder(SMALL, tmp_path_factory.mktemp("collisions"))


def leaves(tree, prefix=""):
    for key in sorted(tree):
        if isinstance(tree[key], dict):
            yield from leaves(tree[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", np.asarray(tree[key])


def digest(builder) -> str:
    total = hashlib.sha256()
    for split in SPLITS:
        for row in builder.as_data_source(split):
            for name, value in leaves(row):
                total.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
    return total.hexdigest()


def test_records_come_back_as_they_were_made_and_in_order(built):
    for split in SPLITS:
        source = built.as_data_source(split)
        assert len(source) == SMALL.clips(split)
        for index in (0, 5, len(source) - 1):
            stored, generated = source[index], record(SMALL, split, index)
            assert stored["id"].decode() == generated["id"] == f"{split}-{index:06d}"
            stored |= {name: stored[name].decode() for name in ("id", "caption")}
            assert [name for name, _ in leaves(stored)] == [name for name, _ in leaves(generated)]
            for (name, a), (_, b) in zip(leaves(stored), leaves(generated), strict=True):
                np.testing.assert_array_equal(a, b, err_msg=name)
                assert a.shape == b.shape
    row = built.as_data_source("train")[0]
    assert row["video"].dtype == row["image"].dtype == np.uint8 and row["video"].shape == (25, 32, 32, 3)
    assert row["audio"].dtype == np.int16 and row["audio"].shape == (16000,)
    assert row["action"].shape == (25, 4) and row["positions"].dtype == np.float32
    assert all(row["present"].values()) and row["quality"] == 1.0


def test_equal_settings_give_equal_records_whatever_the_number_of_workers(built, tmp_path):
    again = load_builder(dataclasses.replace(SMALL, workers=1), tmp_path)
    assert again.data_path.name == built.data_path.name
    assert digest(again) == digest(built)
    other = dataclasses.replace(SMALL, seed=1, train_clips=4, validation_clips=1, test_clips=1, shifted_clips=1)
    other = load_builder(dataclasses.replace(other, workers=1), tmp_path)
    assert (other.as_data_source("train")[0]["video"] != built.as_data_source("train")[0]["video"]).any()


def test_captions_tell_the_truth(built):
    captions = set()
    for row in built.as_data_source("train"):
        text, count, contacts = row["caption"].decode(), int(row["count"]), len(row["contacts"]["time"])
        material = {"wood": "wooden"}.get(name := MATERIAL_NAMES[int(row["material"])], name)
        assert not {"felt", "wooden", "stone", "steel"} - {material} & set(text.replace(",", "").split())
        assert material in text.split() and text.count("push") == 1 and "  " not in text
        for i, shape in enumerate(SHAPE_NAMES):
            number = int((row["shapes"] == i).sum())
            pushed = f"push on the {shape}" in text
            rest = text.replace(f"push on the {shape}", "")
            assert (shape in rest) == (number > 0) and (f"{shape}s" in rest) == (number > 1), text
            assert not pushed or number > 0
        assert ("no push" in text) == (not row["action"].any())
        words = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"}
        if "contact" in text:
            assert f"; {words.get(contacts, '')}" in text or contacts > 9 or contacts == 0
            assert text.startswith(words[count])
        captions.add(text)
    assert len(captions) > 30
    for index in range(8):
        assert built.as_data_source("shifted")[index]["caption"]


def test_splits_share_no_clip(built):
    clips = [row["video"].tobytes() for split in SPLITS for row in built.as_data_source(split)]
    assert len(set(clips)) == len(clips)


def test_a_changed_setting_is_another_folder():
    names = {Collisions().config_name}
    for change in (
        {"seed": 1},
        {"size": 64},
        {"gravity": 100.0},
        {"materials": "body"},
        {"felt": Material(0.45, 0.9, 221.0, 0.03)},
        {"partials": (1.0, 1.6, 2.14)},
        {"train_clips": 4095},
    ):
        names.add(dataclasses.replace(Collisions(), **change).config_name)
    assert len(names) == 8
    assert Collisions().config_name.startswith("default_") and Collisions(seed=1).config_name.startswith("custom_")
    assert Collisions(workers=3, gravity=0, box=64).config_name == Collisions().config_name
    fields = json.loads(json.dumps(dataclasses.asdict(Collisions())))
    fields |= {name: Material(**fields[name]) for name in MATERIAL_NAMES}
    assert Collisions(**fields).config_name == Collisions().config_name


def test_a_second_build_reads_the_first(built, monkeypatch):
    def refuse(settings):
        raise AssertionError("generated again")

    monkeypatch.setattr(builder_module, "generate", refuse)
    assert digest(load_builder(SMALL, built.data_path.parents[2])) == digest(built)


def test_settings_and_versions_are_kept_with_the_set(built):
    metadata = json.loads((built.data_path / "metadata.json").read_text())
    assert metadata["settings"]["felt"]["frequency"] == 220.0 and metadata["pymunk"]
    assert (built.data_path / "LICENSE").read_text() == "Apache-2.0"


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_build_is_no_data_set(tmp_path, monkeypatch, failure):
    whole = builder_module.generate

    def interrupted(settings):
        for count, item in enumerate(whole(settings)):
            if count == 50:
                raise failure("stop")
            yield item

    settings = dataclasses.replace(SMALL, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(builder_module, "generate", interrupted)
        with pytest.raises(failure):
            load_builder(settings, tmp_path)
    assert not list(tmp_path.rglob("*.array_record*"))
    assert len(load_builder(settings, tmp_path).as_data_source("shifted")) == 8


def die(*args):
    os._exit(9)


def test_a_dead_worker_is_a_clear_error_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(builder_module, "records", die)
    with pytest.raises(UserError, match=mentions("collisions worker workers=1 memory")) as error:
        load_builder(SMALL, tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.array_record*")) and not list(tmp_path.rglob("dataset_info.json"))


def test_the_error_of_a_worker_arrives_as_it_was_raised(tmp_path):
    crowded = dataclasses.replace(SMALL, bodies=(30, 30))
    with pytest.raises(UserError, match=mentions("30 bodies radius box 64")):
        load_builder(crowded, tmp_path)


SCRIPT = """
import sys, pathlib
from selfflow.data.built import load_builder
from selfflow.data.collisions import Collisions
if __name__ == "__main__":
    clips = int(sys.argv[2])
    settings = Collisions(train_clips=clips, validation_clips=1, test_clips=1, shifted_clips=1, workers=2)
    builder = load_builder(settings, pathlib.Path(sys.argv[1]))
    rows = [row for split in ("train", "test") for row in builder.as_data_source(split)]
    print(len(rows), "tensorflow" in sys.modules)
"""


@pytest.mark.resilience
def test_a_killed_build_is_no_data_set_and_its_workers_end(tmp_path):
    script, data = tmp_path / "script.py", tmp_path / "data"
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, script, data, "3000"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(data.rglob("incomplete.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    while len(children := workers_of(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    settings = Collisions(train_clips=3000, validation_clips=1, test_clips=1, shifted_clips=1)
    assert not builder_module._open(settings, data).is_prepared()
    while any(os.path.exists(f"/proc/{child}") for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(children) >= 2 and not any(os.path.exists(f"/proc/{child}") for child in children)


def workers_of(parent: int) -> list[int]:
    with open(f"/proc/{parent}/task/{parent}/children", encoding="utf-8") as file:
        return [int(child) for child in file.read().split()]


def test_a_build_imports_no_tensorflow_and_prints_nothing_of_tfds(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script, tmp_path / "data", "40"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["41", "False"]
    (line,) = done.stderr.strip().splitlines()
    assert mentions("collisions 43/43 clips").search(line)


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=mentions("data_dir Not a directory")):
        load_builder(SMALL, tmp_path / "file" / "inside")
