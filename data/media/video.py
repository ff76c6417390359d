"""Decodes the frames of a video stream one by one."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter
from PIL import Image

from selfflow.data.media.container import Container, open_container, video_frames_with_times
from selfflow.data.media.hdr import to_sdr
from selfflow.data.media.image import crop_square, rgb
from selfflow.data.report import Notes

# A frame that lasts longer is a gap in the recording or an error of the timestamps, unless audio plays on.
LONGEST_FRAME = 10.0
# The same limit for containers that store the duration of every frame and no gaps.
_LONGEST_STORED = 3600.0
# Numbers of ITU-T H.273.
_UNSPECIFIED, _BT709 = 2, 1


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Attributes:
      start: when it is first shown, seconds.
      end: when it is last shown.
      read: decodes it to uint8 [size, size, 3], which is slow.
      next_start: when the next frame is shown, if that is after a gap; infinity for the last frame of a video.
    """

    start: float
    end: float
    read: Callable[[], np.ndarray]
    next_start: float | None = None


@dataclass(frozen=True)
class _FrameReader:
    """Converts frames of one stream to RGB, upright, cropped and resized.

    Attributes:
      reformatter: one for all frames, because making one is slower than using it.
      aspect: width of a pixel over its height.
      size: height and width of the result.
      alpha_is_padding: whether the fourth byte of a pixel is padding.
    """

    reformatter: VideoReformatter
    aspect: float
    size: int
    alpha_is_padding: bool

    def frame(self, start: float, end: float, source: av.VideoFrame, next_start: float | None = None) -> Frame:
        """Returns a frame with its times; converted when it is read."""
        return Frame(start, end, lambda: self._read(source), next_start)

    def _read(self, source: av.VideoFrame) -> np.ndarray:
        # As in players: what is larger than PAL and declares no colour space is BT.709.
        large = source.width >= 1280 or source.height > 576
        options = {"src_colorspace": _BT709} if source.colorspace == _UNSPECIFIED and large else {}
        has_alpha = source.format.has_palette or any(part.is_alpha for part in source.format.components)
        pixel_format = "rgba" if has_alpha and not self.alpha_is_padding else "rgb24"
        pixels = self.reformatter.reformat(source, format=pixel_format, **options).to_ndarray()
        pixels, transposed = _upright(pixels, source)
        image = rgb(Image.fromarray(pixels))
        pixels = crop_square(image, self.size, 1 / self.aspect if transposed else self.aspect)
        return to_sdr(pixels, int(source.color_trc))


def _upright(pixels: np.ndarray, source: av.VideoFrame) -> tuple[np.ndarray, bool]:
    """Pixels [H, W, C] transformed by the display matrix of their frame, and whether height and width were
    exchanged."""
    matrix = source.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return pixels, False
    # (x, y) of the source is shown at (a x + c y, b x + d y); y points downwards.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    if transposed:
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    pixels = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(pixels), transposed


def video_frames(source: Container, size: int, longest_lead: float, notes: Notes) -> Iterator[Frame]:
    """Yields the frames of a video in the order of time; a gap between `end` and the next `start` is a cut.

    A frame covers the times that it is nearest to, but no time more than `longest_lead` seconds before its own: what a
    player shows would be half a source frame late on average, relative to the audio. A frame that the next one follows
    after a gap ends with its duration, and has `next_start`.
    """
    with open_container(source.path) as container:
        stream = container.streams[source.video]
        # Decoding in several threads.
        stream.thread_type = "AUTO"
        reader = _FrameReader(
            reformatter=VideoReformatter(),
            aspect=float(stream.sample_aspect_ratio or 1),
            size=size,
            # Uncompressed AVI has pixels of 32 bits whose upper byte is not used.
            alpha_is_padding=container.format.name == "avi" and stream.codec_context.name == "rawvideo",
        )
        longest = _LONGEST_STORED if source.has_durations else LONGEST_FRAME
        usual_duration = 1 / float(stream.average_rate) if stream.average_rate else 0.04
        # The end of a frame depends on the next one, so that each waits for its successor.
        pending: tuple[float, float, av.VideoFrame] | None = None
        last_time, last_end, after_damage, duration = 0.0, 0.0, False, usual_duration
        for frame in video_frames_with_times(container, stream, notes, source):
            damaged = frame is None or frame.is_corrupt
            after_damage |= damaged
            if after_damage and (damaged or not frame.key_frame):
                # Until the next key frame, frames are predicted from damaged ones.
                if pending is not None:
                    yield reader.frame(*pending)
                    pending = None
                continue
            after_damage = False
            has_duration = frame.duration and frame.time_base
            duration = float(frame.duration * frame.time_base) if has_duration else usual_duration
            time = last_end if frame.pts is None else float(frame.pts * frame.time_base) - source.start
            start = time
            if pending is not None:
                if time <= last_time:
                    notes.count("timestamps that run backwards", "frames left out")
                    continue
                if time - last_time <= longest:
                    start = max((last_time + time) / 2, time - longest_lead)
                    yield reader.frame(pending[0], start, pending[2])
                else:
                    yield reader.frame(*pending, next_start=time)
            last_time, last_end = time, time + (duration if duration <= longest else LONGEST_FRAME)
            pending = (start, last_end, frame)
        if pending is not None:
            # After damage there are no pending frames: the end of what decodes is not that of the video.
            yield reader.frame(*pending, next_start=math.inf)
        if not source.has_timestamps:
            notes.add("no timestamps in the file", f"taken as {1 / duration:.5g} frames per second")
