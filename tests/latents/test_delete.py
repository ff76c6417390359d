"""Deleted samples are gone, byte for byte, and nothing else is touched."""

import hashlib
import json
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from safetensors.numpy import load_file, save_file

from selfflow.config.shapes import all_streams
from selfflow.data.built import build
from selfflow.data.stored import read_splits
from selfflow.data.verify import UNFINISHED_DELETION, verify_data
from selfflow.errors import UserError
from selfflow.input.media_batches import MediaSource
from selfflow.latents.delete.delete import delete_samples
from selfflow.latents.delete.remove import read_raw
from selfflow.latents.delete.search import _pattern, find_remaining
from selfflow.latents.encode import encode
from selfflow.latents.fit_autoencoder import fit_autoencoder
from selfflow.latents.store import INDEX_FOLDER, Latents
from selfflow.latents.verify import DELETED_SINCE, verify_latents
from selfflow.storage.lock import locked
from tests.conftest import mentions
from tests.latents.home import copied, media_of

# A whole shard of latents of train and one in the middle, the last record, and records of another split.
IDS = {"train-000001", *(f"train-{i:06d}" for i in range(10, 15)), "train-000023", "validation-000000"}


@pytest.fixture(scope="module")
def media(original):
    return media_of(*original)


@pytest.fixture
def home(original, tmp_path):
    return copied(original, tmp_path)


def searched(folder: Path, needles: list[bytes]) -> set[bytes]:
    """Those of the needles that are in any file, or in any decompressed record of a shard."""
    found = set()
    for path in (p for p in folder.rglob("*") if p.is_file()):
        parts = [path.read_bytes()] + (read_raw(path) if "array_record" in path.name else [])
        found |= {needle for needle in needles for part in parts if needle in part}
    return found


def test_samples_are_gone_byte_for_byte_and_the_others_are_what_they_were(home, media):
    built, latents, root = home
    wanted = [needle for i in IDS for needle in (i.encode(), *media[i])]
    MediaSource(built, "train", (), root / INDEX_FOLDER)  # the index that training an autoencoder leaves
    assert any(b"train-000001" in path.read_bytes() for path in (root / INDEX_FOLDER).iterdir())
    assert searched(root, wanted) == set(wanted)
    statistics = json.loads((latents / "manifest.json").read_text())["statistics"]
    done = delete_samples(built, IDS, root)
    assert done.removed == {"train": 7, "validation": 1} and done.earlier == 0 and done.left == []
    assert done.latents == {latents.name: 8} and len(done.cleared) == 1 and len(done.fitted) == 3
    assert searched(root, wanted) == set()
    assert media_of(done.built, latents) == {i: bytes_ for i, bytes_ in media.items() if i not in IDS}
    assert list(media_of(done.built, latents)) == [i for i in media if i not in IDS]  # in the same order
    assert verify_data(done.built) == [] and verify_latents(latents, done.built) == []
    manifest = json.loads((latents / "manifest.json").read_text())
    assert manifest["statistics"] == statistics and manifest["shards"]["train"] == [4, 5, 0, 5, 3]
    (entry,) = manifest["deleted"]
    assert entry == done.built.deleted[0] and entry["count"] == 8
    assert entry["ids"] == hashlib.sha256("\n".join(sorted(IDS)).encode()).hexdigest()
    assert done.built.fingerprint == built.fingerprint == manifest["fingerprint"]


def test_tfds_and_the_builder_read_the_remaining_records(home, tiny_experiment):
    built, _, root = home
    lengths = read_splits(built.folder)["train"].lengths
    assert len(lengths) > 3
    delete_samples(
        built, [f"train-{i:06d}" for i in range(lengths[0])] + ["train-000020"], root
    )  # a whole shard of the data
    again = build(tiny_experiment.data["collisions"], root)
    assert (
        again.splits["train"] == 23 - lengths[0] and len(read_splits(again.folder)["train"].lengths) == len(lengths) - 1
    )
    source = tfds.builder_from_directory(again.folder).as_data_source("train")
    assert [r["id"].decode() for r in source] == [again.records("train")[i]["id"] for i in range(len(source))]
    assert "train-000020" not in {r["id"].decode() for r in source}
    info = tfds.builder_from_directory(again.folder).info.splits["train"]
    assert info.num_bytes == sum(len(again.records("train").raw(i)) for i in range(len(source)))


def test_deleting_repeatedly_and_encoding_after_it(home, tiny_experiment):
    built, latents, root = home
    first = delete_samples(built, ["train-000002"], root).built
    second = delete_samples(first, ["train-000003", "test-000004"], root)
    assert second.removed == {"train": 1, "test": 1} and len(second.built.deleted) == 2
    assert not [p.name for p in built.folder.iterdir() if p.name.startswith("kept1") and "train" in p.name]
    same = delete_samples(second.built, ["train-000002"], root)  # done before: nothing changes
    assert same.before == first.deleted[0]["when"] and not same.resumed and not same.removed and not same.latents
    assert same.built.deleted == second.built.deleted
    with pytest.raises(UserError, match=mentions("1 3 ids train-000099")):  # the others were deleted or are there
        delete_samples(second.built, ["train-000003", "train-000004", "train-000099"], root)
    assert second.built.records("train")[2]["id"] == "train-000004"
    subset = delete_samples(second.built, ["test-000004"], root)  # of an earlier list
    assert subset.earlier == 1 and not subset.removed and not subset.latents and not subset.before
    with pytest.raises(UserError, match=mentions("1 ids train-000099")):
        delete_samples(second.built, ["train-000099"], root)
    fitted = {
        m: fit_autoencoder(m, c, {"collisions": second.built}, (), root)
        for m, c in tiny_experiment.autoencoders.items()
    }
    arguments = (second.built, fitted, all_streams(tiny_experiment), None, root)
    assert encode(*arguments).path == latents  # not encoded anew
    (latents / "manifest.json").unlink()
    fresh = encode(*arguments, records_per_shard=5)
    assert fresh.path == latents and verify_latents(latents, second.built) == []


def test_latents_of_another_build_and_of_before_are_cleaned_too(home, original):
    built, latents, root = home
    manifest = json.loads((latents / "manifest.json").read_text())
    foreign = root / "latents" / "moved"
    foreign.mkdir()
    for path in latents.iterdir():
        (foreign / path.name).write_bytes(path.read_bytes())
    (foreign / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": "0" * 16}))
    done = delete_samples(built, ["train-000001"], root)
    assert done.latents == {latents.name: 1, "moved": 1}
    assert json.loads((foreign / "manifest.json").read_text())["deleted"] == done.built.deleted
    for path in original[1].iterdir():  # latents from a backup
        (latents / path.name).write_bytes(path.read_bytes())
    assert verify_latents(latents, done.built)[0].kind is DELETED_SINCE
    assert delete_samples(done.built, ["train-000001"], root).latents == {latents.name: 1}
    assert verify_latents(latents, done.built) == []


def test_rows_of_records_that_could_not_be_encoded_stay_aligned(home):
    built, latents, root = home
    path = latents / "train.index.safetensors"
    index = load_file(path)
    index["id"][[3, 4, 8]] = 0
    save_file(index, path)
    manifest = json.loads((latents / "manifest.json").read_text())
    bad = [[i, "shard", "damaged"] for i in (3, 4, 8)]
    (latents / "manifest.json").write_text(json.dumps(manifest | {"unreadable": {"train": bad}}))
    done = delete_samples(built, ["train-000001", "train-000004", "train-000009"], root)
    assert [p.kind.note for p in verify_latents(latents, done.built)] == [True, True]
    rows = [row.decode() for row in Latents(latents).index("train")["id"]]
    assert rows[:7] == ["train-000000", "train-000002", "", "train-000005", "train-000006", "train-000007", ""]


def test_a_deletion_that_is_refused_changes_nothing(home):
    built, latents, root = home
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}

    def refused(*words, ids=("train-000001",)):
        with pytest.raises(UserError, match=mentions(*words)):
            delete_samples(built, ids, root)

    refused("all split train", ids=[f"train-{i:06d}" for i in range(24)])
    refused("1 ids absent", ids=["absent"])
    refused("1 2 ids train-000001", ids=["train-000001", "train-000001 "])
    refused("1 ids TRAIN-000001 train-000001", ids=["TRAIN-000001"])
    index = latents / "train.index.safetensors"
    index.write_bytes(b"damaged")
    refused(latents, "damaged")
    index.write_bytes(before[index])
    save_file(load_file(index) | {"id": load_file(index)["id"][::-1].copy()}, index)
    refused(latents / "train", "ids train-000002")
    index.write_bytes(before[index])
    shard = read_splits(built.folder)["train"].paths[1]
    shard.write_bytes(before[shard][:-2000])
    refused(shard, "0 5 verify")
    shard.write_bytes(before[shard])
    info = built.folder / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"alternativeFileFormats": ["tfrecord"]}))
    refused(built.folder, "tfrecord dataset_info.json")
    info.write_bytes(before[info])
    assert before == {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != "delete.lock"}


def test_a_split_that_becomes_empty_is_gone(home):
    built, latents, root = home
    done = delete_samples(built, ["shifted-000000", "shifted-000001"], root)
    assert "shifted" not in done.built.splits and "shifted" not in Latents(latents).records
    assert not list(root.rglob("*shifted*array_record*")) and verify_latents(latents, done.built) == []
    assert verify_data(done.built) == []


def test_remarks_of_a_builder_go_with_the_last_clip_of_a_file(home):
    built, _, root = home
    report = built.folder / "report.json"
    remarks = [{"file": name, "reason": "short"} for name in ("train-000001", "other", "train-0000011")]
    report.write_text(json.dumps({"skipped": remarks, "source": "/x"}))
    (trace,) = delete_samples(built, ["train-000001"], root).left  # inside a longer name
    assert mentions("1.1.0/report.json").search(trace)
    assert [r["file"] for r in json.loads(report.read_text())["skipped"]] == ["other", "train-0000011"]


def test_ids_inside_other_ids_are_no_false_alarm_and_traces_are_found(home):
    built, latents, _ = home
    assert find_remaining(built, [latents], ["train-00000"]) == []
    assert any(mentions("record train-000001").search(x) for x in find_remaining(built, [latents], ["train-000001"]))
    (latents / "note.txt").write_bytes(b"\0" * (16 << 20) + b"seen in train-0000077 and gone-00001")
    (trace,) = find_remaining(built, [latents], ["gone-00001"])
    assert mentions(f"{latents.name}/note.txt").search(trace)
    words = [f"{a}{b:03d}-image" for a in ("n0", "n01", "x") for b in range(40)]
    pattern = _pattern(words)
    for word in words:
        assert pattern.fullmatch(word.encode()) and pattern.search(b"..." + word.encode() + b"...")
    assert not pattern.search(b"n0041-image n0 x03-image") and _pattern(["short"]) is None


def _hold(path, started, release):
    with locked(path, "test"):
        started.set()
        release.wait(20)


@pytest.mark.resilience
def test_it_waits_for_an_encoding_of_the_same_folder(home):
    built, latents, root = home
    context = multiprocessing.get_context("spawn")
    started, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(latents / "lock-1", started, release))
    holder.start()
    assert started.wait(20)
    code = (
        "import sys, pickle; from selfflow.latents.delete.delete import delete_samples; from pathlib import Path;"
        "built, root = pickle.load(open(sys.argv[1], 'rb'));"
        "delete_samples(built, ['train-000001'], root); print('done')"
    )
    (root / "arguments").write_bytes(pickle.dumps((built, root)))
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(root / "arguments")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert mentions("another process").search(process.stderr.readline())
    assert built.deleted == []
    release.set()
    holder.join()
    assert process.communicate(timeout=30)[0] == "done\n" and len(built.deleted) == 1


def test_another_list_waits_until_the_interrupted_one_is_done(home):
    built, _, root = home
    note = {"count": 1, "when": "2026-01-01", "ids": "0" * 64, "unfinished": True, "replaced": []}
    (built.folder / "deleted.json").write_text(json.dumps({"fingerprint": built.fingerprint, "deleted": [note]}))
    assert [p.kind for p in verify_data(built)] == [UNFINISHED_DELETION]
    with pytest.raises(UserError, match=mentions(built.folder, "1 2026-01-01 ids")):
        delete_samples(built, ["train-000001"], root)
    assert len(built.records("train")) == 24 and built.records("train")[1]["id"] == "train-000001"
