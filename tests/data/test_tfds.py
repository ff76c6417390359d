"""Tfds: a small data set of TFDS, read by its name."""

import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from selfflow.data.built import load_builder
from selfflow.data.features import read_specs
from selfflow.data.records import Records
from selfflow.data.shards import BadRecord
from selfflow.data.tfds import Tfds
from selfflow.errors import UserError
from tests.conftest import mentions
from tests.data.small_zoo import COUNTS, SmallZoo, video_and_audio

F = tfds.features
SMALL = Tfds(name="small_zoo", size=16, frames=5, frames_per_second=5.0, sample_rate=4000)
RATED = dataclasses.replace(SMALL, source_frames_per_second=10.0)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    """The data folder, with the set prepared as ArrayRecord."""
    folder = tmp_path_factory.mktemp("zoo")
    SmallZoo(data_dir=str(folder)).download_and_prepare(file_format="array_record")
    return folder


def read(settings: Tfds, data_dir: Path, split: str = "train") -> Records:
    return Records(settings, Path(load_builder(settings, data_dir).data_dir), split)


def test_the_types_choose_the_image(zoo, capsys):
    builder = load_builder(SMALL, zoo)
    assert mentions("small_zoo image photo").search(capsys.readouterr().err)
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == COUNTS
    assert builder.info.full_name == "small_zoo/1.2.0" and SMALL.media_shapes(zoo) == {"image": (16, 16, 3)}
    records = read(SMALL, zoo)
    assert len(records) == 9 and len(set(record["id"] for record in records)) == 9
    order = [record["about_year"] - 1990 for record in records]  # TFDS shuffles
    for i, record in zip(order, records, strict=True):
        assert set(record) == {"image", "id", "present", "quality", "label", "about_year"}
        assert record["image"].shape == (16, 16, 3) and record["image"].dtype == np.uint8
        assert record["label"] == i % 3 and record["present"] == {"image": True}
        if i % 6 == 0:
            left, right = record["image"][8, 2], record["image"][8, 13]
            assert abs(int(left[0]) - 14 * i) < 4 and abs(int(right[2]) - 14 * i) < 4 and left[1] == 100
    split = read(SMALL, zoo, "validation")
    assert len(split) == 3 and split.shard_of(2).startswith("small_zoo-validation.array_record-")


def test_ids_are_of_the_contents_and_stable(zoo):
    records = read(SMALL, zoo)
    for i, record in enumerate(records):
        assert record["id"] == f"small_zoo-{hashlib.sha256(records.raw(i)).hexdigest()[:16]}"
    other = read(dataclasses.replace(SMALL, size=8, image="", label=("label",)), zoo)
    assert [record["id"] for record in other] == [record["id"] for record in records]
    named = read(dataclasses.replace(SMALL, id="about.file"), zoo)
    assert sorted(record["id"] for record in named) == [f"small_zoo-f{i}.png" for i in range(9)]
    by_year = read(dataclasses.replace(SMALL, id="about.year"), zoo)[0]
    assert by_year["id"].startswith("small_zoo-199") and "about_year" not in by_year


def test_named_fields_become_video_audio_and_captions(zoo):
    settings = dataclasses.replace(
        RATED,
        video="movie",
        audio="waveform",
        source_sample_rate=8000,
        caption="about.text",
        label=("label", "about.year"),
    )
    assert settings.media_shapes() == {"video": (5, 16, 16, 3), "audio": (4000,)}
    for record in read(settings, zoo):
        i = record["about_year"] - 1990
        assert record["caption"] == f"number {i}" and set(record["present"]) == {"video", "audio"}
        frames = (10 + i) // 2
        assert record["video"].shape == (frames, 16, 16, 3), "the whole length, not `frames`"
        reds = record["video"][:, 8, 2, 0].astype(int)
        assert np.abs(reds - 14 * 2 * np.arange(frames)).max() < 4
        assert record["audio"].dtype == np.int16 and len(record["audio"]) == 800 * int((1.0 + i / 10) * 5 + 1e-6)
        spectrum = np.abs(np.fft.rfft(record["audio"][:4000]))
        assert spectrum.argmax() == 500 and 11000 < np.abs(record["audio"][100:-100]).max() < 13000
    plain = dataclasses.replace(RATED, video="pixels", source_frames_per_second=2.0, caption="about.texts")
    record = read(plain, zoo)[0]
    count = 4 + record["about_year"] - 1990
    assert record["video"].shape == (int(count * 2.5), 16, 16, 3) and record["caption"] == "first"
    stereo = read(dataclasses.replace(SMALL, audio="stereo", source_sample_rate=8000, caption="label"), zoo)[0]
    assert stereo["audio"].shape == (2000,) and 5000 < np.abs(stereo["audio"][100:-100]).max() < 7000
    assert stereo["caption"] in ("grey cat", "dog", "owl")


def test_video_and_audio_fields_are_read_without_tensorflow(zoo, tmp_path):
    folder = video_and_audio(zoo, tmp_path / "declared")
    code = (
        "import sys, pathlib\n"
        "from selfflow.data.built import load_builder\n"
        "from selfflow.data.tfds import Tfds\nfrom selfflow.data.records import Records\n"
        f"settings, folder = {RATED!r}, pathlib.Path({str(folder)!r})\n"
        "assert settings.media_shapes(folder).keys() == {'video', 'audio', 'image'}\n"
        "assert 'tensorflow_datasets' not in sys.modules and 'numpy' not in sys.modules\n"
        "builder = load_builder(settings, folder)\n"
        "record = Records(settings, builder.data_dir, 'test')[0]\n"
        "plain = builder.as_data_source('train')[0]\n"
        "print(record['video'].shape, record['audio'].dtype, len(plain['movie']), 'tensorflow' in sys.modules)"
    )
    (tmp_path / "there" / "tensorflow").mkdir(parents=True)  # it is installed, and must not be touched
    (tmp_path / "there" / "tensorflow" / "__init__.py").write_text("raise SystemError('tensorflow is imported')")
    surroundings = os.environ | {"PYTHONPATH": str(tmp_path / "there")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=surroundings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(5, 16, 16, 3) int16") and done.stdout.strip().endswith("False")
    assert mentions("video movie audio waveform image photo").search(done.stderr)


def test_the_folder_is_the_data_folder_or_that_of_a_version(zoo, tmp_path):
    for folder in (zoo, zoo / "small_zoo" / "1.2.0"):
        builder = load_builder(dataclasses.replace(SMALL, folder=str(folder)), tmp_path / "elsewhere")
        assert Path(builder.data_dir) == zoo / "small_zoo" / "1.2.0"
        assert dataclasses.replace(SMALL, folder=str(folder)).media_shapes() == {"image": (16, 16, 3)}
    assert load_builder(dataclasses.replace(SMALL, name="small_zoo:1.2.0"), zoo).info.full_name == "small_zoo/1.2.0"
    newer = Path(shutil.copytree(zoo, tmp_path / "two"))
    shutil.copytree(newer / "small_zoo" / "1.2.0", newer / "small_zoo" / "1.10.0")
    text = (newer / "small_zoo" / "1.10.0" / "dataset_info.json").read_text()
    (newer / "small_zoo" / "1.10.0" / "dataset_info.json").write_text(text.replace("1.2.0", "1.10.0"))
    assert Path(load_builder(SMALL, newer).data_dir).name == "1.10.0", "versions are numbers"


def test_it_is_prepared_where_that_works(tmp_path):
    builder = load_builder(SMALL, tmp_path)  # its builder is known to TFDS in this process
    assert len(Records(SMALL, builder.data_dir, "test")) == 2
    assert Path(builder.data_dir) == tmp_path / "small_zoo" / "1.2.0"


def test_what_cannot_be(zoo, tmp_path):
    for fields, words in [
        ({"name": ""}, "tfds.name NAME/CONFIG"),
        ({"name": "smal_zoo"}, "tfds.name smal_zoo small_zoo tfds.folder"),
        ({"name": "small_zoo/blue"}, "tfds.name blue tfds build small_zoo/blue --file_format=array_record"),
        ({"image": "phot"}, "tfds.image phot photo"),
        ({"caption": "about.txt"}, "tfds.caption about.txt about.text"),
        ({"label": ("weight",)}, "tfds.label weight"),
        ({"video": "movie"}, "tfds.source_frames_per_second 0 movie"),
    ]:
        with pytest.raises(UserError, match=mentions(words)) as error:
            load_builder(dataclasses.replace(SMALL, **fields), zoo)
        assert "\n" not in str(error.value)
    for fields, words in [
        ({"audio": "waveform"}, "tfds.source_sample_rate 0 waveform"),
        ({"image": "weight"}, "tfds.image weight float32"),
        ({"image": "about.text"}, "tfds.image about.text"),
        ({"audio": "about.texts", "source_sample_rate": 8000}, "tfds.audio about.texts"),
        (
            {"video": "movie", "audio": "waveform", "source_sample_rate": 8000, "frames_per_second": 7.0},
            "tfds.sample_rate 4000 frames_per_second 7",
        ),
    ]:
        with pytest.raises(UserError, match=mentions(words)):
            read(dataclasses.replace(RATED, **fields), zoo)[0]
    with pytest.raises(UserError, match=mentions("tfds.image small_zoo", tmp_path, "tfds.folder")):
        dataclasses.replace(SMALL, folder=str(tmp_path)).media_shapes(tmp_path)
    for field, value in (("size", 0), ("frames_per_second", math.nan), ("frames", 1.5), ("source_sample_rate", -1)):
        with pytest.raises(UserError, match=mentions(f"tfds.{field}", value)):
            dataclasses.replace(SMALL, **{field: value})


def test_other_file_formats_damaged_files_and_builders_that_fail(zoo, tmp_path):
    copy = Path(shutil.copytree(zoo, tmp_path / "records")) / "small_zoo" / "1.2.0"
    info = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match=mentions(copy, "tfrecord tfds build small_zoo --file_format=array_record")):
        load_builder(SMALL, tmp_path / "records")
    (copy / "dataset_info.json").write_text("[")
    with pytest.raises(UserError, match=mentions(copy / "dataset_info.json")):
        load_builder(SMALL, tmp_path / "records")
    (copy / "dataset_info.json").write_text(json.dumps(info))
    (copy / "features.json").write_text('{"type": "x", "content": {"photo": {"type": "Image"}}}')
    with pytest.raises(UserError, match=mentions(copy / "features.json", "TFDS 4.9")):
        load_builder(SMALL, tmp_path / "records")

    class NeedsMore(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict({"n": np.int64}))

        def _split_generators(self, dl_manager):
            raise ConnectionError("no route\nto host")

        def _generate_examples(self):
            yield 0, {"n": 0}

    with pytest.raises(UserError, match=mentions("tfds.name needs_more (no route) tfds build")) as error:
        load_builder(Tfds(name="needs_more"), tmp_path / "more")
    assert "\n" not in str(error.value) and not list((tmp_path / "more").rglob("*.array_record*"))


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="would download gigabytes")
def test_a_data_set_that_needs_tensorflow_is_named_with_the_command_that_prepares_it(tmp_path):
    with pytest.raises(UserError, match=mentions("tfds.name tensorflow tfds build ucf101/ucf101_1 --file_format")):
        load_builder(Tfds(name="ucf101/ucf101_1"), tmp_path)
    with pytest.raises(UserError, match=mentions("tfds.name ucf102 ucf101 tfds.folder")):
        load_builder(Tfds(name="ucf102"), tmp_path)


def test_a_damaged_image_is_a_bad_record(zoo, monkeypatch):
    records = read(SMALL, zoo)
    assert read_specs(zoo / "small_zoo" / "1.2.0").keys() >= {"photo", "about.year", "movie"}
    raw = records.raw(0)
    monkeypatch.setattr(Records, "raw", lambda self, i: raw.replace(b"IHDR", b"IXDR"))
    with pytest.raises(BadRecord, match=mentions("small_zoo-train.array_record-00000-of-00001 record 0")):
        records[0]
