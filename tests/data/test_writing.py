"""The one writer: two at once, killed builds, full disks, many shards."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfflow.data import writing
from selfflow.data.built import load_builder
from selfflow.data.digits import Digits
from selfflow.data.records import Records
from selfflow.errors import UserError
from tests.conftest import mentions

SMALL = Digits(size=8)

# Builds digits with a pause on the way, so that others meet it at work.
SCRIPT = """
import sys, time
from pathlib import Path
import selfflow.progress
from selfflow.data.built import load_builder
from selfflow.data.digits import Digits

def with_pause(items, *rest, **more):
    for number, item in enumerate(items):
        if number == 300:
            print("writing", flush=True)
            time.sleep(float(sys.argv[2]))
        yield item

selfflow.progress.progress = with_pause
builder = load_builder(Digits(size=8), Path(sys.argv[1]))
print(len(builder.as_data_source("train")), "tensorflow" in sys.modules, flush=True)
"""


def start(folder: Path, script: Path, pause: float) -> subprocess.Popen:
    script.write_text(SCRIPT, encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, script, folder, str(pause)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(process: subprocess.Popen, word: str) -> None:
    for line in process.stdout:
        if line.strip() == word:
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.resilience
def test_a_late_second_builder_waits_and_finds_the_set(tmp_path, capsys):
    first = start(tmp_path / "data", tmp_path / "script.py", 1.0)
    wait_for(first, "writing")
    start_time = time.monotonic()
    builder = load_builder(SMALL, tmp_path / "data")
    assert 0.2 < time.monotonic() - start_time < 30
    assert mentions("another process", tmp_path / "data" / "digits" / "size_8" / "1.0.0").search(
        capsys.readouterr().err
    )
    out, err = first.communicate(timeout=30)
    assert out.split() == ["1438", "False"], err
    assert len(builder.as_data_source("train")) == 1438
    assert sorted(path.name for path in (tmp_path / "data" / "digits" / "size_8").iterdir()) == ["1.0.0"]


@pytest.mark.resilience
def test_a_killed_build_is_cleared_away_by_the_next(tmp_path):
    folder = tmp_path / "data"
    killed = start(folder, tmp_path / "script.py", 60.0)
    wait_for(killed, "writing")
    config = folder / "digits" / "size_8"
    assert list(config.glob("incomplete.*/unfinished-train-*")) and not (config / "1.0.0").exists()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert list(config.glob("incomplete.*")), "nobody has cleaned up yet"
    assert len(load_builder(SMALL, folder).as_data_source("train")) == 1438
    assert [path.name for path in config.iterdir()] == ["1.0.0"]


def test_without_locks_leftovers_stay_and_the_set_is_good(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(95, "Operation not supported")

    (tmp_path / "digits" / "size_8" / "incomplete.ABC_1.0.0").mkdir(parents=True)
    monkeypatch.setattr(writing.fcntl, "flock", refuse)
    assert len(load_builder(SMALL, tmp_path).as_data_source("train")) == 1438
    assert (tmp_path / "digits" / "size_8" / "incomplete.ABC_1.0.0").exists()


def test_many_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SHARD_BYTES", 20_000)
    builder = load_builder(SMALL, tmp_path)
    info = builder.info.splits["train"]
    assert info.num_shards > 5 and sum(info.shard_lengths) == 1438
    records = Records(SMALL, builder.data_dir, "train")
    assert len({records[i]["id"] for i in range(0, 1438, 7)}) == len(range(0, 1438, 7))
    names = [records.shard_of(i) for i in range(len(records))]
    assert sorted(set(names)) == sorted(Path(path).name for path in info.filenames) and names == sorted(names)


@pytest.mark.resilience
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    code = (
        "import resource, pathlib, selfflow.data.digits as d; from selfflow.errors import UserError\n"
        "from selfflow.data.built import load_builder\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        f"try: load_builder(d.Digits(size=64), pathlib.Path({str(tmp_path)!r}))\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert mentions("data_dir", tmp_path, "File too large").search(done.stdout) and done.stdout.count("\n") == 1
    assert not list(tmp_path.rglob("*.array_record*")) and not list(tmp_path.rglob("incomplete*"))


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=mentions("data_dir Not a directory")):
        load_builder(SMALL, tmp_path / "file" / "inside")
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(UserError, match=mentions("data_dir Permission denied")):
            load_builder(SMALL, tmp_path / "closed")
