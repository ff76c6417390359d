"""One media file as the clip that a data set would make of it: of its size, its rates and its length."""

from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError

from selfflow.data.media import Media
from selfflow.data.media.decode import ROUNDING, Sound, clips, int16_of
from selfflow.data.media.image import as_image, open_image
from selfflow.data.media.tracks import Unreadable, open_tracks, sound, sound_of_soundfile
from selfflow.data.report import Notes
from selfflow.errors import UserError


def read_still(path: Path, size: int) -> np.ndarray:
    """A picture file, or the first frame of a film, as uint8 [size, size, 3]: its largest centred square, resized.

    Raises:
      UserError: if the file is missing or holds no picture.
    """
    _check_file(path)
    try:
        with open_image(path) as image:
            return as_image(image, size)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        pass
    try:
        return read_clip(path, ("video",), Media(frames=1, size=size))["video"][0]
    except UserError:
        raise UserError(f"{path} holds no picture that can be read") from None


def read_clip(path: Path, wanted: tuple[str, ...], media: Media) -> dict[str, np.ndarray]:
    """The first clip of a file.

    Args:
      path: a film or a sound.
      wanted: `video`, `audio` or both.
      media: size, rates and length of the clip; its other settings say nothing here.

    Returns:
      {"video": uint8 [frames, size, size, 3], "audio": int16 [samples]}, those that were wanted.

    Raises:
      UserError: if the file is missing, cannot be read, is shorter, or lacks what is wanted.
    """
    _check_file(path)
    try:
        if wanted == ("audio",):
            return {"audio": _read_sound(path, media)}
        for clip in clips(path, media, Notes()):
            found = {m: getattr(clip, m) for m in wanted}
            if any(x is None for x in found.values()):
                lacking = " and ".join(m for m, x in found.items() if x is None)
                raise UserError(f"{path}: its first {media.clip_seconds:g} s have no {lacking}")
            return found
    except Unreadable as error:
        raise UserError(f"{path} gives no clip of {media.clip_seconds:g} s: {error}") from error
    raise UserError(f"{path} gives no clip of {media.clip_seconds:g} s")


def _read_sound(path: Path, media: Media) -> np.ndarray:
    """The beginning of a sound, or of the sound of a film whatever its pictures are."""
    try:
        tracks = open_tracks(path)
        if tracks.sound is None:
            raise UserError(f"{path} has no audio")
        pieces = sound(tracks, media.sample_rate, Notes())
    except Unreadable:
        pieces = sound_of_soundfile(path, media.sample_rate)
    heard = Sound(pieces)
    first = heard.run_after(-(2**62))
    if first is None:
        raise Unreadable("no sound could be decoded")
    samples, covered = heard.window(first, media.samples)
    if covered < media.samples - ROUNDING * media.sample_rate:
        raise Unreadable("shorter than a clip", f"{covered / media.sample_rate:.2f} s")
    return int16_of(samples)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
