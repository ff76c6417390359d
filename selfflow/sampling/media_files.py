"""Samples as files that people look at and listen to."""

import math
from pathlib import Path

import numpy as np

_COLUMNS = 16


def write_video(path: Path, frames: np.ndarray, fps: float, sound: np.ndarray | None, rate: int) -> None:
    """Writes an mp4, enlarged so that single pixels can be seen, with its sound if there is any.

    Args:
      path: the file.
      frames: uint8 [T, H, W, 3].
      fps: frames a second.
      sound: int16 [samples] that starts with the first frame, or None.
      rate: samples a second.
    """
    from fractions import Fraction

    import av

    zoom = max(1, 256 // frames.shape[2])
    frames = frames.repeat(zoom, axis=1).repeat(zoom, axis=2)
    with av.open(str(path), "w") as container:
        video = container.add_stream("h264", rate=Fraction(fps).limit_denominator(1000))
        video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        video.options = {"crf": "18"}
        audio = None if sound is None else container.add_stream("aac", rate=rate, layout="mono")
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(video.encode())
        if audio is not None:
            block = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
            block.sample_rate = rate
            container.mux(audio.encode(block))
            container.mux(audio.encode())


def write_audio(path: Path, sound: np.ndarray, rate: int) -> None:
    """Writes int16 [samples] as a wav."""
    import soundfile

    soundfile.write(path, sound, rate)


def write_media(stem: Path, media: dict[str, np.ndarray], rates: dict[str, float]) -> list[Path]:
    """Writes one sample: a film with its sound as mp4, a sound as wav, a picture as png; returns the files.

    Args:
      stem: path of the files without their endings.
      media: {modality: uint8 [(T,) H, W, 3] or int16 [samples]}.
      rates: frames or samples a second, by modality.
    """
    from PIL import Image

    files = []
    if "video" in media:
        files.append(stem.with_suffix(".mp4"))
        write_video(files[-1], media["video"], rates["video"], media.get("audio"), rates.get("audio", 0))
    if "audio" in media:
        files.append(stem.with_suffix(".wav"))
        write_audio(files[-1], media["audio"], rates["audio"])
    if "image" in media:
        files.append(stem.with_suffix(".png"))
        Image.fromarray(media["image"]).save(files[-1])
    return files


def write_sheet(
    path: Path, parts: dict[str, dict[str, np.ndarray]], rate: int, title: str, given: tuple[str, ...] = ()
) -> None:
    """Draws groups of samples on one page: pictures, films as strips of frames, sound as spectrograms.

    Where film and sound belong together the spectrogram stands under its strip, on the same time axis.

    Args:
      path: the png.
      parts: {group, such as "samples": {modality: uint8 pictures [B, (T,) H, W, 3] or int16 sound [B, samples]}}.
      rate: samples a second of the sound.
      title: of the page.
      given: modalities that are labelled as given, and not by their group.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    width, rows = 10.4, []
    for group, media in parts.items():
        if set(media) == {"image"}:
            rows.append((f"{group}\nimage", "image", media["image"]))
            continue
        for i in range(len(next(iter(media.values())))):
            rows += [
                (f"{'given' if m in given else group} {i}\n{m}", m, values[i : i + 1] if m == "image" else values[i])
                for m, values in media.items()
            ]
    # Few pictures are not blown up to the width of the page.
    most = [
        0.7 if m == "audio" else 1.3 * (math.ceil(len(values) / _COLUMNS) if m == "image" else 1)
        for _, m, values in rows
    ]
    drawn = {"audio": lambda values: values, "image": _grid}
    rows = [(label, m, drawn.get(m, _strip)(values)) for label, m, values in rows]
    heights = [
        limit if m == "audio" else min(limit, 1.09 * width * x.shape[0] / x.shape[1])
        for limit, (_, m, x) in zip(most, rows)
    ]
    figure = Figure(figsize=(width + 0.6, sum(heights) + 0.12 * len(rows) + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (label, m, values) in zip(axes, rows):
        if m == "audio":
            draw_spectrogram(axis, values, rate)
        else:
            axis.imshow(values, interpolation="nearest", aspect="equal")
            axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(label, fontsize=7)
    figure.savefig(path, dpi=110)


def _grid(pictures: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, 3] -> all of them in rows, framed in white."""
    columns = min(_COLUMNS, len(pictures))
    framed = np.pad(pictures, ((0, -len(pictures) % columns), (1, 1), (1, 1), (0, 0)), constant_values=255)
    framed[len(pictures) :] = 255
    rows = framed.reshape(-1, columns, *framed.shape[1:])
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)


def _strip(pictures: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 3] -> about a dozen of them side by side, framed in white."""
    chosen = pictures[:: max(1, len(pictures) // 12)]
    return np.concatenate(list(np.pad(chosen, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)), axis=1)


def draw_spectrogram(axis, sound: np.ndarray, rate: float) -> None:
    """Draws int16 [samples] on matplotlib axes: seconds against kHz, decibels as brightness."""
    import librosa

    size, hop = 256, 64
    power = np.abs(librosa.stft(sound.astype(np.float32) / 32768, n_fft=size, hop_length=hop)) ** 2
    decibel = 10 * np.log10(np.maximum(power, 1e-6))
    seconds = len(sound) / rate
    axis.imshow(
        decibel, origin="lower", aspect="auto", vmin=-55, vmax=15, cmap="magma", extent=(0, seconds, 0, rate / 2000)
    )
    axis.set_xlim(0, seconds)
    axis.tick_params(labelsize=6)
