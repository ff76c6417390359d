"""Decodes serialized records of a TFDS data set to the common form."""

import hashlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr
from PIL import Image

from selfflow.data.features import content_of, read_features
from selfflow.data.media.image import as_image, crop_square, rgb
from selfflow.data.tfds.fields import Fields, dtype_of
from selfflow.errors import UserError
from selfflow.media import medium_of


class MediaFormat(NamedTuple):
    """Format of the media in records, stored and decoded.

    Attributes:
      shapes: shapes by modality of the zeros that stand for absent media.
      size: height and width of images and frames, pixels.
      frames_per_second: frames per second of decoded videos.
      source_frames_per_second: frames per second of stored videos.
      sample_rate: sample rate of decoded audio, Hz.
      source_sample_rate: sample rate of stored audio, Hz; 0 for the rate that the field has.
    """

    shapes: dict[str, tuple[int, ...]]
    size: int
    frames_per_second: float
    source_frames_per_second: float
    sample_rate: int
    source_sample_rate: int


class Decoder:
    """Callable that decodes a serialized record: `decoder(serialized)` is the record in the common form.

    Args:
      folder: folder of the prepared data set.
      fields: fields to decode.
      media: format of the media.
      id_prefix: text that the ids of records begin with.

    Raises:
      UserError: a field cannot be decoded as its modality, or the sample rate is unknown or does not fit the
        frame rate.
    """

    def __init__(self, folder: Path, fields: Fields, media: MediaFormat, id_prefix: str):
        self._fields, self._media, self._id_prefix = fields, media, id_prefix
        self._features = read_features(folder, fields.used, encoded=True)
        self._source_rate = _source_rate(fields, media)
        for modality in {"image", "video"} & set(fields.media):
            path = fields.media[modality]
            dtype = dtype_of(fields.specs[path])
            if dtype not in ("uint8", "uint16"):
                raise UserError(f"tfds.{modality} = {path!r}: {dtype or 'no numbers'}, not pixels of 8 or 16 bits")

    def __call__(self, serialized: bytes) -> dict[str, Any]:
        stored = self._features.deserialize_example_np(serialized)
        media = {m: self._decode(m, _at(stored, path), path) for m, path in self._fields.media.items()}
        if media.get("video") is not None and media.get("audio") is not None:
            # Cut both to a whole number of frames.
            samples_per_frame = round(self._media.sample_rate / self._media.frames_per_second)
            frames = min(len(media["video"]), len(media["audio"]) // samples_per_frame)
            media["audio"] = media["audio"][: frames * samples_per_frame] if frames else None
        record: dict[str, Any] = {}
        for m, array in media.items():
            record[m] = np.zeros(self._media.shapes[m], medium_of(m).dtype) if array is None else array
        record["id"] = self._id(stored, serialized)
        record["present"] = {m: array is not None for m, array in media.items()}
        record["quality"] = np.float32(1.0)
        for name, path in self._fields.labels.items():
            record[name] = int(_at(stored, path))
        if self._fields.caption:
            record["caption"] = self._text(stored, self._fields.caption)
        return record

    def _decode(self, modality: str, value: Any, path: str) -> np.ndarray | None:
        if modality == "image":
            return _image(value, self._media.size) if len(value) else None
        return self._video(value) if modality == "video" else self._audio(value, path)

    def _id(self, stored: dict[str, Any], serialized: bytes) -> str:
        # Ids that are not UTF-8 remain distinct.
        if self._fields.id:
            return f"{self._id_prefix}{self._text(stored, self._fields.id, 'backslashreplace')}"
        # A hash of the contents is stable when TFDS shuffles or other records are removed.
        return f"{self._id_prefix}{hashlib.sha256(serialized).hexdigest()[:16]}"

    def _text(self, stored: dict[str, Any], path: str, errors: str = "replace") -> str:
        value = _at(stored, path)
        # Take the first of several texts.
        while isinstance(value, list | np.ndarray):
            value = value[0] if len(value) else b""
        feature = _at(self._features, path)
        if isinstance(value, int) and getattr(feature, "names", None):
            return feature.int2str(value).replace("_", " ")
        return value.decode("utf-8", errors) if isinstance(value, bytes) else str(value)

    def _video(self, frames: Any) -> np.ndarray | None:
        """Returns the frames nearest to the times 0, 1 / frames_per_second, ..., uint8 [T, size, size, 3]; None if
        there are no frames."""
        step = self._media.source_frames_per_second / self._media.frames_per_second
        count = int(len(frames) / step + 1e-6) or min(len(frames), 1)
        nearest = np.minimum(np.floor(np.arange(count) * step + 0.5).astype(int), len(frames) - 1)
        return np.stack([_image(frames[k], self._media.size) for k in nearest]) if count else None

    def _audio(self, value: Any, path: str) -> np.ndarray | None:
        """Returns the mean of all channels at the sample rate of the data set, int16 [n]; None for digital silence."""
        rate = self._source_rate
        if isinstance(value, bytes):
            samples, rate = soundfile.read(io.BytesIO(value), dtype="float32", always_2d=True)
        else:
            samples = np.asarray(value)
            if samples.dtype.kind in "iu":
                # TFDS may store samples in a wider integer type than their source has; nearly all sources have 16 bits.
                if np.abs(samples.astype(np.int64)).max(initial=0) > 32768:
                    raise UserError(
                        f"tfds.audio = {path!r}: holds samples of more than 16 bits, which cannot be scaled"
                    )
                samples = samples.astype(np.float32) / 32768
            samples = samples.astype(np.float32).reshape(len(samples), -1)
        mono = np.nan_to_num(samples.mean(axis=1)) if len(samples) else np.zeros(0, np.float32)
        mono = soxr.resample(mono, rate, self._media.sample_rate) if len(mono) else mono
        audio = np.rint(np.clip(mono, -1, 1) * 32767).astype(np.int16)
        return audio if audio.any() else None


def _source_rate(fields: Fields, media: MediaFormat) -> int:
    """Sample rate of the stored audio; 0 where each record has its own."""
    if "audio" not in fields.media:
        return 0
    path = fields.media["audio"]
    content = content_of(fields.specs[path])
    dtype = str(content.get("dtype", ""))
    if not dtype.startswith(("int", "float")):
        raise UserError(f"tfds.audio = {path!r}: holds {dtype or 'no numbers'}, not audio samples")
    rate = media.source_sample_rate or int(content.get("sampleRate", 0))
    if not rate and not content.get("lazyDecode"):
        raise UserError(f"tfds.source_sample_rate = 0: the field {path} has no sample rate; set it")
    per_frame = media.sample_rate / media.frames_per_second
    if "video" in fields.media and abs(per_frame - round(per_frame)) > 1e-6:
        raise UserError(
            f"tfds.sample_rate = {media.sample_rate}: must be a multiple of "
            f"frames_per_second = {media.frames_per_second:g}"
        )
    return rate


def _image(value: Any, size: int) -> np.ndarray:
    """Returns an encoded image, or pixels [H, W] or [H, W, C], as uint8 [size, size, 3]."""
    if isinstance(value, bytes):
        with Image.open(io.BytesIO(value)) as image:
            return as_image(image, size)
    pixels = np.asarray(value)
    # The upper 8 of 16 bits.
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return crop_square(rgb(Image.fromarray(pixels)), size)


def _at(tree: Any, path: str) -> Any:
    """Returns the entry of nested dicts at a dotted path."""
    for part in path.split("."):
        tree = tree[part]
    return tree
