"""Damaged and unusual files."""

import itertools
import random
import time

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from selfflow.data.media.decode import clips
from selfflow.data.report import Notes, read_report
from tests.data.media_files import SMALL, build, decode, quadrants, reason, reasons, tone, write_video


def test_reasons(tmp_path):
    (tmp_path / "empty.mp4").touch()
    assert reason(tmp_path / "empty.mp4") == "empty file"
    (tmp_path / "notes.txt").write_text("nothing to see here\n" * 50)
    assert reason(tmp_path / "notes.txt") == "not media"
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:2,\nother.mp4\n#EXT-X-ENDLIST\n")
    assert reason(tmp_path / "list.m3u8") in ("not media", "unreadable")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    assert reason(tmp_path / "noise.mp4") == "unreadable"
    assert reason(write_video(tmp_path / "short.mkv", seconds=0.6)) == "shorter than a clip"
    soundfile.write(tmp_path / "short.wav", tone(8000, 0.5), 8000)
    assert reason(tmp_path / "short.wav") == "shorter than a clip"
    soundfile.write(tmp_path / "silent.flac", np.zeros(16000), 8000)
    assert reason(tmp_path / "silent.flac") == "digital silence"


def test_a_silent_audio_stream_leaves_the_video(tmp_path):
    for name in ("quiet.mkv", "quiet.mp4"):
        decoded, notes = decode(write_video(tmp_path / name, quiet=True))
        assert len(decoded) == 3 and all(clip.audio is None for clip in decoded)
        assert notes == {"digital silence, the clip is kept without audio": "3 clips"}


def test_audio_that_ends_early_is_not_padded(tmp_path):
    decoded, notes = decode(write_video(tmp_path / "early.mkv", seconds=2.0, audio_seconds=1.2))
    assert [clip.audio is not None for clip in decoded] == [True, False, False]
    assert notes == {"audio does not cover the whole clip, which is kept without it": "2 clips"}


def test_album_covers_are_no_video(tmp_path):
    soundfile.write(tmp_path / "song.flac", tone(44100), 44100)
    cover = tmp_path / "cover.png"
    Image.fromarray(quadrants()).save(cover)
    data = bytearray((tmp_path / "song.flac").read_bytes())
    mime, png = b"image/png", cover.read_bytes()
    block = (3).to_bytes(4, "big") + len(mime).to_bytes(4, "big") + mime + (0).to_bytes(4, "big")
    block += b"".join(n.to_bytes(4, "big") for n in (64, 64, 24, 0)) + len(png).to_bytes(4, "big") + png
    at = 4 + 4 + int.from_bytes(data[5:8], "big")  # after STREAMINFO
    data[at:at] = bytes([6]) + len(block).to_bytes(3, "big") + block
    (tmp_path / "song.flac").write_bytes(data)
    with av.open(str(tmp_path / "song.flac")) as container:
        assert container.streams.video
    decoded, _ = decode(tmp_path / "song.flac")
    assert len(decoded) == 3 and decoded[0].video is None and decoded[0].audio is not None


def test_titles_that_are_not_utf8(tmp_path):
    path = tmp_path / "named.mkv"
    with av.open(str(write_video(tmp_path / "plain.mkv"))) as source, av.open(str(path), "w") as target:
        target.metadata["title"] = "CAFETITLE"
        copy = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    data = path.read_bytes()
    assert data.count(b"CAFETITLE") == 1
    path.write_bytes(data.replace(b"CAFETITLE", b"CAF\xe9TITLE"))
    assert len(decode(path)[0]) == 3


@pytest.mark.parametrize("name", ["cut.mkv", "cut.wav", "cut.flac", "cut.mp3"])
def test_what_decodes_of_a_truncated_file_is_kept(tmp_path, name):
    path = tmp_path / name
    if name.endswith("mkv"):
        noise = np.random.default_rng(0).integers(0, 255, (100, 48, 64, 3), dtype=np.uint8)
        write_video(path, seconds=4.0, paint=lambda number, at: noise[number], sample_rate=None)
    else:
        soundfile.write(path, tone(44100, 4.0), 44100)
    whole, notes = decode(path)
    assert not notes
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    decoded, notes = decode(path)
    assert 0 < len(decoded) < len(whole)
    for before, after in zip(whole, decoded):  # noqa: B905
        assert before.start == after.start
        if before.video is not None:
            np.testing.assert_array_equal(before.video, after.video)
        else:  # the resampler looks a little ahead
            np.testing.assert_array_equal(before.audio[:-200], after.audio[:-200])
    assert "truncated" in notes and notes["truncated"].endswith("of 4.0 s")


def test_timestamps_that_jump_do_not_make_clips_without_end(tmp_path):
    times = [i / 25 for i in range(30)] + [1e6 + i / 25 for i in range(30)]
    path = write_video(tmp_path / "jump.mkv", times=times, sample_rate=None, codec="libx264")
    decoded, _ = decode(path)
    assert [round(clip.start) for clip in decoded] == [0, 1000000]


def test_a_long_file_is_read_in_bounded_memory(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.tile(tone(8000, 1.0), 400), 8000)
    import tracemalloc

    tracemalloc.start()
    count = sum(1 for _ in clips(tmp_path / "long.wav", SMALL, Notes()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 799 and peak < 3e6  # the whole, as float32, is 12.8 MB


def test_broken_bytes_never_crash_or_hang(tmp_path):
    write_video(tmp_path / "a.mp4", seconds=1.5)
    write_video(tmp_path / "b.mkv", seconds=1.5, codec="libx264")
    soundfile.write(tmp_path / "c.flac", tone(44100, 1.5), 44100)
    soundfile.write(tmp_path / "d.ogg", tone(44100, 1.5), 44100)
    soundfile.write(tmp_path / "e.wav", tone(44100, 1.5), 44100)
    Image.fromarray(quadrants()).save(tmp_path / "f.png")
    Image.fromarray(quadrants()).save(tmp_path / "g.jpg")
    originals = {path: path.read_bytes() for path in sorted(tmp_path.iterdir())}
    draw = random.Random(1)
    broken = tmp_path / "broken"
    broken.mkdir()
    for number, (path, data) in enumerate(itertools.islice(itertools.cycle(originals.items()), 84)):
        data = bytearray(data)
        for _ in range(draw.choice((1, 8, 64))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        if number % 3 == 0:
            data = data[: draw.randrange(1, len(data))]
        (broken / f"{number:03d}{path.suffix}").write_bytes(data)
    started = time.monotonic()
    ready = build(broken, tmp_path / "out")
    assert time.monotonic() - started < 60
    report = read_report(ready)
    assert report["files"] == 84
    touched = reasons(report, "skipped") | reasons(report, "partial")
    assert report["used"] + len(reasons(report, "skipped")) == 84 and len(touched) > 10
    count = sum(1 for record in ready.as_data_source("train") if record["video"].shape == (10, 16, 16, 3))
    assert count == sum(report["records"]["train"].values())
