"""A file -> clips. Knows nothing of where they are kept."""

import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfflow.data.media import Media
from selfflow.data.media.image import animation, as_image, is_animated, open_image
from selfflow.data.media.tracks import (
    LONGEST_HOLD,
    Picture,
    Unreadable,
    open_tracks,
    pictures,
    sound,
    sound_of_soundfile,
)
from selfflow.data.report import Notes

_SHORT = "shorter than a clip"
# Containers round timestamps to milliseconds.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Clip:
    """One record to be: `start` in seconds from the file's start, None for an image; what is absent is None.

    video: uint8 [frames, size, size, 3]. audio: int16 [samples]. image: uint8 [size, size, 3].
    """

    start: float | None
    video: np.ndarray | None = None
    audio: np.ndarray | None = None
    image: np.ndarray | None = None


def clips(path: Path, media: Media, notes: Notes) -> Iterator[Clip]:
    """The clips of one file, in the order of time, decoded as they are asked for.

    A clip starts at every `hop_seconds` after the first picture (without a picture: after the first sample), and
    anew after every cut. Frame i is the picture nearest to start + i / frames_per_second (see `pictures`), and the
    sound begins at start; a video clip may stick out of its file by less than one frame, a sound clip by 1 ms. What
    was left out is put into `notes`.

    Raises:
      Unreadable: the file gives no clip.
    """
    if path.stat().st_size == 0:
        raise Unreadable("empty file")
    promise = (mimetypes.guess_type(path.name)[0] or "").split("/")[0]
    attempts = [_of_tracks, _of_image, _of_soundfile]
    if promise == "image":
        attempts = [_of_image, _of_tracks, _of_soundfile]
    reasons = []
    for attempt in attempts:
        try:
            found = attempt(path, media, notes)
            break
        except Unreadable as error:
            reasons.append(error)
    else:
        if promise in ("image", "video", "audio"):
            raise Unreadable("unreadable", reasons[0].detail or reasons[0].reason)
        raise next((e for e in reasons if e.reason not in ("unreadable", "not media")), Unreadable("not media"))
    yield from found


def _of_image(path: Path, media: Media, notes: Notes) -> Iterator[Clip]:
    try:
        image = open_image(path)
    except (OSError, ValueError, SyntaxError) as error:
        raise Unreadable("not media", str(error).replace(str(path), path.name)) from error

    def moving() -> Iterator[Clip]:
        with image:
            yield from _video_clips(_shown(image, media.size), None, media, notes)

    def single() -> Iterator[Clip]:
        with image:
            yield Clip(None, image=as_image(image, media.size))

    return moving() if is_animated(image) else single()


def _of_tracks(path: Path, media: Media, notes: Notes) -> Iterator[Clip]:
    tracks = open_tracks(path)
    heard = None if tracks.sound is None else Sound(sound(tracks, media.sample_rate, notes))
    if tracks.picture is None:
        return _sound_clips(heard, media, notes, tracks.seconds)
    shown = pictures(tracks, media.size, 0.5 / media.frames_per_second, notes)
    return _video_clips(shown, heard, media, notes, tracks.seconds)


def _of_soundfile(path: Path, media: Media, notes: Notes) -> Iterator[Clip]:
    return _sound_clips(Sound(sound_of_soundfile(path, media.sample_rate)), media, notes, None)


def _shown(image, size: int) -> Iterator[Picture]:
    start = 0.0
    for seconds, picture in animation(image, size):
        end = start + min(seconds, LONGEST_HOLD)
        yield Picture(start, end, lambda picture=picture: picture)
        start = end


class Sound:
    """A window that moves forward over (position, samples) pieces and keeps no more than it shows."""

    def __init__(self, pieces: Iterator[tuple[int, np.ndarray]]):
        self._pieces = pieces
        self._runs: list[tuple[int, np.ndarray]] = []
        self.end = 0

    def _pull(self) -> bool:
        piece = next(self._pieces, None)
        if piece is None:
            return False
        position, samples = piece
        if self._runs and self._runs[-1][0] + len(self._runs[-1][1]) == position:
            position, samples = self._runs[-1][0], np.concatenate([self._runs.pop()[1], samples])
        self._runs.append((position, samples))
        self.end = position + len(samples)
        return True

    def _forget(self, before: int) -> None:
        self._runs = [
            (max(position, before), samples[max(before - position, 0) :])
            for position, samples in self._runs
            if position + len(samples) > before
        ]

    def window(self, first: int, count: int) -> tuple[np.ndarray, int]:
        """`count` samples from position `first` on, float32, zero where there is no sound, and how many there are.

        `first` must not go back: what lies before it is forgotten.
        """
        while self.end < first + count and self._pull():
            self._forget(first)
        self._forget(first)
        samples, covered = np.zeros(count, np.float32), 0
        for position, run in self._runs:
            part = run[: max(first + count - position, 0)]
            samples[position - first : position - first + len(part)] = part
            covered += len(part)
        return samples, covered

    def run_after(self, first: int) -> int | None:
        """Where the first stretch of sound that begins after `first` begins; None if there is none."""
        while True:
            for position, _ in self._runs:
                if position > first:
                    return position
            if not self._pull():
                return None
            self._forget(first)

    def drain(self) -> int:
        """Reads on to the end of the sound, and returns its position."""
        while self._pull():
            self._runs = []
        return self.end


def _video_clips(
    shown: Iterator[Picture], heard: Sound | None, media: Media, notes: Notes, claimed: float | None = None
) -> Iterator[Clip]:
    opened: list[tuple[float, list[np.ndarray]]] = []
    origin, started, end, made, first = 0.0, 0, None, 0, None
    for picture in shown:
        if end is None or picture.start > end + ROUNDING:
            opened, origin, started = [], picture.start, 0
        first, end, small = picture.start if first is None else first, picture.end, None
        until = picture.end - ROUNDING
        while origin + started * media.hop_seconds < until:
            opened.append((origin + started * media.hop_seconds, []))
            started += 1
        for start, frames in opened:
            while len(frames) < media.frames and start + len(frames) / media.frames_per_second < until:
                small = picture.read() if small is None else small
                frames.append(small)
        while opened and len(opened[0][1]) == media.frames:
            start, frames = opened.pop(0)
            audio = None if heard is None else _heard_with(heard, start, media, notes)
            made += 1
            yield Clip(start, np.stack(frames), audio, frames[media.frames // 2])
    reached = end or 0.0
    if claimed is not None and reached < claimed - 0.5 and heard is not None:
        reached = max(reached, heard.drain() / media.sample_rate)
    _finish(made, reached - (first or 0.0), reached, claimed, media, notes, nothing="no picture could be decoded")


def _heard_with(heard: Sound, start: float, media: Media, notes: Notes) -> np.ndarray | None:
    samples, covered = heard.window(round(start * media.sample_rate), media.samples)
    if covered <= media.samples - media.sample_rate / media.frames_per_second:
        notes.count("sound does not cover the whole clip, which is kept without it", "clips")
        return None
    audio = int16_of(samples)
    if not audio.any():
        notes.count("digital silence, the clip is kept without sound", "clips")
        return None
    return audio


def _sound_clips(heard: Sound, media: Media, notes: Notes, claimed: float | None) -> Iterator[Clip]:
    made, silent, longest = 0, 0, 0
    first = heard.run_after(-(2**62))
    while first is not None:
        count = 0
        while True:
            start = first + round(count * media.hop_seconds * media.sample_rate)
            samples, covered = heard.window(start, media.samples)
            longest = max(longest, covered)
            if covered < media.samples - ROUNDING * media.sample_rate:
                break
            count += 1
            audio = int16_of(samples)
            if audio.any():
                made += 1
                yield Clip(start / media.sample_rate, audio=audio)
            else:
                silent += 1
        first = heard.run_after(start)
    if silent and not made:
        raise Unreadable("digital silence")
    if silent:
        notes.add("digital silence left out", f"{silent} clips")
    reached = heard.end / media.sample_rate
    _finish(made, longest / media.sample_rate, reached, claimed, media, notes, nothing="no sound could be decoded")


def _finish(
    made: int, longest: float, reached: float, claimed: float | None, media: Media, notes: Notes, nothing: str
) -> None:
    if claimed is not None and reached < claimed - 0.5:
        notes.add("truncated", f"{reached:.1f} s of {claimed:.1f} s")
    if made:
        return
    if longest <= 0:
        raise Unreadable(nothing)
    raise Unreadable(_SHORT, f"{longest:.2f} s of {media.clip_seconds:g} s")


def int16_of(samples: np.ndarray) -> np.ndarray:
    """Samples in -1..1, clipped, as int16."""
    return np.round(np.clip(samples, -1.0, 1.0) * 32767).astype(np.int16)
