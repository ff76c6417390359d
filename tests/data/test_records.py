"""Random access to built data sets, and the detection of damaged ones."""

import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from selfflow.data import writing
from selfflow.data.built import load_builder
from selfflow.data.collisions import Collisions
from selfflow.data.digits import Digits
from selfflow.data.records import Records
from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from tests.conftest import mentions

DIGITS = Digits(size=8)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Digits in several shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "SHARD_BYTES", 160_000)
        return Path(load_builder(DIGITS, tmp_path_factory.mktemp("records")).data_dir)


@pytest.fixture
def copy(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / built.name))


def same(one, two) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_records_are_those_of_the_builder_in_the_common_form(tmp_path):
    settings = Collisions(train_clips=3, validation_clips=1, test_clips=1, shifted_clips=1, workers=1)
    builder = load_builder(settings, tmp_path)
    records, source = Records(settings, builder.data_dir, "train"), builder.as_data_source("train")
    assert len(records) == len(source) == 3
    for i in range(3):
        mine, other = records[i], source[i]
        assert mine["id"] == other["id"].decode() and mine["caption"] == other["caption"].decode()
        assert {name: mine[name].shape for name in settings.media_shapes()} == settings.media_shapes()
        np.testing.assert_array_equal(mine["contacts"]["time"], other["contacts"]["time"])
    assert builder.info.features.deserialize_example_np(records.raw(1))["id"] == source[1]["id"]
    assert [record["id"] for record in records] == [source[i]["id"].decode() for i in range(3)]
    with pytest.raises(IndexError):
        records[3]


def test_records_travel_and_are_read_by_many_threads(built):
    records = Records(DIGITS, built, "train")
    first = records[5]
    again = pickle.loads(pickle.dumps(records))
    assert same(again[5], first) and len(again) == 1438
    with ThreadPoolExecutor(6) as pool:
        ids = list(pool.map(lambda i: again[i]["id"], [i % 1438 for i in range(0, 5000, 7)]))
    assert ids == [records[i % 1438]["id"] for i in range(0, 5000, 7)]
    assert records.shard_of(0) == "digits-train.array_record-00000-of-00003"
    assert records.shard_of(np.int64(1437)) == "digits-train.array_record-00002-of-00003"


def test_a_split_that_does_not_exist_and_one_that_is_empty(copy):
    with pytest.raises(UserError, match=mentions("split shifted train validation test")):
        len(Records(DIGITS, copy, "shifted"))
    info = json.loads((copy / "dataset_info.json").read_text())
    del info["splits"][2]["shardLengths"]
    (copy / "dataset_info.json").write_text(json.dumps(info))
    assert len(Records(DIGITS, copy, info["splits"][2]["name"])) == 0
    (copy / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=mentions("dataset_info.json")):
        Records(DIGITS, copy, "train")[0]


def test_bad_records_travel_too():
    error = pickle.loads(pickle.dumps(BadRecord("a-00001-of-00002", "cut off")))
    assert (error.shard, error.reason, str(error)) == ("a-00001-of-00002", "cut off", "a-00001-of-00002: cut off")


def test_a_missing_shard_leaves_the_others(copy):
    records = Records(DIGITS, copy, "train")
    (copy / "digits-train.array_record-00001-of-00003").unlink()
    shards = set()
    for i in range(len(records)):
        try:
            assert records[i]["id"]
            shards.add(records.shard_of(i))
        except BadRecord as error:
            assert error.shard == records.shard_of(i) and mentions("missing").search(error.reason)
    assert sorted(shards) == [f"digits-train.array_record-0000{k}-of-00003" for k in (0, 2)]


def test_every_flipped_bit_is_found_or_harmless(copy):
    """In headers, records and the index at the end of a shard."""
    path = copy / "digits-train.array_record-00002-of-00003"
    clean, intact = Records(DIGITS, copy, "train"), path.read_bytes()
    inside = [i for i in range(len(clean)) if clean.shard_of(i) == path.name]
    picked = inside[:: len(inside) // 12]
    truth = [clean.raw(i) for i in picked]
    used = np.flatnonzero(np.frombuffer(intact, np.uint8))
    rng = np.random.default_rng(0)
    places = np.concatenate(
        [rng.choice(used, 250), np.arange(0, 64), rng.choice(used[used > len(intact) - 65536], 150)]
    )
    detected = harmless = 0
    for place in places:
        broken = bytearray(intact)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        records, bad = Records(DIGITS, copy, "train"), 0
        for i, raw in zip(picked, truth, strict=True):
            try:
                assert records.raw(i) == raw, f"byte {place}: record {i} is silently wrong"
            except BadRecord as error:
                assert error.shard == path.name and "\n" not in str(error)
                bad += 1
        detected, harmless = detected + (bad > 0), harmless + (bad == 0)
    assert detected > 50 and harmless > 50
    assert records[0]["id"] == "digits-00000"


def test_a_shard_cut_off_anywhere_is_found(copy):
    path = copy / "digits-train.array_record-00001-of-00003"
    intact = path.read_bytes()
    clean = Records(DIGITS, copy, "train")
    i = next(i for i in range(len(clean)) if clean.shard_of(i) == path.name)
    for length in [0, 1, 63, 64, len(intact) - 1, *np.linspace(100, len(intact) - 2, 60).astype(int)]:
        path.write_bytes(intact[:length])
        records = Records(DIGITS, copy, "train")
        with pytest.raises(BadRecord, match=mentions("digits-train.array_record-00001-of-00003 0 480")):
            records[i]
        assert records[0]["id"] == "digits-00000"


def test_records_that_do_not_decode_are_bad_records(copy):
    features = json.loads((copy / "features.json").read_text())
    features["featuresDict"]["features"]["image"]["tensor"]["shape"]["dimensions"] = ["9", "8", "3"]
    (copy / "features.json").write_text(json.dumps(features))
    with pytest.raises(BadRecord, match=mentions("digits-train.array_record-00000-of-00003 record 3")):
        Records(DIGITS, copy, "train")[3]
