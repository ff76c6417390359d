"""Reads one media file as a clip of the size, rates and duration of a data set."""

from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError

from selfflow.data.media import Media
from selfflow.data.media.audio import AudioWindow, audio_chunks, soundfile_chunks, to_int16
from selfflow.data.media.container import inspect_container
from selfflow.data.media.decode import ROUNDING, clips
from selfflow.data.media.image import as_image, open_image
from selfflow.data.report import Notes, Unusable
from selfflow.errors import UserError


def read_image(path: Path, size: int) -> np.ndarray:
    """Returns the largest centred square of an image, or of the first frame of a video, resized to uint8
    [size, size, 3].

    Raises:
      UserError: the file is missing or contains no image.
    """
    _check_file(path)
    # Pillow does not open videos, which are read below.
    try:
        with open_image(path) as image:
            return as_image(image, size)
    except Unusable as error:
        raise UserError(f"{path} contains no image that can be read: {error}") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        pass
    try:
        return read_clip(path, ("video",), Media(frames=1, size=size))["video"][0]
    except UserError as error:
        raise UserError(f"{path} contains no image that can be read: {error.__cause__ or error}") from None


def read_clip(path: Path, modalities: tuple[str, ...], media: Media) -> dict[str, np.ndarray]:
    """Returns the first clip of a file.

    Args:
      path: a video or audio file.
      modalities: `video`, `audio` or both.
      media: size, rates and duration of the clip; its other settings have no effect.

    Returns:
      {"video": uint8 [frames, size, size, 3], "audio": int16 [samples]}, with the entries of `modalities`.

    Raises:
      UserError: the file is missing, cannot be read, is shorter than a clip, or lacks a modality.
    """
    _check_file(path)
    try:
        if modalities == ("audio",):
            return {"audio": _read_audio(path, media)}
        for clip in clips(path, media, Notes()):
            arrays = {modality: getattr(clip, modality) for modality in modalities}
            missing = [modality for modality, array in arrays.items() if array is None]
            if missing:
                raise UserError(f"{path}: its first {media.clip_seconds:g} s have no {' and '.join(missing)}")
            return arrays
    except Unusable as error:
        raise UserError(f"{path} contains no clip of {media.clip_seconds:g} s: {error}") from error
    raise UserError(f"{path} contains no clip of {media.clip_seconds:g} s")


def _read_audio(path: Path, media: Media) -> np.ndarray:
    """Returns the beginning of the audio in a file, int16 [samples], without decoding any video."""
    try:
        source = inspect_container(path)
        if source.audio is None:
            raise UserError(f"{path} has no audio")
        chunks = audio_chunks(source, media.sample_rate, Notes())
    except Unusable:
        chunks = soundfile_chunks(path, media.sample_rate)
    audio = AudioWindow(chunks)
    first = audio.next_start()
    if first is None:
        raise Unusable("no audio could be decoded")
    samples, covered = audio.read(first, media.samples)
    if covered < media.samples - ROUNDING * media.sample_rate:
        raise Unusable("shorter than a clip", f"{covered / media.sample_rate:.2f} s")
    return to_int16(samples)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
