"""Small media files of every kind, and short ways to decode and build them."""

import dataclasses
import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from selfflow.data.built import load_builder
from selfflow.data.media import Media
from selfflow.data.media.decode import clips
from selfflow.data.report import Notes, Unusable

# 10 frames of 0.1 s: small enough to make many
SMALL = Media(frames=10, frames_per_second=10.0, size=16, sample_rate=8000, hop_seconds=0.5,
              validation_fraction=0.0, test_fraction=0.0)  # fmt: skip


def write_video(
    path, seconds=2.0, fps=25, size=(64, 48), sample_rate=48000, layout="stereo", video_at=0.0, audio_at=0.0,
    flash=None, times=None, paint=None, quiet=False, rotate=None, codec="mpeg4", audio_seconds=None,
):  # fmt: skip
    """A video; `flash` is the second of the file at which, for 0.1 s, frames are white and the audio is loud."""
    ticks = 90000
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        per_frame = 1 / Fraction(fps).limit_denominator(1001)
        video.codec_context.time_base = per_frame if codec == "mpeg4" else Fraction(1, ticks)
        if rotate is not None:
            video.set_display_rotation(rotate)
        audio = None
        if sample_rate:
            audio_codec = "pcm_s16le" if str(path).endswith(("mkv", "mov")) else "aac"
            audio = container.add_stream(audio_codec, rate=sample_rate, layout=layout)
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
            n = round((audio_seconds or seconds) * sample_rate)
            at = audio_at + np.arange(n) / sample_rate
            wave = 0.02 * np.sin(2 * np.pi * 440 * at)
            if flash is not None:
                # Within the frame, because AAC smears an onset to some ms before it.
                wave = np.where((at >= flash + 0.02) & (at < flash + 0.08), 0.8 * np.sin(2 * np.pi * 1000 * at), wave)
            samples = (np.zeros(n) if quiet else wave * 32767).astype(np.int16)
            channels = len(audio.codec_context.layout.channels)
            frame_size = 1024
            for first in range(0, n, frame_size):
                part = np.repeat(samples[first : first + frame_size], channels)[None]
                frame = av.AudioFrame.from_ndarray(part, format="s16", layout=layout)
                frame.sample_rate, frame.time_base = sample_rate, Fraction(1, sample_rate)
                frame.pts = first + round(audio_at * sample_rate)
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def decode(path, media=SMALL):
    notes = Notes()
    return list(clips(path, media, notes)), {remark.reason: remark.detail for remark in notes.remarks("")}


def reason(path, media=SMALL):
    with pytest.raises(Unusable) as caught:
        decode(path, media)
    return caught.value.reason


def build(folder, data_dir, **settings):
    return load_builder(dataclasses.replace(SMALL, source=str(folder), **settings), data_dir)


def reasons(report, part):
    return {remark["file"]: remark["reason"] for remark in report[part]}


def tone(rate, seconds=2.0, frequency=440.0):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)


def quadrants(width=64, height=64):
    """Red, green / blue, white: shows every turn and mirror."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2, 0] = 255
    pixels[: height // 2, width // 2 :, 1] = 255
    pixels[height // 2 :, : width // 2, 2] = 255
    pixels[height // 2 :, width // 2 :] = 255
    return pixels


def write_tiff(path, array, white_is_zero=False, preview=False):
    """An uncompressed TIFF of one channel, of any type of number."""
    height, width = array.shape
    data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    bits, photometric = 8 * array.dtype.itemsize, int(not white_is_zero)
    tags = {254: int(preview), 256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8,
            277: 1, 278: height, 279: len(data), 339: kind}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory)
    return path
