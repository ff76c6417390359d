"""Shards that are read from a bucket: each fetched once, never more of them than the limit allows."""

import multiprocessing
import os
import threading
import time

import numpy as np
import pytest

from selfflow.data.shards import BadRecord, ShardReader
from selfflow.errors import UserError
from selfflow.input.batches import LoaderOptions
from selfflow.input.mixture import Component
from selfflow.latents.store import MANIFEST, Latents
from selfflow.storage import staging
from selfflow.storage.mirror import fetch_folder
from selfflow.storage.paths import local_path
from tests.conftest import mentions
from tests.input.made import feed, record, take, write

pytestmark = pytest.mark.resilience

# Where one protocol shows it all, the other is asked with -m slow.
S3_FIRST = pytest.mark.parametrize("bucket", ["s3", pytest.param("gs", marks=pytest.mark.slow)], indirect=True)
RECORDS = [record(i) for i in range(24)]  # six shards of four


@pytest.fixture
def folder(store, bucket, tmp_path):
    """A local copy of a folder of latents that lies in the bucket, its shards not fetched yet."""
    made = write(tmp_path / "made", RECORDS)
    store.upload(made, "latents")
    copy = local_path(f"{bucket}/latents")
    fetch_folder(copy, MANIFEST)
    return copy


def staged_files() -> dict[str, int]:
    files = (path for path in (staging.cache_folder() / "staged").iterdir() if path.is_file() and path.name != "lock")
    return {path.name: path.stat().st_size for path in files}


def shard_size(store) -> int:
    return max(len(store.read(key)) for key in store.keys() if key.endswith(".array_record"))


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@S3_FIRST
def test_batches_are_those_of_a_local_folder(folder, tmp_path):
    mixture = {"all": Component(("video", "audio"), 1.0, 4, data="made")}
    here = take(feed({"made": tmp_path / "made"}, mixture).batches(0, 12))
    for reading in (LoaderOptions(threads=4), LoaderOptions(workers=2)):
        there = take(feed({"made": folder}, mixture, loader=reading).batches(0, 12))
        assert len(there) == 12
        for (a, facts), (b, others) in zip(here, there, strict=True):
            assert facts == others and same(a["latents"], b["latents"])
    assert not list(folder.glob("*.array_record")) and len(staged_files()) == 6


@S3_FIRST
def test_each_shard_is_fetched_once_for_all_threads_and_processes(store, folder):
    threads = [threading.Thread(target=_read_all, args=(folder,)) for _ in range(4)]
    processes = [multiprocessing.get_context("spawn").Process(target=_read_all, args=(folder,)) for _ in range(2)]
    for each in threads + processes:
        each.start()
    for each in threads + processes:
        each.join()
    assert [process.exitcode for process in processes] == [0, 0]
    content = ("/download/", "/bucket/")  # what Google's client asks of elsewhere are sizes
    fetched = [
        count
        for (method, path), count in store.requests.items()
        if method == "GET" and path.startswith(content) and path.endswith(".array_record")
    ]
    assert len(staged_files()) == 6 and fetched == [1] * 6


def _read_all(folder) -> None:
    source = Latents(folder).open_split("train")
    for i in np.random.default_rng(os.getpid()).permutation(len(source)):
        assert same(source[int(i)], RECORDS[i])


def test_the_limit_holds_while_many_read(store, folder, monkeypatch, capsys):
    size = shard_size(store)
    monkeypatch.setenv("SELFFLOW_STAGED_GB", str(2.5 * size / 1e9))
    monkeypatch.setattr(staging, "_warned", [])
    seen, done = [], threading.Event()

    def watch():
        while not done.wait(0.001):
            try:
                seen.append(sum(staged_files().values()))
            except FileNotFoundError:
                pass  # removed between listing and reading its size

    watching = threading.Thread(target=watch)
    watching.start()
    threads = [threading.Thread(target=_read_all, args=(folder,)) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    done.set()
    watching.join()
    assert 0 < max(seen) <= 2.5 * size and len(staged_files()) == 2
    assert capsys.readouterr().err.count("SELFFLOW_STAGED_GB") == 1


def test_evicted_shards_are_closed_and_the_last_ones_read_stay(store, folder, monkeypatch):
    monkeypatch.setenv("SELFFLOW_STAGED_GB", str(2.5 * shard_size(store) / 1e9))
    source = Latents(folder).open_split("train")
    shards = source._shards
    for i in (0, 4, 8):
        source[i]
        time.sleep(0.01)
    before = sum(store.requests.values())
    source[4], source[8]
    assert sum(store.requests.values()) == before
    first, _ = shards._readers[0]
    assert not first.exists()
    source[0]
    assert sum(store.requests.values()) > before and len(staged_files()) == 2
    assert shards._readers[0][0].exists() and not shards._readers[1][0].exists()


def test_a_shard_larger_than_the_limit_and_a_senseless_limit_are_refused(folder, monkeypatch):
    source = Latents(folder).open_split("train")
    for limit, words in (("0.000001", "shard SELFFLOW_STAGED_GB (1e-06)"), ("many", "SELFFLOW_STAGED_GB many")):
        monkeypatch.setenv("SELFFLOW_STAGED_GB", limit)
        with pytest.raises(UserError, match=mentions(words)):
            source[0]


def test_damaged_shards_are_named_and_others_stay_readable(store, folder, bucket):
    name = "latents/train-00001-of-00006.array_record"
    store.truncated[f"bucket/{name}"] = 1000
    store.put("bucket/latents/train-00002-of-00006.array_record", store.read(name)[:1000])
    del store.objects["bucket/latents/train-00003-of-00006.array_record"]
    source = Latents(folder).open_split("train")
    for i, words in ((4, f"{bucket}/{name} 1000"), (8, "0 4 records"), (12, f"{bucket}/latents not")):
        with pytest.raises(BadRecord, match=mentions(f"train-0000{i // 4}-of-00006.array_record", words)):
            source[i]
    assert same(source[0], RECORDS[0]) and same(source[16], RECORDS[16])
    assert not [name for name in staged_files() if "partial" in name]


def test_an_object_that_was_replaced_is_fetched_anew(store, folder):
    assert same(Latents(folder).open_split("train")[0], RECORDS[0])
    # The same size, which alone would not show the change.
    store.put(
        "bucket/latents/train-00000-of-00006.array_record", store.read("latents/train-00001-of-00006.array_record")
    )
    assert same(Latents(folder).open_split("train")[0], RECORDS[4])


def test_partial_files_of_a_killed_process_are_removed(store, folder, monkeypatch):
    size = shard_size(store)
    monkeypatch.setenv("SELFFLOW_STAGED_GB", str(1.5 * size / 1e9))
    home = staging.cache_folder() / "staged"
    (home / "locks").mkdir(parents=True)
    left = home / f"{'0' * 32}-{size}.partial"
    left.touch()
    (home / f"{left.name}.partial-0123").write_bytes(bytes(size // 2))
    assert same(Latents(folder).open_split("train")[0], RECORDS[0])
    assert len(staged_files()) == 1


def test_a_local_reader_stages_nothing(store, tmp_path):
    made = write(tmp_path / "made", RECORDS[:4])
    reader = ShardReader([made / "train-00000-of-00001.array_record"], [4])
    assert len(reader[0]) > 0 and not store.requests and not (staging.cache_folder() / "staged").exists()
