"""Media as files: videos, audio, images, and sheets that show many clips on one page."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from selfflow.media import Medium, images_only, medium_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 16
_STRIP_FRAMES = 12
# Approximate size of the longer side of a video file in pixels.
_VIDEO_SIDE = 256
# The highest sample rate that players take.
_LARGEST_RATE = 192_000
# Numbers of ITU-T H.273 for colours of high definition, and FFmpeg's for luma of 16 to 235.
_BT709, _LIMITED_RANGE = 1, 1
# Sizes on a sheet in inches.
_WIDTH, _ROW_HEIGHT, _PLOT_HEIGHT = 10.4, 1.3, 0.7


def write_video(path: Path, frames: np.ndarray, fps: float, audio: np.ndarray | None, rate: float) -> None:
    """Writes an mp4, enlarged until its longer side has about 256 pixels, with its audio if it has any.

    The audio is lossless (FLAC): AAC delays it, pads it to whole blocks and takes few sample rates.

    Args:
      path: path of the file.
      frames: uint8 [T, H, W, 3].
      fps: frames per second.
      audio: int16 [samples] that starts with the first frame, or None.
      rate: samples per second.
    """
    import av

    height, width = frames.shape[1:3]
    zoom = max(1, _VIDEO_SIDE // max(height, width))
    # H.264 stores one colour for 2 x 2 pixels, so that its sides are even.
    if zoom % 2 and (height % 2 or width % 2):
        zoom += 1
    frame_rate = Fraction(float(fps)).limit_denominator(1_000_000)
    with av.open(str(path.absolute()), "w") as container:
        video = container.add_stream("h264", rate=frame_rate)
        video.height, video.width, video.pix_fmt = zoom * height, zoom * width, "yuv420p"
        # Without B-frames, so that programs that ignore edit lists start at the first frame, too.
        video.options = {"crf": "18", "bf": "0"}
        # Players infer the colour space of untagged files from their size.
        context = video.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        track = None
        if audio is not None and len(audio):
            audio, track_rate = _at_whole_rate(audio, rate)
            track = container.add_stream("flac", rate=track_rate, layout="mono", format="s16")
        for number, pixels in enumerate(frames):
            pixels = np.ascontiguousarray(pixels.repeat(zoom, axis=0).repeat(zoom, axis=1))
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE
            )
            frame.pts, frame.time_base = number, 1 / frame_rate
            container.mux(video.encode(frame))
        # Without a frame, an encoder returns its delayed packets.
        container.mux(video.encode())
        if track is not None:
            block = av.AudioFrame.from_ndarray(audio[None], format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = track_rate, 0, Fraction(1, track_rate)
            container.mux(track.encode(block))
            container.mux(track.encode())


def write_audio(path: Path, audio: np.ndarray, rate: float) -> None:
    """Writes int16 [samples] as a wav."""
    import soundfile

    audio, whole_rate = _at_whole_rate(audio, rate)
    soundfile.write(path, audio, whole_rate)


def _at_whole_rate(audio: np.ndarray, rate: float) -> tuple[np.ndarray, int]:
    """int16 [samples] at a rate that files can name, and that rate: whole, and at most 192 kHz."""
    target = min(math.ceil(rate), _LARGEST_RATE)
    if target == rate or not len(audio):
        return audio, target
    import soxr

    return soxr.resample(audio, rate, target), target


def write_media(stem: Path, media: Mapping[str, np.ndarray], rates: Mapping[str, float]) -> list[Path]:
    """Writes one sample, one file per modality; a video includes the sample's audio. Returns the paths.

    Args:
      stem: path of the files without their suffixes.
      media: {modality: one clip}.
      rates: frames or samples per second, by modality.
    """
    files = []
    for m, clip in media.items():
        # Two streams may have one medium, and the name of a component may have a dot.
        name, _, offset = m.partition(":")
        path = stem.with_name(f"{stem.name}{'_' + offset if offset else ''}{medium_of(name).suffix}")
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
      label: text on the left of the row.
      medium: medium, which determines the preview.
      values: values of the preview: uint8 pixels [H, W, 3] of a grid or strip, else the clip.
      max_height: maximum height in inches, so that few images are not enlarged to the width of the sheet.
      rate: frames or samples per second of the clip.
    """

    label: str
    medium: Medium
    values: np.ndarray
    max_height: float
    rate: float

    @property
    def height(self) -> float:
        """Height of the row in inches."""
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
        axis.set_ylabel(self.label, fontsize=7, parse_math=False)


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
      path: path of the png.
      groups: {group, such as "sample": {modality: clips [B, ...]}}.
      rates: frames or samples per second, by modality.
      title: title of the page.
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
    # The name of a folder may have dollar signs.
    figure.suptitle(title, fontsize=11, parse_math=False)
    axes = figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, row in zip(axes, rows):
        row.draw(axis)
    figure.savefig(path, dpi=110)


def _row(label: str, m: str, values: np.ndarray, rates: Mapping[str, float]) -> _Row:
    """Creates a row of images [B, H, W, 3], or of one clip of another medium."""
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

    window = 256
    samples = np.pad(audio.astype(np.float32) / 32768, (0, max(window - len(audio), 0)))
    power = np.abs(librosa.stft(samples, n_fft=window, hop_length=64)) ** 2
    decibels = 10 * np.log10(np.maximum(power, 1e-6))
    seconds = len(audio) / rate
    axis.imshow(
        decibels, origin="lower", aspect="auto", vmin=-55, vmax=15, cmap="magma", extent=(0, seconds, 0, rate / 2000)
    )
    axis.set_xlim(0, seconds)
    axis.tick_params(labelsize=6)
