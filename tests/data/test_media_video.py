"""Frames of videos: their times, orientation, transparency and colours, in many containers."""

import dataclasses
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from selfflow.data.media.decode import clips
from selfflow.data.media.hdr import to_sdr
from selfflow.data.report import Notes
from tests.data.media_files import SMALL, decode, quadrants, write_video
from tests.data.test_media_images import UPRIGHT, corners

# 5 frames of 0.2 s, each of them one frame of the source
SLOW = dataclasses.replace(SMALL, frames=5, frames_per_second=5.0, hop_seconds=1.0)


def encode(path, codec, frames, pix_fmt="yuv420p", fps=5, pixels="rgb24", format=None, tags=None, **options):
    """Frames [T, H, W, C] as a video without audio."""
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=fps, options={k.replace("_", "-"): v for k, v in options.items()})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        for number, x in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(x, format=pixels)
            frame = frame.reformat(format=pix_fmt) if pixels != pix_fmt else frame
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def ramp(count=15):
    """Frame i has the gray level 20 + 15 i."""
    return np.broadcast_to((20 + 15 * np.arange(count, dtype=np.uint8))[:, None, None, None], (count, 48, 64, 3)).copy()


@pytest.mark.parametrize(
    "name, codec, options",
    [
        ("plain.avi", "mpeg4", {"bf": "0"}),
        ("b.avi", "mpeg4", {"bf": "2"}),
        ("plain.avi", "libx264", {"bf": "0"}),
        ("b.avi", "libx264", {"bf": "2"}),
        ("pyramid.avi", "libx264", {"bf": "4", "b_pyramid": "normal", "preset": "slow"}),
        ("ffv1.avi", "ffv1", {}),
        ("wmv.asf", "wmv2", {}),
        ("b.asf", "mpeg4", {"bf": "2"}),
        ("b.mkv", "mpeg4", {"bf": "2"}),
        ("b.mp4", "libx264", {"bf": "3"}),
        ("b.mpg", "mpeg2video", {"bf": "2"}),
        ("b.ts", "libx264", {"bf": "3"}),
        ("b.flv", "libx264", {"bf": "3"}),
        ("vp8.ogg", "libvpx", {}),
        ("vp9.webm", "libvpx-vp9", {}),
        ("vp9.ivf", "libvpx-vp9", {}),
        ("raw.h264", "libx264", {"bf": "3"}),
        ("raw.m2v", "mpeg2video", {"bf": "2"}),
    ],
)  # fmt: skip
def test_every_frame_has_its_time(tmp_path, name, codec, options):
    path = encode(tmp_path / name, codec, ramp(), **options)
    decoded, notes = decode(path, SLOW)
    assert [clip.start for clip in decoded] == pytest.approx([0.0, 1.0, 2.0], abs=2e-3)
    levels = np.concatenate([clip.video.mean((1, 2, 3)) for clip in decoded])
    np.testing.assert_allclose(levels, ramp().mean((1, 2, 3)), atol=5)
    assert list(notes) == (["no timestamps in the file"] if name.startswith("raw") else [])


@pytest.mark.parametrize("codec, options", [("mpeg4", {"bf": "0"}), ("mpeg4", {"bf": "2"}), ("libx264", {"bf": "2"})])
def test_video_and_audio_of_avi_are_in_step(tmp_path, codec, options):
    path = tmp_path / "step.avi"
    levels = np.full(15, 20)
    levels[[0, 4, 9, 14]] = 230
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=5, options=options)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        loud = np.repeat(np.where(levels > 128, 20_000, 0), 1600).astype(np.int16)
        block = av.AudioFrame.from_ndarray(loud[None], format="s16", layout="mono")
        block.sample_rate, block.pts, block.time_base = 8000, 0, Fraction(1, 8000)
        for number, level in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 5)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        container.mux(audio.encode(block))
        container.mux(audio.encode(None))
    decoded, _ = decode(path, SLOW)
    shown = np.concatenate([clip.video.mean((1, 2, 3)) for clip in decoded]) > 128
    heard = (
        np.concatenate([np.abs(clip.audio.astype(int)).reshape(5, -1)[:, 400:1200].min(1) for clip in decoded]) > 6000
    )
    assert shown.tolist() == heard.tolist() == (levels > 128).tolist()


def orient(path, a, b, c, d):
    """Sets the display matrix of an mp4: (x, y) is shown at (a x + c y, b x + d y)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    for i, value in enumerate((a, b, 0, c, d, 0, 0, 0)):
        data[at + 4 * i : at + 4 * i + 4] = (value << 16).to_bytes(4, "big", signed=True)
    path.write_bytes(data)


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1),
                                    (0, 1, 1, 0), (0, 1, -1, 0), (0, -1, 1, 0), (0, -1, -1, 0)])  # fmt: skip
def test_all_eight_orientations(tmp_path, matrix):
    a, b, c, d = matrix
    # What is stored is the picture under the inverse of the matrix, which is its transpose.
    stored = np.zeros((64, 64, 3), np.uint8)
    y, x = np.indices((64, 64)) * 2 - 63
    stored[(y + 63) // 2, (x + 63) // 2] = quadrants()[(b * x + d * y + 63) // 2, (a * x + c * y + 63) // 2]
    path = write_video(tmp_path / "a.mp4", size=(64, 64), paint=lambda number, at: stored, sample_rate=None)
    orient(path, *matrix)
    assert corners(decode(path)[0][0].video[0]) == UPRIGHT


def test_a_turned_video_is_cropped_in_its_middle(tmp_path):
    bars = np.concatenate([np.zeros((16, 64, 3), np.uint8), quadrants(), np.zeros((16, 64, 3), np.uint8)])
    path = write_video(tmp_path / "a.mp4", size=(96, 64), sample_rate=None,
                       paint=lambda number, at: bars.swapaxes(0, 1).copy())  # fmt: skip
    orient(path, 0, 1, 1, 0)
    assert corners(decode(path)[0][0].video[0]) == UPRIGHT


@pytest.mark.parametrize(
    "name, codec, pix_fmt, options",
    [
        ("a.webm", "libvpx-vp9", "yuva420p", {}),
        ("b.webm", "libvpx", "yuva420p", {"auto_alt_ref": "0"}),
        ("c.mov", "prores_ks", "yuva444p10le", {"profile": "4444"}),
        ("d.mov", "qtrle", "argb", {}),
        ("e.mov", "png", "rgba", {}),
        ("f.mkv", "ffv1", "yuva420p", {}),
        ("g.avi", "utvideo", "gbrap", {}),
        ("h.mov", "rawvideo", "rgba", {}),
    ],
)
def test_transparent_parts_of_videos_are_white(tmp_path, name, codec, pix_fmt, options):
    frames = np.zeros((6, 64, 64, 4), np.uint8)
    frames[..., 0] = 200  # red, on the right below full transparency
    frames[:, :, :32, 3] = 255
    path = encode(tmp_path / name, codec, frames, pix_fmt, pixels="rgba", **options)
    (clip,), notes = decode(path, SLOW)
    np.testing.assert_allclose(clip.video[0, 8, 3], (200, 0, 0), atol=4)
    assert clip.video[0, 8, 13].min() >= 252 and not notes
    still = Image.fromarray(frames[0])
    still.save(tmp_path / "still.webp", lossless=True)
    still.save(tmp_path / "still.png")
    for image in ("still.webp", "still.png"):
        pixels = decode(tmp_path / image, SLOW)[0][0].image
        np.testing.assert_allclose(pixels.astype(int), clip.image, atol=40 if "yuva4" in pix_fmt else 4)


def test_the_fourth_byte_of_uncompressed_avi_is_no_transparency(tmp_path):
    frames = np.full((6, 64, 64, 4), (20, 30, 200, 0), np.uint8)
    path = encode(tmp_path / "raw.avi", "rawvideo", frames, "bgra", pixels="bgra")
    np.testing.assert_allclose(decode(path, SLOW)[0][0].video[0, 8, 8], (200, 30, 20), atol=2)


@pytest.mark.parametrize("transfer, signal", [(16, 149), (18, 191)])  # 203 cd/m2 in PQ, and in HLG at 1000 cd/m2
def test_high_dynamic_range_becomes_ordinary_colours(tmp_path, transfer, signal):
    levels = np.array([0, signal // 2, signal, 255], np.uint8)
    gray = to_sdr(np.repeat(levels[:, None, None], 3, 2), transfer)[:, 0, 0]
    assert gray[0] == 0 and gray[2] >= 252 and gray[3] == 255 and 60 < gray[1] < 180
    # Red of BT.709, which is a mixture in BT.2020, stays red.
    pure = to_sdr(np.array([[[255, 0, 0]]], np.uint8), transfer)[0, 0]
    assert pure[0] == 255 and pure[1] == pure[2] == 0
    tags = {"color_trc": transfer, "color_primaries": 9, "colorspace": 9, "color_range": 1}
    frames = np.broadcast_to(np.repeat(levels, 16)[None, None, :, None], (6, 64, 64, 3)).copy()
    path = encode(tmp_path / "hdr.mkv", "libx264", frames, "yuv420p10le", tags=tags, crf="4")
    (clip,), _ = decode(path, SLOW)
    np.testing.assert_allclose(clip.video[0, 8, [1, 6, 9, 14], 0].astype(int), gray.astype(int), atol=6)


@pytest.mark.parametrize("size, matrix", [((48, 64), 5), ((576, 720), 5), ((32, 1280), 1), ((580, 32), 1)])
def test_colours_without_a_tag_are_those_of_players(tmp_path, size, matrix):
    colour = np.array((200, 40, 60), np.uint8)
    frame = av.VideoFrame.from_ndarray(np.broadcast_to(colour, (*size, 3)).copy(), format="rgb24")
    planes = frame.reformat(format="yuv444p", dst_colorspace=matrix, dst_color_range=1).to_ndarray()
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv444p"
        for number in range(6):
            copy = av.VideoFrame.from_ndarray(planes, format="yuv444p")
            copy.pts, copy.time_base = number, Fraction(1, 5)
            container.mux(stream.encode(copy))
        container.mux(stream.encode(None))
    np.testing.assert_allclose(decode(tmp_path / "a.mkv", SLOW)[0][0].video[0, 8, 8], colour, atol=4)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (33, 17)])
def test_videos_of_one_pixel_and_odd_sides(tmp_path, size):
    frames = np.full((6, *size, 3), (200, 100, 50), np.uint8)
    for name, codec, pix_fmt in (("a.mov", "png", "rgb24"), ("a.mp4", "libx264", "yuv444p")):
        (clip,), _ = decode(encode(tmp_path / name, codec, frames, pix_fmt), SLOW)
        np.testing.assert_allclose(clip.video, np.broadcast_to(frames[0, 0, 0], clip.video.shape), atol=6)


SLIDES = [0.0, 15.0, 32.0, 33.0, 58.0, 59.0]


def slides(path, times, seconds_of_audio=None):
    def paint(number, at):
        return np.full((48, 64, 3), 20 + 40 * (number % 6), np.uint8)

    return write_video(path, times=times, paint=paint, codec="libx264", sample_rate=8000 if seconds_of_audio else None,
                       audio_seconds=seconds_of_audio, layout="mono")  # fmt: skip


@pytest.mark.parametrize("name, audio", [("a.mp4", None), ("b.mp4", 59.0), ("c.mkv", 59.0), ("d.mov", None)])
def test_a_slide_is_shown_until_the_next(tmp_path, name, audio):
    path = slides(tmp_path / name, SLIDES, audio)
    decoded, notes = decode(path, SLOW)
    assert [clip.start for clip in decoded] == pytest.approx(np.arange(len(decoded)), abs=2e-3) and len(decoded) >= 59
    for clip in decoded[:58]:
        shown = [max(i for i, t in enumerate(SLIDES) if t <= clip.start + k / 5 + 0.101) for k in range(5)]
        np.testing.assert_allclose(clip.video.mean((1, 2, 3)), [20 + 40 * i for i in shown], atol=6)
        assert (clip.audio is not None) == bool(audio)
    assert "gaps" not in str(notes)


def test_a_gap_in_a_recording_is_counted(tmp_path):
    times = [i / 5 for i in range(10)] + [40 + i / 5 for i in range(10)]
    decoded, notes = decode(slides(tmp_path / "gap.mkv", times, 2.0), SLOW)
    assert [round(clip.start) for clip in decoded] == [0, 1, 40, 41]
    assert "1 gaps" in notes.values()
    # An error in the durations of mp4 must not make clips without end.
    times = [i / 5 for i in range(10)] + [5000 + i / 5 for i in range(10)]
    count = sum(1 for _ in clips(slides(tmp_path / "jump.mp4", times), SLOW, Notes()))
    assert count < 20


def test_a_joined_transport_stream_is_used_to_its_joint_with_a_remark(tmp_path):
    one = encode(tmp_path / "one.ts", "libx264", ramp()).read_bytes()
    (tmp_path / "two.ts").write_bytes(one + one)
    decoded, notes = decode(tmp_path / "two.ts", SLOW)
    assert [round(clip.start) for clip in decoded] == [0, 1, 2]
    assert notes["timestamps that run backwards"].startswith(("14 ", "15 "))


def test_one_frame_with_music(tmp_path):
    path = slides(tmp_path / "music.mkv", [0.0], 35.0)
    decoded, notes = decode(path, SLOW)
    assert [clip.start for clip in decoded] == pytest.approx(np.arange(30), abs=0.05)
    assert all(clip.audio is not None for clip in decoded)
    assert notes == {"audio after the last frame": notes["audio after the last frame"]}


def test_parts_of_a_file_that_are_not_used_are_counted(tmp_path):
    path = write_video(tmp_path / "late.mkv", video_at=1.5, audio_at=0.0, codec="libx264", seconds=2.0)
    assert decode(path)[1]["audio before the first frame"] == "1.5 s left out"
    path = write_video(tmp_path / "long.mkv", seconds=2.0, audio_seconds=5.0)
    decoded, notes = decode(path)
    assert len(decoded) == 3 and notes == {"audio after the last frame": "3.0 s left out"}
    with av.open(str(tmp_path / "two.mkv"), "w") as container:
        streams = [container.add_stream("ffv1", rate=10, width=16, height=16, pix_fmt="yuv420p") for _ in range(2)]
        for number in range(20):
            for stream, level in zip(streams, (50, 200), strict=True):
                frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), level, np.uint8), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 10)
                container.mux(stream.encode(frame))
    decoded, notes = decode(tmp_path / "two.mkv")
    assert abs(decoded[0].video.mean() - 50) < 4 and list(notes) == ["several video or audio streams"]
    pages = [Image.new("L", (16, 16), level) for level in (50, 100, 200)]
    pages[0].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[1:])
    assert decode(tmp_path / "pages.tiff")[1] == {"several pages": "the first of 3 is used"}


def test_audio_of_a_file_whose_video_has_no_frames(tmp_path):
    whole = write_video(tmp_path / "whole.mkv", codec="libx264")
    with av.open(str(whole)) as source, av.open(str(tmp_path / "audio.mkv"), "w") as target:
        copies = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None and packet.stream.type == "audio":
                packet.stream = copies[packet.stream.index]
                target.mux(packet)
    decoded, notes = decode(tmp_path / "audio.mkv")
    assert len(decoded) == 3 and decoded[0].video is None and "no frame could be decoded" in notes
    # A codec that this FFmpeg does not know.
    (tmp_path / "unknown.mkv").write_bytes(whole.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/XXX"))
    decoded, notes = decode(tmp_path / "unknown.mkv")
    assert len(decoded) == 3 and decoded[0].video is None and notes == {"streams without a decoder": "1 streams"}


def test_a_recording_that_was_cut_is_used_with_a_remark(tmp_path):
    with av.open(str(tmp_path / "whole.mp4"), "w", options={"movflags": "frag_keyframe+empty_moov"}) as container:
        stream = container.add_stream(
            "libx264", rate=5, width=64, height=48, pix_fmt="yuv420p", options={"g": "5", "bf": "0"}
        )
        for number, x in enumerate(ramp()):
            frame = av.VideoFrame.from_ndarray(x, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = (tmp_path / "whole.mp4").read_bytes()
    assert len(decode(tmp_path / "whole.mp4", SLOW)[0]) == 3 and not decode(tmp_path / "whole.mp4", SLOW)[1]
    # Within the last of three fragments.
    (tmp_path / "cut.mp4").write_bytes(data[: data.rindex(b"mdat") + 10])
    decoded, notes = decode(tmp_path / "cut.mp4", SLOW)
    assert len(decoded) == 2 and "incomplete file" in notes
    for number, clip in enumerate(decoded):
        np.testing.assert_allclose(clip.video.mean((1, 2, 3)), 20 + 15 * (5 * number + np.arange(5)), atol=5)


def test_the_last_frame_before_damage_does_not_stay(tmp_path):
    path = slides(tmp_path / "whole.mkv", [i / 5 for i in range(100)], 35.0)
    decoded, notes = decode(path, SLOW)
    assert [round(clip.start) for clip in decoded] == list(range(30)) and "audio after the last frame" in notes
    # Damage to every frame after the first key frame, not to audio.
    with av.open(str(path)) as source, av.open(str(tmp_path / "damaged.mkv"), "w") as target:
        copies = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if not packet.size:
                continue
            copy = packet
            if packet.stream.type == "video" and packet.pts * packet.time_base > 6:
                copy = av.Packet(b"\xff" * packet.size)
                copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
                copy.is_keyframe = False
            copy.stream = copies[packet.stream.index]
            target.mux(copy)
    decoded, notes = decode(tmp_path / "damaged.mkv", SLOW)
    assert (
        4 <= len(decoded) <= 6 and "damaged" in notes and notes["audio after the last frame"].startswith(("28", "29"))
    )
