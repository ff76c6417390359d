"""Container files with video and audio streams, read by PyAV. Times are seconds since the file's start."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av

from selfflow.data.report import Notes, Unusable

# FFmpeg renders texts as terminals and follows playlists to other files; Pillow reads images.
_OTHER_FORMATS = {"tty", "ansi", "bin", "xbin", "adf", "idf", "hls", "dash", "concat", "gif", "apng", "image2", "ico"}
# Formats whose headers contain a duration that is no estimate from the bit rate.
_EXACT_DURATION = {"mov", "matroska", "avi", "flac", "asf", "flv", "aiff", "au"}
_ERRORS = (av.FFmpegError, ValueError)
# Titles that are not UTF-8 are no reason to refuse a file. From version 19 on, PyAV accepts them.
_TITLES = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


@dataclass(frozen=True)
class Container:
    """Streams of a video or audio file.

    Attributes:
      path: of the file.
      video: index of the first video stream; None without video.
      audio: index of the first audio stream; None without audio.
      start: timestamp of the file's start, seconds.
      seconds: duration in the file's header; None if it has none.
    """

    path: Path
    video: int | None
    audio: int | None
    start: float
    seconds: float | None


def inspect_container(path: Path) -> Container:
    """Finds the streams of a video or audio file.

    Raises:
      Unusable: PyAV cannot open it, or it has neither video nor audio.
    """
    with open_container(path) as container:
        formats = set(container.format.name.split(","))
        if formats & _OTHER_FORMATS or container.format.name.endswith("_pipe"):
            raise Unusable("not media")
        video = audio = None
        # The first stream of each kind, as in players.
        for stream in container.streams:
            if stream.type not in ("video", "audio") or stream.codec_context is None:
                continue
            if stream.disposition & av.stream.Disposition.attached_pic:  # the cover of an album
                continue
            if stream.type == "video" and video is None:
                video = stream.index
            if stream.type == "audio" and audio is None:
                audio = stream.index
        if video is None and audio is None:
            raise Unusable("neither video nor audio")
        start = (container.start_time or 0) / av.time_base
        return Container(path, video, audio, start, _header_seconds(container, path))


def open_container(path: Path) -> "av.container.InputContainer":
    """Opens a file; the network is never used.

    Raises:
      Unusable: PyAV cannot open it.
    """
    try:
        # A playlist must not reach out to the network.
        return av.open(str(path), options={"protocol_whitelist": "file"}, **_TITLES)
    except (*_ERRORS, OSError, EOFError, MemoryError) as error:
        raise Unusable("unreadable", getattr(error, "strerror", None) or str(error)) from error


def decoded_frames(
    container: "av.container.InputContainer", stream: "av.stream.Stream", notes: Notes
) -> Iterator["av.frame.Frame | None"]:
    """The frames of a stream; None for each packet that cannot be decoded."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except EOFError:
            return
        except _ERRORS:
            # No further packet can be read, but the decoder still holds frames.
            notes.count("damaged", "places")
            with contextlib.suppress(EOFError, *_ERRORS):
                yield from stream.codec_context.decode(None)
            return
        if packet is None:
            return
        # A packet that fails is skipped; the next key frame is decodable again.
        try:
            frames = packet.decode()
        except EOFError:
            return
        except _ERRORS:
            notes.count("damaged", "places")
            yield None
            continue
        yield from frames


def _header_seconds(container: "av.container.InputContainer", path: Path) -> float | None:
    """The duration in the file's header; None where PyAV would estimate it from the bit rate."""
    if not container.duration:
        return None
    formats, seconds = set(container.format.name.split(",")), container.duration / av.time_base
    if "wav" in formats:
        # FFmpeg gives the duration of what exists, the RIFF header that of the whole file.
        with open(path, "rb") as file:
            head = file.read(8)
        whole_size, size = int.from_bytes(head[4:8], "little") + 8, path.stat().st_size
        truncated = head[:4] == b"RIFF" and size < whole_size < 2**32 - 8
        return seconds * whole_size / size if truncated else seconds
    if "mp3" in formats:
        with open(path, "rb") as file:
            head = file.read(1 << 16)
        return seconds if b"Xing" in head or b"Info" in head else None
    return seconds if formats & _EXACT_DURATION else None
