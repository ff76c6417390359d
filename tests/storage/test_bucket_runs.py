"""Runs and data in buckets: trained, killed, taken up on another machine, read, exported."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from selfflow.config.files import load_experiment
from selfflow.config.resolve import resolve
from selfflow.errors import UserError
from selfflow.run.init_state import parse_run_step
from selfflow.run.run import open_run
from selfflow.storage.paths import local_path
from selfflow.storage.runs import open_for_training, upload_changes
from selfflow.tasks.train import train
from selfflow.training.metrics import TIMINGS, read_metrics
from tests.conftest import mentions

pytestmark = pytest.mark.resilience

# Where one protocol shows it all, the other is asked with -m slow.
S3_FIRST = pytest.mark.parametrize("bucket", ["s3", pytest.param("gs", marks=pytest.mark.slow)], indirect=True)
GS_FIRST = pytest.mark.parametrize("bucket", ["gs", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)
FILE = Path(__file__).parent / "digits.py"
MARKS = {"s3": "_CHECKPOINT_METADATA", "gs": "commit_success.txt"}


@pytest.fixture(scope="module")
def experiment():
    return load_experiment(FILE)


@pytest.fixture(scope="module")
def home(experiment, tmp_path_factory) -> Path:
    """A local data folder, and an uninterrupted local run of 24 steps beside it."""
    root = tmp_path_factory.mktemp("home")
    train(dataclasses.replace(experiment, steps=24), root / "run", root / "data")
    return root


def rows(lines: bytes | Path) -> list[dict]:
    found = read_metrics(lines) if isinstance(lines, Path) else map(json.loads, lines.splitlines())
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in found]


def publish(store, home: Path) -> None:
    """The data of `home`, as a run with this --data-dir would have left it in the bucket."""
    for name in ("digits", "autoencoders", "latents"):
        store.upload(home / "data" / name, f"data/{name}")
    for key in [key for key in store.keys() if "lock" in key]:
        del store.objects[f"bucket/{key}"]


def start(store, cache: Path, bucket: str, *flags) -> subprocess.Popen:
    command = [sys.executable, "-m", "selfflow", "train", str(FILE), "--workdir", f"{bucket}/run"]
    return subprocess.Popen(
        [*command, "--data-dir", f"{bucket}/data", "--steps", "24", *flags],
        env=os.environ | {"SELFFLOW_CACHE": str(cache)},
        cwd=FILE.parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_and_resume(store, home, bucket, tmp_path) -> None:
    """kill -9 after the first checkpoint is in the bucket, then the same command on a machine that knows nothing."""
    publish(store, home)
    mark, deadline = f"/{MARKS[bucket[:2]]}", time.monotonic() + 120
    process = start(store, tmp_path / "one", bucket)
    while not any(key.count("/") == 3 and key.endswith(mark) for key in store.keys("run/checkpoints/")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = [int(key.split("/")[2]) for key in store.keys("run/checkpoints/") if key.endswith(mark)]
    assert max(before) < 24 and "run/summary.json" not in store.keys() and "run/lease.json" in store.keys()
    process = start(store, tmp_path / "two", bucket)
    out, error = process.communicate()
    assert process.returncode == 0, error
    assert mentions("from step", max(before)).search(out) and mentions("lease.json taking over").search(error)
    assert rows(store.read("run/metrics.jsonl")) == rows(home / "run")
    keys = store.keys("run/")
    steps = sorted(key.split("/")[2] for key in keys if key.count("/") == 3 and key.endswith(mark))
    assert steps == ["21", "24"] and {key.split("/")[2] for key in keys if "/checkpoints/" in key} == set(steps)
    for name in ("experiment.json", "provenance.json", "summary.json", "samples/step_24/image.png"):
        assert f"run/{name}" in keys
    assert sum("tensorboard/" in key for key in keys) == 1 and "run/lease.json" not in keys
    assert len(json.loads(store.read("run/provenance.json"))["sessions"]) == 2
    assert not any("lock" in key or "partial" in key for key in store.keys())


@pytest.mark.slow
def test_a_run_on_s3_resumes_where_it_was_killed_on_another_machine(store, home, tmp_path):
    kill_and_resume(store, home, "s3://bucket", tmp_path)


@pytest.mark.slow
def test_a_run_on_gs_resumes_where_it_was_killed_on_another_machine(store, home, tmp_path):
    kill_and_resume(store, home, "gs://bucket", tmp_path)


@pytest.mark.slow
def test_two_hosts_train_into_gs_and_two_others_resume(store, home, experiment, tmp_path):
    publish(store, home)
    for number, steps in enumerate(("6", "12")):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = ["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--devices.fsdp", "2", "--devices.data", "1"]
        both = [
            start(store, tmp_path / f"{number}-{i}", "gs://bucket", *flags, "--process", str(i), "--steps", steps)
            for i in range(2)
        ]
        for process in both:
            assert process.communicate()[1] is not None and process.returncode == 0
    found, expected = rows(store.read("run/metrics.jsonl")), rows(home / "run")[:12]
    assert [row["step"] for row in found] == list(range(1, 13))
    np.testing.assert_allclose([row["loss"] for row in found], [row["loss"] for row in expected], rtol=1e-4)
    assert any("ocdbt.process_1/" in key for key in store.keys("run/checkpoints/12"))


def test_data_is_built_once_and_found_by_the_next_run(store, bucket, home, experiment, tmp_path, monkeypatch):
    from selfflow.run.prepare_data import prepare_data

    feed, built = prepare_data(resolve(experiment), local_path(f"{bucket}/data"))
    sent = {key: store.objects[f"bucket/{key}"] for key in store.keys("data/")}
    assert {key.split("/")[1] for key in sent} == {"digits", "autoencoders", "latents"}
    assert not any("lock" in key or "partial" in key for key in sent)
    expected = [batch["latents"]["image"] for batch, _ in feed.batches(0, 6)]
    monkeypatch.setenv("SELFFLOW_CACHE", str(tmp_path / "other"))
    import selfflow.latents.encode as encode

    monkeypatch.setattr(encode, "encode_shard", lambda *_: pytest.fail("it is encoded already"))
    feed, built = prepare_data(resolve(experiment), local_path(f"{bucket}/data"))
    again = [batch["latents"]["image"] for batch, _ in feed.batches(0, 6)]
    for a, b in zip(expected, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert built["digits"].records("train")[0]["image"].shape == (16, 16, 3)
    assert {key: store.objects[f"bucket/{key}"] for key in store.keys("data/")} == sent


def test_partial_uploads_are_ignored_and_sent_anew(store, home, experiment, tmp_path):
    from selfflow.run.prepare_data import prepare_data

    publish(store, home)
    whole = store.keys()
    (manifest,) = (key for key in whole if key.endswith("manifest.json"))
    for key in (manifest, next(key for key in whole if key.endswith("dataset_info.json"))):
        del store.objects[f"bucket/{key}"]
    store.put(f"bucket/{manifest.replace('manifest.json', 'train.index.safetensors')}", b"half")
    feed, _ = prepare_data(resolve(experiment), local_path("s3://bucket/data"))
    assert store.keys() == whole and len(list(feed.batches(0, 3))) == 3


def test_latents_in_a_bucket_are_read_without_the_raw_data(store, bucket, home, experiment, tmp_path):
    from selfflow.run.prepare_data import prepare_data

    (latents,) = (home / "data" / "latents").iterdir()
    store.upload(latents, "elsewhere/mine")
    resolved = resolve(experiment)
    here, _ = prepare_data(resolved, home / "data")
    there, built = prepare_data(
        resolve(dataclasses.replace(experiment, latents={"digits": f"{bucket}/elsewhere/mine"})), tmp_path / "empty"
    )
    assert not built and not list((tmp_path).glob("empty/*/*.array_record*"))
    for (a, _), (b, _) in zip(here.batches(0, 8), there.batches(0, 8), strict=True):
        np.testing.assert_array_equal(a["latents"]["image"], b["latents"]["image"])


@S3_FIRST
def test_a_run_in_a_bucket_is_opened_started_from_and_exported(store, bucket, home, experiment, tmp_path):
    from selfflow.cli.export import main as export
    from selfflow.run.folder import check_run
    from selfflow.run.init_state import initial_state

    store.upload(home / "run", "run")
    # What a killed process had not sent to its end.
    store.put("bucket/run/checkpoints/27/state/manifest.ocdbt", b"half")
    run, here = open_run(f"{bucket}/run"), open_run(home / "run")
    assert run.last_step() == 24 and run.metrics() == here.metrics() and run.experiment == here.experiment
    jax.tree.map(np.testing.assert_array_equal, run.restore(21).params, here.restore(21).params)
    with pytest.raises(UserError, match=mentions(f"{bucket}/run", "checkpoint 27 21 24")):
        run.restore(27)
    assert parse_run_step(f"{bucket}/run:21")[1] == 21 and parse_run_step(f"{bucket}/run")[1] is None
    started = check_run(tmp_path / "new", dataclasses.replace(experiment, init_from=f"{bucket}/run"))
    assert started.experiment.init_from == f"{bucket}/run:24"
    state = initial_state(started)
    jax.tree.map(np.testing.assert_array_equal, state.params, here.restore().params)
    export([f"{bucket}/run", "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 1000
    with pytest.raises(UserError, match=mentions(f"{bucket}/nothing", "experiment.json")):
        open_run(f"{bucket}/nothing")
    assert not any(key.startswith("run/checkpoints/damaged") for key in store.keys())


@GS_FIRST
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_a_damaged_checkpoint_in_a_bucket_is_passed_over_and_replaced(store, bucket, home, experiment, capsys):
    store.upload(home / "run", "run")
    (largest,) = sorted(store.keys("run/checkpoints/24/state/d/"), key=lambda k: len(store.read(k)))[-1:]
    store.put(f"bucket/{largest}", store.read(largest)[:50])
    train(dataclasses.replace(experiment, steps=24), Path(f"{bucket}/run"), home / "data")
    assert mentions("damaged-24 step 21").search(capsys.readouterr().out)
    assert rows(store.read("run/metrics.jsonl")) == rows(home / "run")
    assert f"run/checkpoints/damaged-24/{largest.partition('/24/')[2]}" in store.keys()
    run = open_run(f"{bucket}/run")
    jax.tree.map(np.testing.assert_array_equal, run.restore(24).params, open_run(home / "run").restore(24).params)


def test_only_changed_files_are_sent_and_removed_ones_are_deleted(store, bucket):
    with open_for_training(f"{bucket}/run") as folder:
        (folder / "a").write_text("1")
        (folder / "b").write_text("2")
        (folder / "checkpoints" / "3").mkdir(parents=True)
        (folder / "checkpoints" / "3" / "x").write_text("Orbax' own")
        upload_changes(folder)
        sent = dict(store.objects)
        (folder / "b").unlink()
        (folder / "c").write_text("3")
    assert store.keys() == ["run/a", "run/c"] and store.objects["bucket/run/a"] == sent["bucket/run/a"]
    (folder / "left").write_text("by a process that was killed")
    with pytest.raises(UserError, match=mentions(f"{bucket}/run/lease.json", "lease stops")):
        with open_for_training(f"{bucket}/run") as folder:
            assert sorted(path.name for path in folder.iterdir()) == ["a", "c"]
            store.put("bucket/run/lease.json", b'{"holder": "another"}')
            (folder / "a").write_text("4")
    assert store.read("run/a") == b"1" and store.read("run/lease.json") == b'{"holder": "another"}'


def test_commands_that_need_a_disk_refuse_buckets(store, home, monkeypatch):
    from selfflow.cli.data import main as data
    from selfflow.cli.encode import main as encode
    from selfflow.cli.importing import main as importing

    with pytest.raises(UserError, match=mentions("--out s3://bucket/run")):
        importing(["weights.pt", "--out", "s3://bucket/run"])
    several = mentions("--workdir s3://bucket/run several processes gs://")
    with monkeypatch.context() as patch, pytest.raises(UserError, match=several):
        patch.setattr("selfflow.tasks.train.is_multiprocess", lambda: True)
        train(load_experiment(FILE), Path("s3://bucket/run"), home / "data")
    with pytest.raises(UserError, match=mentions("--data-dir s3://bucket/run/data --workdir s3://bucket/run")):
        train(load_experiment(FILE), Path("s3://bucket/run"), local_path("s3://bucket/run/data"))
    assert store.keys() == []
    with pytest.raises(UserError, match=mentions("--data-dir gs://bucket/data data list")):
        data(["list", "--data-dir", "gs://bucket/data"])
    publish(store, home)
    with pytest.raises(UserError, match=mentions("hosts 2 bucket")):
        encode([str(FILE), "--data-dir", "s3://bucket/data", "--hosts", "2"])
