"""Decodes the frames of a video stream one by one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from selfflow.data.media.container import Container, decoded_frames, open_container
from selfflow.data.media.image import crop_square
from selfflow.data.report import Notes

# A frame that lasts longer is a gap in the recording or an error of the timestamps.
LONGEST_FRAME = 10.0


@dataclass(frozen=True)
class Frame:
    """A frame that is shown from `start` to `end` (s); `read()` decodes it to uint8 [size, size, 3], which is slow."""

    start: float
    end: float
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class _FrameReader:
    """Converts frames of one stream to RGB, upright, cropped and resized.

    Attributes:
      reformatter: one for all frames, because making one is slower than using it.
      aspect: width of a pixel over its height.
      size: height and width of the result.
    """

    reformatter: VideoReformatter
    aspect: float
    size: int

    def frame(self, start: float, end: float, source: av.VideoFrame) -> Frame:
        """A frame with its times; converted when it is read."""

        def read() -> np.ndarray:
            # As in players: high definition without a declared colour space is BT.709.
            options = {"src_colorspace": "ITU709"} if source.colorspace == 2 and source.height >= 720 else {}
            image = Image.fromarray(self.reformatter.reformat(source, format="rgb24", **options).to_ndarray())
            quarter_turns = round(source.rotation / 90) % 4
            if quarter_turns:
                turns = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
                image = image.transpose(turns[quarter_turns - 1])
            return crop_square(image, self.size, 1 / self.aspect if quarter_turns % 2 else self.aspect)

        return Frame(start, end, read)


def video_frames(source: Container, size: int, longest_lead: float, notes: Notes) -> Iterator[Frame]:
    """The frames of a video in the order of time; a gap between `end` and the next `start` is a cut.

    A frame covers the times that it is nearest to, but no time more than `longest_lead` seconds before its own: what a
    player shows would be half a source frame late on average, relative to the audio.
    """
    with open_container(source.path) as container:
        stream = container.streams[source.video]
        # Decoding in several threads.
        stream.thread_type = "AUTO"
        reader = _FrameReader(VideoReformatter(), float(stream.sample_aspect_ratio or 1), size)
        usual_duration = 1 / float(stream.average_rate) if stream.average_rate else 0.04
        # The end of a frame depends on the next one, so that each waits for its successor.
        pending: tuple[float, float, av.VideoFrame] | None = None
        last_time, last_end, after_damage = 0.0, 0.0, False
        for frame in decoded_frames(container, stream, notes):
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
                if time - last_time <= LONGEST_FRAME:
                    start = max((last_time + time) / 2, time - longest_lead)
                    pending = (pending[0], start, pending[2])
                yield reader.frame(*pending)
            last_time, last_end = time, time + min(duration, LONGEST_FRAME)
            pending = (start, last_end, frame)
        if pending is not None:
            yield reader.frame(*pending)
