"""A file's picture and its sound as two streams on one clock, in memory that does not grow with its length.

Both read the file on their own, so that a file whose picture and sound are far apart needs no more memory than
any other. Times are seconds since the file's start; positions are sample numbers at the asked sample rate.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
from av.video.reformatter import VideoReformatter
from PIL import Image

from selfflow.data.media.image import crop_square
from selfflow.data.report import Notes

# A picture that stands for longer is taken for a hole in the recording, or for broken timestamps.
LONGEST_HOLD = 10.0
# Sound that is this far (s) from where its timestamp puts it is moved there.
_LARGEST_DRIFT = 0.04
# FFmpeg shows texts as terminals and follows playlists to other files; still images are Pillow's.
_NOT_FOR_PYAV = {"tty", "ansi", "bin", "xbin", "adf", "idf", "hls", "dash", "concat", "gif", "apng", "image2", "ico"}
_ERRORS = (av.FFmpegError, ValueError)
# Titles that are not UTF-8 say nothing about the pictures. From version 19 on, PyAV takes them as they are.
_TITLES = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


class Unreadable(Exception):
    """A file that gives no clips; `reason` is the same for files of one sort, `detail` is about this one."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Picture:
    """What is shown from `start` to `end` (s); `read()` makes it uint8 [size, size, 3] and costs time."""

    start: float
    end: float
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Tracks:
    """What PyAV finds in a file; `seconds` is the length that its header claims, None if it claims none."""

    path: Path
    picture: int | None
    sound: int | None
    start: float
    seconds: float | None


def open_tracks(path: Path) -> Tracks:
    """Looks into a video or sound file.

    Raises:
      Unreadable: PyAV cannot open it, or there is no picture and no sound in it.
    """
    with _open(path) as container:
        if set(container.format.name.split(",")) & _NOT_FOR_PYAV or container.format.name.endswith("_pipe"):
            raise Unreadable("not media")
        picture = sound = None
        for stream in container.streams:
            if stream.type not in ("video", "audio") or stream.codec_context is None:
                continue
            if stream.disposition & av.stream.Disposition.attached_pic:  # the cover of an album
                continue
            if stream.type == "video" and picture is None:
                picture = stream.index
            if stream.type == "audio" and sound is None:
                sound = stream.index
        if picture is None and sound is None:
            raise Unreadable("no picture and no sound in it")
        return Tracks(path, picture, sound, (container.start_time or 0) / av.time_base, _claimed(container, path))


def pictures(tracks: Tracks, size: int, lead: float, notes: Notes) -> Iterator[Picture]:
    """The pictures of a video in the order of time; a hole between `end` and the next `start` is a cut.

    A picture stands for the times that it is nearest to, but for no time more than `lead` seconds before its own:
    what a player shows would come half a source frame late on average, against the sound.
    """
    with _open(tracks.path) as container:
        stream = container.streams[tracks.picture]
        stream.thread_type = "AUTO"
        aspect = float(stream.sample_aspect_ratio or 1)
        usual = 1 / float(stream.average_rate) if stream.average_rate else 0.04
        to_rgb = VideoReformatter()  # one for all pictures: to make it takes longer than to use it
        held: tuple[float, float, av.VideoFrame] | None = None
        last, last_end, after_damage = 0.0, 0.0, False
        for frame in _frames(container, stream, notes):
            if frame is None or frame.is_corrupt:
                after_damage = True
            if after_damage and (frame is None or frame.is_corrupt or not frame.key_frame):
                if held is not None:  # until the next key frame, pictures are built upon broken ones
                    yield _shown(*held, to_rgb, aspect, size)
                    held = None
                continue
            after_damage = False
            lasts = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else usual
            time = last_end if frame.pts is None else float(frame.pts * frame.time_base) - tracks.start
            start = time
            if held is not None:
                if time <= last:
                    notes.count("timestamps that run backwards", "pictures left out")
                    continue
                if time - last <= LONGEST_HOLD:
                    start = max((last + time) / 2, time - lead)
                    held = (held[0], start, held[2])
                yield _shown(*held, to_rgb, aspect, size)
            last, last_end = time, time + min(lasts, LONGEST_HOLD)
            held = (start, last_end, frame)
        if held is not None:
            yield _shown(*held, to_rgb, aspect, size)


def sound(tracks: Tracks, sample_rate: int, notes: Notes) -> Iterator[tuple[int, np.ndarray]]:
    """The sound of a file as (position of its first sample, float32 [n] in [-1, 1]) in the order of time."""
    with _open(tracks.path) as container:
        stream = container.streams[tracks.sound]
        stream.thread_type = "AUTO"

        def timed() -> Iterator[tuple[float | None, int, np.ndarray] | None]:
            for frame in _frames(container, stream, notes):
                if frame is None or not frame.samples:
                    yield None
                    continue
                time = None if frame.pts is None else float(frame.pts * frame.time_base) - tracks.start
                yield time, frame.sample_rate, _mono(frame)

        yield from _resampled(timed(), sample_rate)


def sound_of_soundfile(path: Path, sample_rate: int) -> Iterator[tuple[int, np.ndarray]]:
    """As `sound`, for what PyAV does not read.

    Raises:
      Unreadable: soundfile cannot open it either.
    """
    with open(path, "rb") as file:
        head = file.read(3)
    if head == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] >= 0xE0):
        raise Unreadable("not media", "a broken MP3")  # libsndfile would complain on stderr, and PyAV knows more of it
    try:
        opened = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, TypeError) as error:
        raise Unreadable("not media", str(error)) from error

    def timed() -> Iterator[tuple[float, int, np.ndarray]]:
        with opened:
            for number, block in enumerate(opened.blocks(1 << 16, dtype="float32", always_2d=True)):
                yield (number << 16) / opened.samplerate, opened.samplerate, np.nan_to_num(block.mean(axis=1))

    return _resampled(timed(), sample_rate)


def _resampled(timed, sample_rate: int) -> Iterator[tuple[int, np.ndarray]]:
    """Resamples runs of sound; a run ends at damage (None), at a jump in time and where the source's rate changes."""
    resampler, rate, started, fed, position, cursor = None, 0, 0.0, 0, 0, None

    def ahead(samples: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        nonlocal position, cursor
        first, position = position, position + len(samples)
        if cursor is not None and first < cursor:  # time ran backwards: what came first stays
            first, samples = cursor, samples[cursor - first :]
        if len(samples):
            cursor = first + len(samples)
            yield first, samples

    for piece in timed:
        expected = started + fed / rate if rate else 0.0
        if piece is not None and resampler is not None:
            time = expected if piece[0] is None else piece[0]
            if piece[1] == rate and abs(time - expected) <= _LARGEST_DRIFT:
                fed += len(piece[2])
                yield from ahead(resampler.resample_chunk(piece[2]))
                continue
        if resampler is not None:
            yield from ahead(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
            resampler = None
        if piece is None or piece[1] <= 0:
            continue
        started, rate, fed = expected if piece[0] is None else piece[0], piece[1], len(piece[2])
        position = round(started * sample_rate)
        resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")
        yield from ahead(resampler.resample_chunk(piece[2]))
    if resampler is not None:
        yield from ahead(resampler.resample_chunk(np.zeros(0, np.float32), last=True))


def _open(path: Path):
    try:
        # a playlist must not reach out to the network
        return av.open(str(path), options={"protocol_whitelist": "file"}, **_TITLES)
    except (*_ERRORS, OSError, EOFError, MemoryError) as error:
        raise Unreadable("unreadable", getattr(error, "strerror", None) or str(error)) from error


def _claimed(container, path: Path) -> float | None:
    """The length in seconds that a file's header tells; None where it would be a guess from the bit rate."""
    if not container.duration:
        return None
    names, seconds = set(container.format.name.split(",")), container.duration / av.time_base
    if "wav" in names:  # FFmpeg tells what is there, RIFF what should be
        with open(path, "rb") as file:
            head = file.read(8)
        whole, size = int.from_bytes(head[4:8], "little") + 8, path.stat().st_size
        return seconds * whole / size if head[:4] == b"RIFF" and size < whole < 2**32 - 8 else seconds
    if "mp3" in names:
        with open(path, "rb") as file:
            head = file.read(1 << 16)
        return seconds if b"Xing" in head or b"Info" in head else None
    told = {"mov", "matroska", "avi", "flac", "asf", "flv", "aiff", "au"}
    return seconds if names & told else None


def _frames(container, stream, notes: Notes) -> Iterator["av.frame.Frame | None"]:
    """The frames of a stream, None where something could not be decoded."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except EOFError:
            return
        except _ERRORS:  # no further packet can be read, but the decoder still holds pictures
            notes.count("damaged", "places")
            try:
                yield from stream.codec_context.decode(None)
            except (EOFError, *_ERRORS):
                pass
            return
        if packet is None:
            return
        try:
            frames = packet.decode()
        except EOFError:
            return
        except _ERRORS:
            notes.count("damaged", "places")
            yield None
            continue
        yield from frames


def _shown(
    start: float, end: float, frame: av.VideoFrame, to_rgb: VideoReformatter, aspect: float, size: int
) -> Picture:
    def read() -> np.ndarray:
        # as players do: high definition that does not say otherwise has the colours of BT.709
        guess = {"src_colorspace": "ITU709"} if frame.colorspace == 2 and frame.height >= 720 else {}
        image = Image.fromarray(to_rgb.reformat(frame, format="rgb24", **guess).to_ndarray())
        quarter_turns = round(frame.rotation / 90) % 4
        if quarter_turns:
            turn = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
            image = image.transpose(turn[quarter_turns - 1])
        return crop_square(image, size, 1 / aspect if quarter_turns % 2 else aspect)

    return Picture(start, end, read)


def _mono(frame: av.AudioFrame) -> np.ndarray:
    """The mean of a frame's channels, float32 [n] in [-1, 1], without the subwoofer, which few loudspeakers play."""
    names = [channel.name for channel in frame.layout.channels]
    array = frame.to_ndarray()
    if not frame.format.is_planar:
        array = array.reshape(-1, len(names)).T
    if array.dtype == np.uint8:
        array = (array.astype(np.float32) - 128) / 128
    elif np.issubdtype(array.dtype, np.integer):
        array = array.astype(np.float32) / -float(np.iinfo(array.dtype).min)
    kept = [row for row, name in zip(array, names, strict=True) if not name.startswith("LFE")] or list(array)
    return np.nan_to_num(np.mean(kept, axis=0, dtype=np.float64).astype(np.float32), posinf=1.0, neginf=-1.0)
