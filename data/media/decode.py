"""Cuts a media file into clips."""

import itertools
import math
import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from selfflow.data.media import Media
from selfflow.data.media.audio import AudioWindow, audio_chunks, soundfile_chunks, to_int16
from selfflow.data.media.container import UNKNOWN, inspect_container, note_structure
from selfflow.data.media.image import animation, as_image, is_animated, open_image
from selfflow.data.media.video import LONGEST_FRAME, Frame, video_frames
from selfflow.data.report import Notes, Unusable

# Containers round timestamps to milliseconds.
ROUNDING = 1e-3
# A file that ends so many seconds before the duration in its header is truncated.
_TRUNCATED = 0.5
# Audio without frames of more seconds is remarked on.
_UNACCOMPANIED = 0.5


@dataclass(frozen=True)
class Clip:
    """The media of one record.

    Attributes:
      start: seconds from the file's start; None for an image.
      video: uint8 [frames, size, size, 3], or None.
      audio: int16 [samples], or None.
      image: uint8 [size, size, 3], or None.
    """

    start: float | None
    video: np.ndarray | None = None
    audio: np.ndarray | None = None
    image: np.ndarray | None = None


def clips(path: Path, media: Media, notes: Notes) -> Iterator[Clip]:
    """Yields the clips of one file, in the order of time, decoded on demand.

    A clip starts at every `hop_seconds` after the first frame (without video: after the first audio sample), and
    again after every cut. Frame i is the frame nearest to start + i / frames_per_second (see `video_frames`), and the
    audio begins at start; a video clip may extend over the end of its file by less than one frame, an audio clip by 1
    ms. Omissions are added to `notes`.

    Raises:
      Unusable: the file contains no clip.
    """
    if path.stat().st_size == 0:
        raise Unusable("empty file")
    expected = (mimetypes.guess_type(path.name)[0] or "").split("/")[0]
    # The suffix selects only the first reader to try, because many files have a wrong one.
    readers = [_container_clips, _image_clips, _soundfile_clips]
    if expected == "image":
        readers = [_image_clips, _container_clips, _soundfile_clips]
    errors = []
    for reader in readers:
        try:
            iterator = reader(path, media, notes)
        except Unusable as error:
            errors.append(error)
            continue
        yield from iterator
        return
    specific = [error for error in errors if error.reason not in ("unreadable", "not media")]
    if specific:
        raise specific[0]
    # A file with the suffix of a media file is damaged; others are not media.
    if expected in ("image", "video", "audio"):
        raise Unusable("unreadable", errors[0].detail or errors[0].reason)
    raise Unusable("not media")


def _image_clips(path: Path, media: Media, notes: Notes) -> Iterator[Clip]:
    try:
        image = open_image(path)
    except (OSError, ValueError, SyntaxError) as error:
        raise Unusable("not media", str(error).replace(str(path), path.name)) from error

    def animated_clips() -> Iterator[Clip]:
        with image:
            yield from _video_clips(_animation_frames(image, media.size, notes), None, media, notes)

    def single_clip() -> Iterator[Clip]:
        with image:
            yield Clip(None, image=as_image(image, media.size, notes))

    return animated_clips() if is_animated(image) else single_clip()


def _container_clips(path: Path, media: Media, notes: Notes) -> Iterator[Clip]:
    source = inspect_container(path)
    if source.others:
        notes.add("several video or audio streams", f"the first of each is used, {source.others} are not")
    if source.unknown:
        notes.add(UNKNOWN, f"{source.unknown} streams")
    note_structure(path, notes)
    audio = None if source.audio is None else AudioWindow(audio_chunks(source, media.sample_rate, notes))
    if source.video is None:
        return _audio_clips(audio, media, notes, source.seconds)
    frames = video_frames(source, media.size, 0.5 / media.frames_per_second, notes)

    def any_clips() -> Iterator[Clip]:
        first = next(frames, None)
        if first is None and audio is not None:
            notes.add("no frame could be decoded", "used as audio")
            yield from _audio_clips(audio, media, notes, source.seconds)
        else:
            yield from _video_clips(
                itertools.chain([first] if first else [], frames), audio, media, notes, source.seconds
            )

    return any_clips()


def _soundfile_clips(path: Path, media: Media, notes: Notes) -> Iterator[Clip]:
    return _audio_clips(AudioWindow(soundfile_chunks(path, media.sample_rate)), media, notes, None)


def _animation_frames(image: Image.Image, size: int, notes: Notes) -> Iterator[Frame]:
    start = 0.0
    for seconds, pixels in animation(image, size):
        if seconds > LONGEST_FRAME:
            notes.count(f"frames of an animation for more than {LONGEST_FRAME:g} s, which are cut", "frames")
        end = start + min(seconds, LONGEST_FRAME)
        yield Frame(start, end, lambda pixels=pixels: pixels)
        start = end


@dataclass
class _VideoClip:
    """A clip that still collects frames."""

    start: float
    frames: list[np.ndarray] = field(default_factory=list)


def _video_clips(
    source: Iterator[Frame],
    audio: AudioWindow | None,
    media: Media,
    notes: Notes,
    header_seconds: float | None = None,
) -> Iterator[Clip]:
    """Clips of video, with their audio. Clips overlap where `hop_seconds` is below the duration of a clip."""
    unfinished: list[_VideoClip] = []
    first: float | None = None
    end: float | None = None
    shot_start, shot_clips, count = 0.0, 0, 0
    for frame in _frames_through_gaps(source, audio, media, notes):
        if end is None or frame.start > end + ROUNDING:
            # A cut: clips do not continue over it.
            unfinished, shot_start, shot_clips = [], frame.start, 0
        if first is None:
            first = frame.start
        end = frame.end
        until = frame.end - ROUNDING
        # Clips start at times of their own, which need not be those of frames.
        while shot_start + shot_clips * media.hop_seconds < until:
            unfinished.append(_VideoClip(shot_start + shot_clips * media.hop_seconds))
            shot_clips += 1
        # Decoded once for all clips that show this frame, and not at all if none does.
        pixels = None
        for clip in unfinished:
            while len(clip.frames) < media.frames and clip.start + len(clip.frames) / media.frames_per_second < until:
                pixels = frame.read() if pixels is None else pixels
                clip.frames.append(pixels)
        while unfinished and len(unfinished[0].frames) == media.frames:
            clip = unfinished.pop(0)
            count += 1
            clip_audio = None if audio is None else _audio_at(audio, clip.start, media, notes)
            yield Clip(clip.start, np.stack(clip.frames), clip_audio, clip.frames[media.frames // 2])
    reached = end or 0.0
    if header_seconds is not None and reached < header_seconds - _TRUNCATED and audio is not None:
        # The header has the duration of the longer stream.
        reached = max(reached, audio.skip_to_end() / media.sample_rate)
    _note_truncation(reached, header_seconds, notes)
    if not count:
        raise _too_short(reached - (first or 0.0), media, "no frame could be decoded")


def _frames_through_gaps(
    source: Iterator[Frame], audio: AudioWindow | None, media: Media, notes: Notes
) -> Iterator[Frame]:
    """Frames in parts of at most `LONGEST_FRAME`: before gaps and at the end, a frame stays while audio plays.

    Audio that no frame accompanies is left out, with a remark from `_UNACCOMPANIED` on.
    """
    rate = media.sample_rate
    frame: Frame | None = None
    started = False
    for frame in source:
        audio_start = None if audio is None or started else audio.next_start()
        started = True
        if audio_start is not None and audio_start / rate < frame.start - _UNACCOMPANIED:
            notes.add("audio before the first frame", f"{frame.start - audio_start / rate:.1f} s left out")
        yield frame
        while frame.next_start is not None and frame.end < frame.next_start:
            end = min(frame.end + LONGEST_FRAME, frame.next_start)
            if audio is None or not audio.covers(round(frame.end * rate), round(end * rate)):
                if not math.isinf(frame.next_start):
                    notes.count(f"no frame and no audio for more than {LONGEST_FRAME:g} s", "gaps")
                break
            frame = replace(frame, start=frame.end, end=end)
            yield frame
    rest = 0.0 if frame is None or audio is None else audio.skip_to_end() / rate - frame.end
    if rest > _UNACCOMPANIED:
        notes.add("audio after the last frame", f"{rest:.1f} s left out")


def _audio_at(audio: AudioWindow, start: float, media: Media, notes: Notes) -> np.ndarray | None:
    """Returns the audio of a video clip; None if it does not cover the clip, or is silent."""
    # Up to one frame may be missing, as at the end of a video.
    samples, covered = audio.read(round(start * media.sample_rate), media.samples)
    if covered <= media.samples - media.sample_rate / media.frames_per_second:
        notes.count("audio does not cover the whole clip, which is kept without it", "clips")
        return None
    quantised = to_int16(samples)
    if not quantised.any():
        notes.count("digital silence, the clip is kept without audio", "clips")
        return None
    return quantised


def _audio_clips(audio: AudioWindow, media: Media, notes: Notes, header_seconds: float | None) -> Iterator[Clip]:
    """Clips of audio alone, from the start of every interval of audio on."""
    count, silent, longest = 0, 0, 0
    first = audio.next_start()
    while first is not None:
        number = 0
        while True:
            start = first + round(number * media.hop_seconds * media.sample_rate)
            samples, covered = audio.read(start, media.samples)
            longest = max(longest, covered)
            if covered < media.samples - ROUNDING * media.sample_rate:
                break
            number += 1
            quantised = to_int16(samples)
            if quantised.any():
                count += 1
                yield Clip(start / media.sample_rate, audio=quantised)
            else:
                silent += 1
        # A gap ends the interval; clips start again with the next one.
        first = audio.next_start(after=start)
    if silent and not count:
        raise Unusable("digital silence")
    if silent:
        notes.add("digital silence left out", f"{silent} clips")
    _note_truncation(audio.end / media.sample_rate, header_seconds, notes)
    if not count:
        raise _too_short(longest / media.sample_rate, media, "no audio could be decoded")


def _note_truncation(reached: float, header_seconds: float | None, notes: Notes) -> None:
    if header_seconds is not None and reached < header_seconds - _TRUNCATED:
        notes.add("truncated", f"{reached:.1f} s of {header_seconds:.1f} s")


def _too_short(seconds: float, media: Media, without_any: str) -> Unusable:
    """Returns the error of a file without a clip: `without_any` if nothing of it could be decoded."""
    if seconds <= 0:
        return Unusable(without_any)
    return Unusable("shorter than a clip", f"{seconds:.2f} s of {media.clip_seconds:g} s")
