"""Decodes and resamples audio chunk by chunk. Positions are sample numbers at the target rate."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import soundfile
import soxr

from selfflow.data.media.container import Container, decoded_frames, open_container
from selfflow.data.report import Notes, Unusable

# Audio whose timestamps deviate from its samples by more (s) is moved to its timestamp.
_LARGEST_DRIFT = 0.04
# Channels cancel out if their mean is weaker than each of them by this factor.
_CANCELLED = 0.01
_BEFORE_ALL = -(2**62)


class Chunk(NamedTuple):
    """Resampled audio.

    Attributes:
      position: position of its first sample.
      samples: mono, float32 [n] in [-1, 1].
    """

    position: int
    samples: np.ndarray


class _SourceChunk(NamedTuple):
    """Decoded audio before resampling.

    Attributes:
      time: seconds; None if it follows the chunk before.
      rate: samples per second.
      samples: mono, float32 [n] in [-1, 1].
    """

    time: float | None
    rate: int
    samples: np.ndarray


def audio_chunks(source: Container, sample_rate: int, notes: Notes) -> Iterator[Chunk]:
    """Yields the audio of a container, in the order of time.

    Where the clock of audio without video restarts, as in joined files, the audio continues. With video, it is left
    out with a remark, because the two clocks need not agree.

    It reads the file on its own, apart from the video, so that a file whose streams are not interleaved needs no more
    memory than any other.
    """
    with open_container(source.path) as container:
        stream = container.streams[source.audio]
        stream.thread_type = "AUTO"

        def decode() -> Iterator[_SourceChunk | None]:
            for frame in decoded_frames(container.demux(stream), stream, notes):
                if frame is None or not frame.samples:
                    yield None
                    continue
                time = None if frame.pts is None else float(frame.pts * frame.time_base) - source.start
                yield _SourceChunk(time, frame.sample_rate, _mono(frame, notes))

        yield from _resample(decode(), sample_rate, notes, has_video=source.video is not None)


def soundfile_chunks(path: Path, sample_rate: int) -> Iterator[Chunk]:
    """Yields the audio of a file that PyAV does not read.

    Raises:
      Unusable: soundfile cannot open it either.
    """
    with open(path, "rb") as file:
        head = file.read(3)
    if head == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] >= 0xE0):
        # libsndfile would print errors about it, and PyAV decodes more of a damaged MP3.
        raise Unusable("not media", "a broken MP3")
    try:
        opened = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, TypeError) as error:
        raise Unusable("not media", str(error)) from error

    def decode() -> Iterator[_SourceChunk]:
        with opened:
            rate = opened.samplerate
            for number, block in enumerate(opened.blocks(1 << 16, dtype="float32", always_2d=True)):
                yield _SourceChunk((number << 16) / rate, rate, np.nan_to_num(block.mean(axis=1)))

    return _resample(decode(), sample_rate, Notes(), has_video=False)


def _resample(
    chunks: Iterator[_SourceChunk | None], sample_rate: int, notes: Notes, *, has_video: bool
) -> Iterator[Chunk]:
    """Resamples chunks in runs; a run ends at damage (None), at a jump in time and where the source's rate changes."""
    resampler: soxr.ResampleStream | None = None
    run_start, run_rate, run_samples = 0.0, 0, 0
    position, covered_until = 0, None
    # Seconds by which a clock that started again is behind.
    behind = 0.0

    def place(samples: np.ndarray) -> Iterator[Chunk]:
        nonlocal position, covered_until
        # The resampler has a delay of its own, so that its output is placed by count and not by input.
        first, position = position, position + len(samples)
        if covered_until is not None and first < covered_until:
            # Timestamps ran backwards: the earlier audio is kept.
            first, samples = covered_until, samples[covered_until - first :]
        if len(samples):
            covered_until = first + len(samples)
            yield Chunk(first, samples)

    for chunk in chunks:
        expected = run_start + run_samples / run_rate if run_rate else 0.0
        # The same run continues if the time agrees with the number of samples.
        if chunk is not None and resampler is not None:
            time = expected if chunk.time is None else chunk.time + behind
            if chunk.rate == run_rate and abs(time - expected) <= _LARGEST_DRIFT:
                run_samples += len(chunk.samples)
                yield from place(resampler.resample_chunk(chunk.samples))
                continue
        if resampler is not None:
            # Flush the delay line before the next run.
            yield from place(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
            resampler = None
        if chunk is None or chunk.rate <= 0:
            continue
        run_start = expected if chunk.time is None else chunk.time + behind
        if covered_until is not None and run_start < covered_until / sample_rate - _LARGEST_DRIFT:
            if has_video:
                notes.count("audio timestamps that run backwards", "places")
            else:
                behind += covered_until / sample_rate - run_start
                run_start = covered_until / sample_rate
        run_rate, run_samples = chunk.rate, len(chunk.samples)
        position = round(run_start * sample_rate)
        resampler = soxr.ResampleStream(run_rate, sample_rate, 1, dtype="float32")
        yield from place(resampler.resample_chunk(chunk.samples))
    if resampler is not None:
        yield from place(resampler.resample_chunk(np.zeros(0, np.float32), last=True))


def _mono(frame: av.AudioFrame, notes: Notes) -> np.ndarray:
    """Returns the mean of a frame's channels, float32 [n] in [-1, 1], without the subwoofer, which few loudspeakers
    play.

    The mean of channels of opposite phase is codec noise: it counts as silence, with a remark.
    """
    # Interleaved formats have one row of all channels.
    names = [channel.name for channel in frame.layout.channels]
    array = frame.to_ndarray()
    if not frame.format.is_planar:
        array = array.reshape(-1, len(names)).T
    # Unsigned samples are centred at 128, signed ones at 0.
    if array.dtype == np.uint8:
        array = (array.astype(np.float32) - 128) / 128
    elif np.issubdtype(array.dtype, np.integer):
        array = array.astype(np.float32) / -float(np.iinfo(array.dtype).min)
    channels = [row for row, name in zip(array, names, strict=True) if not name.startswith("LFE")] or list(array)
    samples = np.nan_to_num(np.asarray(channels, np.float32), posinf=1.0, neginf=-1.0)
    mono = np.mean(samples, axis=0, dtype=np.float64).astype(np.float32)
    if len(samples) > 1 and np.square(mono).mean() < _CANCELLED**2 * np.square(samples).mean():
        notes.count("channels of opposite phase, silence in one channel", "blocks")
        return np.zeros_like(mono)
    return mono


class AudioWindow:
    """A window that moves forward over chunks, and holds no audio before it."""

    def __init__(self, chunks: Iterator[Chunk]):
        self._chunks = chunks
        # Contiguous chunks are joined, so that each entry is an interval of audio.
        self._intervals: list[Chunk] = []
        self.end = 0

    def read(self, first: int, count: int) -> tuple[np.ndarray, int]:
        """Audio from position `first` on, which must not decrease from call to call.

        Returns:
          Samples, float32 [count], zero where there is no audio, and how many of them are audio.
        """
        # Audio before the window is dropped while decoding, for memory.
        while self.end < first + count and self._pull():
            self._drop_before(first)
        self._drop_before(first)
        samples, covered = np.zeros(count, np.float32), 0
        for position, interval in self._intervals:
            part = interval[: max(first + count - position, 0)]
            samples[position - first : position - first + len(part)] = part
            covered += len(part)
        return samples, covered

    def covers(self, first: int, last: int) -> bool:
        """Returns whether there is audio at all positions from `first` to `last`; nothing before `first` may be dropped
        yet."""
        while self.end < last and self._pull():
            pass
        covered = 0
        for position, interval in self._intervals:
            covered += max(min(position + len(interval), last) - max(position, first), 0)
        return covered == last - first

    def next_start(self, after: int = _BEFORE_ALL) -> int | None:
        """Position of the first interval of audio that starts after a position; None if there is none."""
        while True:
            for position, _ in self._intervals:
                if position > after:
                    return position
            if not self._pull():
                return None
            self._drop_before(after)

    def skip_to_end(self) -> int:
        """Decodes the rest of the audio, and returns the position of its end."""
        while self._pull():
            self._intervals = []
        return self.end

    def _pull(self) -> bool:
        """Decodes the next chunk; False at the end."""
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        if self._intervals:
            position, samples = self._intervals[-1]
            if position + len(samples) == chunk.position:
                self._intervals.pop()
                chunk = Chunk(position, np.concatenate([samples, chunk.samples]))
        self._intervals.append(chunk)
        self.end = chunk.position + len(chunk.samples)
        return True

    def _drop_before(self, first: int) -> None:
        remaining = []
        for position, samples in self._intervals:
            if position + len(samples) > first:
                remaining.append(Chunk(max(position, first), samples[max(first - position, 0) :]))
        self._intervals = remaining


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1], clipped, as int16."""
    return np.round(np.clip(samples, -1.0, 1.0) * 32767).astype(np.int16)
