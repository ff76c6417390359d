"""Media as files: videos, audio, images, and sheets that show many clips on one page."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from selfflow.media import Medium, images_only, medium_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 16
_STRIP_FRAMES = 12
# Sizes on a sheet in inches.
_WIDTH, _ROW_HEIGHT, _PLOT_HEIGHT = 10.4, 1.3, 0.7


def write_video(path: Path, frames: np.ndarray, fps: float, audio: np.ndarray | None, rate: float) -> None:
    """Writes an mp4, enlarged to at least 256 pixels of width, with its audio if it has any.

    Args:
      path: of the file.
      frames: uint8 [T, H, W, 3].
      fps: frames per second.
      audio: int16 [samples] that starts with the first frame, or None.
      rate: samples per second.
    """
    from fractions import Fraction

    import av

    zoom = max(1, 256 // frames.shape[2])
    frames = frames.repeat(zoom, axis=1).repeat(zoom, axis=2)
    with av.open(str(path), "w") as container:
        video = container.add_stream("h264", rate=Fraction(fps).limit_denominator(1000))
        video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        video.options = {"crf": "18"}
        track = None if audio is None else container.add_stream("aac", rate=int(rate), layout="mono")
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        # An encoder without a frame returns the packets that it holds back.
        container.mux(video.encode())
        if track is not None:
            block = av.AudioFrame.from_ndarray(audio[None], format="s16", layout="mono")
            block.sample_rate = int(rate)
            container.mux(track.encode(block))
            container.mux(track.encode())


def write_audio(path: Path, audio: np.ndarray, rate: float) -> None:
    """Writes int16 [samples] as a wav."""
    import soundfile

    soundfile.write(path, audio, int(rate))


def write_media(stem: Path, media: Mapping[str, np.ndarray], rates: Mapping[str, float]) -> list[Path]:
    """Writes one sample, a file for each modality; a video has the sample's audio as its track. Returns the files.

    Args:
      stem: path of the files without their suffixes.
      media: {modality: one clip}.
      rates: frames or samples per second, by modality.
    """
    files = []
    for m, clip in media.items():
        path = stem.with_suffix(medium_of(m).suffix)
        match path.suffix:
            case ".mp4":
                write_video(path, clip, rates[m], media.get("audio"), rates.get("audio", 0))
            case ".wav":
                write_audio(path, clip, rates[m])
            case ".png":
                from PIL import Image

                Image.fromarray(clip).save(path)
            case ".npy":
                np.save(path, clip)
        files.append(path)
    return files


class _Row(NamedTuple):
    """A row of a sheet: a grid of images, or one clip.

    Attributes:
      label: left of the row.
      medium: which decides on the preview.
      values: of the preview: uint8 pixels [H, W, 3] of a grid or strip, else the clip.
      max_height: in inches, so that few images are not enlarged to the width of the sheet.
      rate: of the clip.
    """

    label: str
    medium: Medium
    values: np.ndarray
    max_height: float
    rate: float

    @property
    def height(self) -> float:
        """In inches."""
        if not self.medium.is_visual:
            return self.max_height
        return min(self.max_height, 1.09 * _WIDTH * self.values.shape[0] / self.values.shape[1])

    def draw(self, axis: "Axes") -> None:
        match self.medium.preview:
            case "spectrogram":
                draw_spectrogram(axis, self.values, self.rate)
            case "curves":
                axis.plot(np.arange(len(self.values)) / self.rate, self.values, linewidth=1)
                axis.tick_params(labelsize=6)
            case _:
                axis.imshow(self.values, interpolation="nearest", aspect="equal")
                axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(self.label, fontsize=7)


def write_sheet(
    path: Path,
    groups: Mapping[str, Mapping[str, np.ndarray | Sequence[np.ndarray]]],
    rates: Mapping[str, float],
    title: str,
    context: Sequence[str] = (),
) -> None:
    """Draws groups of clips on one page: images in a grid, videos as strips of frames, audio as spectrograms.

    The audio of a video is drawn below its strip, on the same time axis.

    Args:
      path: of the png.
      groups: {group, such as "sample": {modality: clips [B, ...]}}.
      rates: frames or samples per second, by modality.
      title: of the page.
      context: modalities that are labelled as context instead of by their group.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    rows = []
    for group, media in groups.items():
        if images_only(media) and len(media) == 1:
            ((m, images),) = media.items()
            rows.append(_row(f"{group}\n{m}", m, np.asarray(images), rates))
            continue
        for i in range(len(next(iter(media.values())))):
            for m, clips in media.items():
                label = f"{'context' if m in context else group} {i}\n{m}"
                rows.append(_row(label, m, clips[i] if medium_of(m).has_time else clips[i : i + 1], rates))
    heights = [row.height for row in rows]
    figure = Figure(figsize=(_WIDTH + 0.6, sum(heights) + 0.12 * len(rows) + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, row in zip(axes, rows):
        row.draw(axis)
    figure.savefig(path, dpi=110)


def _row(label: str, m: str, values: np.ndarray, rates: Mapping[str, float]) -> _Row:
    """A row of images [B, H, W, 3], or of one clip of another medium."""
    medium = medium_of(m)
    match medium.preview:
        case "grid":
            return _Row(label, medium, _grid(values), _ROW_HEIGHT * math.ceil(len(values) / _COLUMNS), 0)
        case "strip":
            return _Row(label, medium, _strip(values), _ROW_HEIGHT, rates.get(m, 0))
        case _:
            return _Row(label, medium, values, _PLOT_HEIGHT, rates[m])


def _grid(images: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, 3] -> all of them in rows, framed in white."""
    columns = min(_COLUMNS, len(images))
    framed = np.pad(images, ((0, -len(images) % columns), (1, 1), (1, 1), (0, 0)), constant_values=255)
    framed[len(images) :] = 255
    rows = framed.reshape(-1, columns, *framed.shape[1:])
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)


def _strip(frames: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 3] -> about a dozen frames side by side, framed in white."""
    shown = frames[:: max(1, len(frames) // _STRIP_FRAMES)]
    return np.concatenate(list(np.pad(shown, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)), axis=1)


def draw_spectrogram(axis: "Axes", audio: np.ndarray, rate: float) -> None:
    """Draws int16 [samples] on matplotlib axes: seconds against kHz, decibels as brightness."""
    import librosa

    power = np.abs(librosa.stft(audio.astype(np.float32) / 32768, n_fft=256, hop_length=64)) ** 2
    decibels = 10 * np.log10(np.maximum(power, 1e-6))
    seconds = len(audio) / rate
    axis.imshow(
        decibels, origin="lower", aspect="auto", vmin=-55, vmax=15, cmap="magma", extent=(0, seconds, 0, rate / 2000)
    )
    axis.set_xlim(0, seconds)
    axis.tick_params(labelsize=6)
