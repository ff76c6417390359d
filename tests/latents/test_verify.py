"""Faults of a data set or its latents are found and named, and nothing else is."""

import dataclasses
import json

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from safetensors.numpy import load, load_file, save, save_file

from selfflow.data import verify
from selfflow.data.stored import read_splits
from selfflow.data.verify import Contents, verify_data
from selfflow.latents import verify as verify_latents
from selfflow.latents.delete.remove import read_raw
from selfflow.latents.verify import latents_folders
from tests.conftest import mentions
from tests.latents.home import copied


@pytest.fixture(scope="module")
def contents(original):
    known = Contents()
    assert verify_data(original[0], known) == []
    return known


@pytest.fixture
def home(original, tmp_path):
    return copied(original, tmp_path)


def kinds(problems) -> set[verify.Kind]:
    return {problem.kind for problem in problems}


def rewritten(path, change, options="group_size:1,uncompressed") -> None:
    """Replaces record 2 of a shard."""
    records = read_raw(path)
    writer = ArrayRecordWriter(str(path), options)
    for i, record in enumerate(records):
        writer.write(change(record) if i == 2 else record)
    writer.close()


def edited(path, **changes) -> None:
    content = json.loads(path.read_text())
    content.update({name: change(content[name]) for name, change in changes.items()})
    path.write_text(json.dumps(content))


def test_an_intact_folder_has_no_problems_and_all_of_it_is_read(home, contents):
    built, latents, root = home
    read = []
    assert verify_data(built, advance=lambda: read.append(1)) == []
    assert len(read) == 50 and len(read_splits(built.folder)["train"].paths) > 3
    assert verify_latents.verify_latents(latents, built, advance=lambda: read.append(1)) == []
    assert len(read) == 100
    whole, unfinished = sorted(latents_folders(root, built.name), key=lambda f: f != latents)
    assert whole == latents
    (note,) = verify_latents.verify_latents(unfinished, built, contents)
    assert note.kind.note and note.kind is verify_latents.UNFINISHED


def test_flipped_bits_in_latents_are_found_wherever_they_matter(home, contents):
    """At many places of a shard: either all its records read as before, or a problem names the shard."""
    built, latents, _ = home
    path = latents / "train-00001-of-00005.array_record"
    whole, before = path.read_bytes(), read_raw(path)
    size, harmless, found = len(whole), 0, 0
    for place in np.linspace(0, size - 1, 25).astype(int):
        data = bytearray(whole)
        data[place] ^= 16
        path.write_bytes(data)
        problems = verify_latents.verify_latents(latents, built, contents)
        if problems:
            assert all(p.kind is verify_latents.UNREADABLE and p.file == path.name for p in problems)
            assert any(f"train-{i:06d}" in p.record for p in problems for i in range(5, 10))
            found += 1
        else:
            assert read_raw(path) == before  # padding between blocks
            harmless += 1
    assert found >= 10, (found, harmless)


def test_truncated_and_missing_shards_are_one_problem_each(home, contents):
    built, latents, _ = home
    path = latents / "train-00002-of-00005.array_record"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (latents / "test-00000-of-00003.array_record").unlink()
    problems = verify_latents.verify_latents(latents, built, contents)
    assert [(p.kind, p.file) for p in problems] == [
        (verify_latents.UNREADABLE, "train-00002-of-00005.array_record"),
        (verify_latents.UNREADABLE, "test-00000-of-00003.array_record"),
    ]
    assert mentions("5 train-000010 train-000014").search(problems[0].record)


@pytest.mark.parametrize(
    "change, kind, words",
    [
        (lambda r: r | {"video": r["video"][:, :2]}, verify_latents.SHAPE, "video shape"),
        (lambda r: r | {"audio": r["audio"][:-1]}, verify_latents.SHAPE, "audio shape"),
        (lambda r: r | {"image": r["image"].astype(np.float32)}, verify_latents.SHAPE, "image float32"),
        (lambda r: r | {"smell": r["image"]}, verify_latents.SHAPE, "smell"),
        (lambda r: r | {"image": np.full_like(r["image"], np.nan)}, verify_latents.NOT_FINITE, "image NaN"),
        (lambda r: {"image": r["image"], "video": r["video"]}, verify_latents.INDEX, "audio"),
        (lambda r: r | {"caption": np.zeros((3, 8), np.float16)}, verify_latents.INDEX, "caption 3"),
    ],
)
def test_a_rewritten_latent_is_named_by_its_id(home, contents, change, kind, words):
    built, latents, _ = home
    path = latents / "train-00000-of-00005.array_record"
    rewritten(path, lambda raw: save({n: np.ascontiguousarray(v) for n, v in change(load(raw)).items()}))
    problems = verify_latents.verify_latents(latents, built, contents)
    assert {(p.file, p.record) for p in problems} == {(path.name, "train-000002")}
    assert any(p.kind is kind and mentions(words).search(p.detail) for p in problems)


INDEXES = [
    (lambda x: {n: v[:-1] for n, v in x.items()}, verify_latents.INDEX, "23"),
    (lambda x: x | {"id": x["id"][::-1].copy()}, verify_latents.IDS, "train-000023"),
    (lambda x: x | {"id": x["id"][[0, 0, *range(2, 24)]]}, verify_latents.IDS, "train-000001"),
    (lambda x: x | {"label/material": np.roll(x["label/material"], 1)}, verify_latents.LABELS, "label/material"),
    (lambda x: x | {"quality": x["quality"] * 0}, verify_latents.LABELS, "quality 0"),
    (lambda x: x | {"frames/audio": x["frames/audio"] + 1}, verify_latents.INDEX, "frames/audio 51"),
    (lambda x: x | {"present/image": ~x["present/image"]}, verify_latents.INDEX, "image"),
    (lambda x: {n: v for n, v in x.items() if n != "label/count"}, verify_latents.LABELS, "label/count"),
    (lambda x: {n: v for n, v in x.items() if n != "frames/video"}, verify_latents.INDEX, "frames/video"),
]


@pytest.mark.parametrize("change, kind, words", INDEXES)
def test_an_index_that_is_not_of_these_records(home, contents, change, kind, words):
    built, latents, _ = home
    path = latents / "train.index.safetensors"
    save_file({n: np.ascontiguousarray(v) for n, v in change(load_file(path)).items()}, path)
    problems = verify_latents.verify_latents(latents, built, contents)
    assert kinds(problems) == {kind}
    assert any(mentions(words).search(str(p)) for p in problems)


MANIFESTS = [
    ({"dataset": lambda x: "media/x/1.0.0"}, verify_latents.BUILD),
    ({"fingerprint": lambda x: "0" * 16}, verify_latents.BUILD),
    ({"deleted": lambda x: [{"count": 1, "when": "", "ids": ""}]}, verify_latents.DELETED_SINCE),
    ({"shards": lambda x: x | {"train": [5, 5, 5, 4, 5]}}, verify_latents.UNREADABLE),
    ({"shards": lambda x: x | {"train": [5, 5, 5, 5]}}, verify_latents.INDEX),
    ({"shards": lambda x: x | {"validation": []}}, verify_latents.EMPTY),
    ({"shards": lambda x: {"train": x["train"]}}, verify_latents.EMPTY),
    ({"shards": lambda x: "none"}, verify_latents.DAMAGED),
    ({"modalities": lambda x: x | {"image": x["image"] | {"latent": [8, 8, 15]}}}, verify_latents.SHAPE),
    ({"modalities": lambda x: x | {"image": x["image"] | {"identity": "other"}}}, verify_latents.AUTOENCODER),
    ({"modalities": lambda x: {"image": x["image"]}}, verify_latents.SHAPE),
    ({"statistics": lambda x: x | {"image": {"mean": [0], "std": [1]}}}, verify_latents.DAMAGED),
]


@pytest.mark.parametrize("changes, kind", MANIFESTS)
def test_an_edited_manifest_does_not_pass(home, contents, changes, kind):
    built, latents, root = home
    edited(latents / "manifest.json", **changes)
    assert latents in latents_folders(root, built.name)
    assert kind in kinds(verify_latents.verify_latents(latents, built, contents))


def test_missing_damaged_and_swapped_files(home, contents):
    built, latents, _ = home
    video, image = latents / "autoencoder_video.safetensors", latents / "autoencoder_image.safetensors"
    video.write_bytes(image.read_bytes())
    (latents / "autoencoder_audio.safetensors").unlink()
    (latents / "test.index.safetensors").write_bytes(b"nonsense")
    (latents / "train-00007-of-00009.array_record").write_bytes(b"")
    problems = verify_latents.verify_latents(latents, built, contents)
    assert {(p.kind, p.file) for p in problems} == {
        (verify_latents.AUTOENCODER, "autoencoder_video.safetensors"),
        (verify_latents.DAMAGED, "autoencoder_audio.safetensors"),
        (verify_latents.DAMAGED, "test.index.safetensors"),
        (verify_latents.LEFTOVER, "train-00007-of-00009.array_record"),
    }
    (latents / "manifest.json").write_text("{")
    assert kinds(verify_latents.verify_latents(latents, built, contents)) == {verify_latents.DAMAGED}


def test_damage_in_the_data_set_is_named_by_shard_and_record(home):
    built, _, _ = home
    first, second, *_ = read_splits(built.folder)["train"].paths
    data = bytearray(first.read_bytes())
    data[len(data) // 4] ^= 1
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:-1000])
    problems = verify_data(built)
    assert {p.kind for p in problems} == {verify.UNREADABLE} and {p.file for p in problems} == {first.name, second.name}
    assert not any(p.kind.note for p in problems) and all("remove" in p.kind.remedy for p in problems)


def test_records_of_another_shape_and_with_the_id_of_another(home):
    built, _, _ = home
    (path, *_) = read_splits(built.folder)["validation"].paths
    donor = ArrayRecordReader(str(read_splits(built.folder)["test"].paths[0])).read([0])[0]
    rewritten(path, lambda _: donor, "group_size:1")
    (problem,) = verify_data(built)
    assert problem.kind is verify.DUPLICATE and "test-000000" in str(problem)
    other = dataclasses.replace(built, settings=dataclasses.replace(built.settings, size=64))
    problems = verify_data(other)
    assert kinds(problems) == {verify.SHAPE, verify.DUPLICATE}
    words = mentions("image (32, 32, 3) (64, 64, 3)")
    assert any(words.search(p.detail) and p.record == "train-000003" for p in problems)


def test_a_damaged_description_an_empty_split_and_leftovers(home):
    built, _, _ = home
    path = built.folder / "dataset_info.json"
    before = path.read_text()
    info = json.loads(before)
    info["splits"][-1]["shardLengths"] = []
    path.write_text(json.dumps(info))
    (built.folder.parent / "incomplete.ABC_1.1.0").mkdir()
    assert kinds(verify_data(built)) == {verify.EMPTY, verify.LEFTOVER}
    path.write_text(before[:100])
    assert kinds(verify_data(built)) == {verify.DESCRIPTION}
    path.write_text(before)
    (built.folder / "features.json").unlink()
    assert verify.DESCRIPTION in kinds(verify_data(built))
