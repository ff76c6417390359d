"""Container files with video and audio streams, read by PyAV. Times are seconds since the file's start."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av

from selfflow.data.report import Notes, Unusable

# Formats not read here: texts, which FFmpeg renders as a terminal does; playlists, which refer to other files; and
# images, which Pillow reads.
_OTHER_FORMATS = {"tty", "ansi", "bin", "xbin", "adf", "idf", "hls", "dash", "concat", "gif", "apng", "image2", "ico"}
_OTHER_FORMATS |= {"webp", "jpegxl_anim"}
# Brands of images in ISO media files (HEIF, AVIF). FFmpeg presents their tiles and thumbnails as streams.
_IMAGE_BRANDS = {"mif1", "mif2", "msf1", "miaf", "heic", "heix", "avif", "avis"}
# Containers that store when a frame is decoded, and not when it is shown.
_DECODING_TIMES = {"avi", "asf"}
_NO_TIMESTAMPS = 0x80  # AVFMT_NOTIMESTAMPS
# Decoders that read the transparency of WebM, which the native decoders of FFmpeg ignore.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# Formats whose headers contain an exact duration, not an estimate from the bit rate.
_EXACT_DURATION = {"mov", "matroska", "avi", "flac", "asf", "flv", "aiff", "au"}
UNKNOWN = "streams without a decoder"
HEIF = "an image in a HEIF or AVIF file"
_ERRORS = (av.FFmpegError, ValueError)
# Files with titles that are not UTF-8 must remain readable. From version 19 on, PyAV accepts such titles.
_TITLES = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


@dataclass(frozen=True)
class Container:
    """Streams of a video or audio file.

    Attributes:
      path: path of the file.
      video: index of the first video stream; None without video.
      audio: index of the first audio stream; None without audio.
      others: number of further video and audio streams.
      unknown: number of video and audio streams without a decoder.
      has_display_times: whether the container stores when each frame of the video is shown.
      has_timestamps: whether it stores times at all.
      has_durations: whether it stores the duration of each frame, so that there are no gaps.
      decoder: name of the video's decoder; None for the usual one.
      start: timestamp of the file's start, seconds.
      seconds: duration in the file's header; None if it has none.
    """

    path: Path
    video: int | None
    audio: int | None
    others: int
    unknown: int
    has_display_times: bool
    has_timestamps: bool
    has_durations: bool
    decoder: str | None
    start: float
    seconds: float | None


def inspect_container(path: Path) -> Container:
    """Finds the streams of a video or audio file.

    Raises:
      Unusable: PyAV cannot open it; it is an image, a text or a playlist; or it has no video or audio that can be
        decoded.
    """
    with open_container(path) as container:
        formats = set(container.format.name.split(","))
        if formats & _OTHER_FORMATS or container.format.name.endswith("_pipe"):
            raise Unusable("not media")
        brands = container.metadata.get("compatible_brands", "")
        brands = {container.metadata.get("major_brand", "")} | {brands[i : i + 4] for i in range(0, len(brands), 4)}
        if "mov" in formats and brands & _IMAGE_BRANDS:
            raise Unusable(HEIF, "convert it to JPEG or PNG")
        video = audio = None
        others = unknown = 0
        # Select the first stream of each kind, as media players do.
        for stream in container.streams:
            if stream.type not in ("video", "audio"):
                continue
            if stream.codec_context is None:
                unknown += 1
                continue
            if stream.disposition & av.stream.Disposition.attached_pic:  # the cover of an album
                continue
            if stream.type == "video" and video is None:
                video = stream.index
            elif stream.type == "audio" and audio is None:
                audio = stream.index
            else:
                others += 1
        if video is None and audio is None:
            raise Unusable(UNKNOWN if unknown else "neither video nor audio")
        start = (container.start_time or 0) / av.time_base
        has_timestamps = not container.format.flags & _NO_TIMESTAMPS
        has_display_times, decoder = has_timestamps, None
        if video is not None:
            stream = container.streams[video]
            # In Matroska, a codec tag means that the stream was copied from an AVI file and has its decoding times.
            copied = "matroska" in formats and stream.codec_context.codec_tag.strip("\0")
            has_display_times = has_timestamps and not (formats & _DECODING_TIMES or copied)
            decoder = _alpha_decoder(stream)
        return Container(
            path=path,
            video=video,
            audio=audio,
            others=others,
            unknown=unknown,
            has_display_times=has_display_times,
            has_timestamps=has_timestamps,
            has_durations="mov" in formats,
            decoder=decoder,
            start=start,
            seconds=_header_seconds(container, path),
        )


def open_container(path: Path) -> "av.container.InputContainer":
    """Opens a file; the network is never used.

    Raises:
      Unusable: PyAV cannot open it.
    """
    try:
        # A playlist must not reach out to the network, and a relative path may look like the address of a server.
        return av.open(str(path.absolute()), options={"protocol_whitelist": "file"}, **_TITLES)
    except (*_ERRORS, OSError, EOFError, MemoryError) as error:
        raise Unusable("unreadable", getattr(error, "strerror", None) or str(error)) from error


def _alpha_decoder(stream: "av.video.stream.VideoStream") -> str | None:
    """Returns the decoder that a video needs for its transparency; None if that is the usual one.

    Raises:
      Unusable: this build of FFmpeg does not have it.
    """
    tags = {name.lower(): value for name, value in stream.metadata.items()}
    codec = stream.codec_context.name
    if tags.get("alpha_mode") != "1" or codec not in _ALPHA_DECODERS:
        return None
    try:
        return av.Codec(_ALPHA_DECODERS[codec], "r").name
    except ValueError as error:
        raise Unusable("transparency that this PyAV cannot decode", codec) from error


def video_frames_with_times(
    container: "av.container.InputContainer", stream: "av.stream.Stream", notes: Notes, source: Container
) -> Iterator["av.VideoFrame | None"]:
    """Yields the decoded frames of a video, and None for each packet that cannot be decoded. The `pts` of a frame is
    the time at which it is shown; None if unknown.

    Where a container stores decoding times alone, FFmpeg's estimate is late by the frames that the decoder delays, or
    out of order. There, frames are shown in the order in which they are decoded, at the times of the packets.
    """
    first: int | None = None
    delay: int | None = None

    def packets() -> Iterator[av.Packet]:
        nonlocal first
        for packet in container.demux(stream):
            if first is None and packet.is_keyframe:
                first = packet.dts
            yield packet

    for frame in decoded_frames(packets(), stream, notes, source.decoder):
        if frame is not None and not source.has_display_times:
            if delay is None and None not in (first, frame.dts):
                delay = frame.dts - first
            # The decoder gives its last frames without any time: each follows the one before.
            frame.pts = None if None in (delay, frame.dts) else frame.dts - delay
        yield frame


def decoded_frames(
    packets: Iterator[av.Packet], stream: "av.stream.Stream", notes: Notes, decoder: str | None = None
) -> Iterator["av.frame.Frame | None"]:
    """Yields the frames of packets, by a named decoder or else the usual one; None for each packet that it cannot
    decode."""
    context = av.CodecContext.create(decoder, "r") if decoder else stream.codec_context
    while True:
        try:
            packet = next(packets, None)
        except EOFError:
            return
        except _ERRORS:
            # No further packet can be read, but the decoder still holds frames.
            notes.count("damaged", "places")
            with contextlib.suppress(EOFError, *_ERRORS):
                yield from context.decode(None)
            return
        if packet is None:
            return
        # A packet that fails is skipped; decoding recovers at the next key frame.
        try:
            frames = context.decode(packet)
        except EOFError:
            return
        except _ERRORS:
            notes.count("damaged", "places")
            yield None
            continue
        yield from frames


def note_structure(path: Path, notes: Notes) -> None:
    """Notes defects that no decoder reports: a second file joined to a WAV, FLV or MP4 file, and a missing end of an
    MP4 file."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(12)
        joined, position = False, 0
        if head[:4] == b"RIFF" and head[8:] == b"WAVE":
            file.seek(int.from_bytes(head[4:8], "little") + 8)
            joined = file.read(4) == b"RIFF"
        elif head[:3] == b"FLV":
            # Tags: type, length of the data in 3 bytes, 7 bytes more, data, and the length of the tag in 4 bytes.
            position = 13
            while position + 11 <= size and not joined:
                file.seek(position)
                tag = file.read(4)
                joined = tag[:3] == b"FLV"
                position += 15 + int.from_bytes(tag[1:], "big")
        elif head[4:8] == b"ftyp":
            # Boxes: length and name, then contents.
            movies = 0
            while position + 8 <= size:
                file.seek(position)
                box = file.read(16)
                length = int.from_bytes(box[:4], "big")
                if length == 1:
                    length = int.from_bytes(box[8:], "big")
                movies += box[4:8] == b"moov"
                # A length of 0 reaches to the end of the file.
                if length < 8:
                    break
                position += length
            joined = movies > 1
            if position > size:
                notes.add("incomplete file", f"{position - size} bytes of a part are missing")
        if joined:
            notes.add("joined files", "the first is used")


def _header_seconds(container: "av.container.InputContainer", path: Path) -> float | None:
    """Returns the duration in the file's header; None where PyAV would estimate it from the bit rate."""
    if not container.duration:
        return None
    formats, seconds = set(container.format.name.split(",")), container.duration / av.time_base
    if "wav" in formats:
        # FFmpeg gives the duration of the data that exist; the RIFF header has the size of the whole file.
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
