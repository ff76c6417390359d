"""A serialized record of a TFDS data set -> a record in the common form."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from PIL import Image

from selfflow.data.features import content_of, read_features
from selfflow.data.media.still import as_image, crop_square, rgb
from selfflow.data.tfds import Tfds
from selfflow.data.tfds.fields import Fields, choose, dtype_of
from selfflow.errors import UserError
from selfflow.media import medium_of


class Decoder:
    """`decoder(raw)` is the record that is serialized in `raw`.

    Args:
      settings: of the data set.
      folder: where it is prepared.

    Raises:
      UserError: a field of `settings` is missing, or of a type that cannot serve.
    """

    def __init__(self, settings: Tfds, folder: Path):
        self._settings, self._fields = settings, choose(settings, folder)
        self._features = read_features(folder, self._fields.used, encoded=True)
        self._shapes = settings.shapes(set(self._fields.media))
        self._source_rate = _source_rate(settings, self._fields)
        for what in {"image", "video"} & set(self._fields.media):
            path = self._fields.media[what]
            if (dtype := dtype_of(self._fields.specs[path])) not in ("uint8", "uint16"):
                raise UserError(f"tfds.{what} = {path!r}: holds {dtype or 'no numbers'}, not pixels of 0 to 255")

    def __call__(self, raw: bytes) -> dict[str, Any]:
        fields, settings = self._fields, self._settings
        stored = self._features.deserialize_example_np(raw)
        media: dict[str, np.ndarray | None] = {}
        for what, path in fields.media.items():
            value = _at(stored, path)
            if what == "image":
                media[what] = _still(value, settings.size) if len(value) else None
            elif what == "video":
                media[what] = self._video(value)
            else:
                media[what] = self._audio(value, path)
        if media.get("video") is not None and media.get("audio") is not None:
            frame = round(settings.samples_per_frame)
            frames = min(len(media["video"]), len(media["audio"]) // frame)
            media["audio"] = media["audio"][: frames * frame] if frames else None
        record = {}
        for m, clip in media.items():
            record[m] = np.zeros(self._shapes[m], medium_of(m).dtype) if clip is None else clip
        record |= {
            "id": self._id(stored, raw),
            "present": {what: value is not None for what, value in media.items()},
            "quality": np.float32(1.0),
        }
        record |= {name: int(_at(stored, path)) for name, path in fields.labels.items()}
        if fields.caption:
            record["caption"] = self._text(stored, fields.caption)
        return record

    def _id(self, stored: dict[str, Any], raw: bytes) -> str:
        name = self._settings.parts[0]
        if self._fields.id:
            return f"{name}-{self._text(stored, self._fields.id)}"
        return f"{name}-{hashlib.sha256(raw).hexdigest()[:16]}"

    def _text(self, stored: dict[str, Any], path: str) -> str:
        value = _at(stored, path)
        while isinstance(value, (list, np.ndarray)):
            value = value[0] if len(value) else b""
        feature = _at(self._features, path)
        if isinstance(value, int) and getattr(feature, "names", None):
            return feature.int2str(value).replace("_", " ")
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    def _video(self, value: Any) -> np.ndarray | None:
        """The pictures nearest to i / frames_per_second over the whole length, uint8 [T, size, size, 3]."""
        settings = self._settings
        step = settings.source_frames_per_second / settings.frames_per_second
        count = int(len(value) / step + 1e-6) or min(len(value), 1)
        nearest = np.minimum(np.floor(np.arange(count) * step + 0.5).astype(int), len(value) - 1)
        return np.stack([_still(value[k], settings.size) for k in nearest]) if count else None

    def _audio(self, value: Any, path: str) -> np.ndarray | None:
        """Mono at the asked rate, int16 [n]."""
        rate = self._source_rate
        if isinstance(value, bytes):
            samples, rate = soundfile.read(io.BytesIO(value), dtype="float32", always_2d=True)
        else:
            samples = np.asarray(value)
            if samples.dtype.kind in "iu":
                # Whatever its type, TFDS keeps the numbers of the source, which are 16 bits but for rare ones.
                if np.abs(samples.astype(np.int64)).max(initial=0) > 32768:
                    raise UserError(
                        f"tfds.audio = {path!r}: holds samples of more than 16 bits, which cannot be scaled"
                    )
                samples = samples.astype(np.float32) / 32768
            samples = samples.astype(np.float32).reshape(len(samples), -1)
        mono = np.nan_to_num(samples.mean(axis=1)) if len(samples) else np.zeros(0, np.float32)
        mono = soxr.resample(mono, rate, self._settings.sample_rate) if len(mono) else mono
        audio = np.rint(np.clip(mono, -1, 1) * 32767).astype(np.int16)
        return audio if audio.any() else None


def _source_rate(settings: Tfds, fields: Fields) -> int:
    if "audio" not in fields.media:
        return 0
    content = content_of(fields.specs[fields.media["audio"]])
    dtype = str(content.get("dtype", ""))
    if not dtype.startswith(("int", "float")):
        raise UserError(f"tfds.audio = {fields.media['audio']!r}: holds {dtype or 'no numbers'}, not samples of sound")
    rate = settings.source_sample_rate or int(content.get("sampleRate", 0))
    if not rate and not content.get("lazyDecode"):
        raise UserError(
            f"tfds.source_sample_rate = 0: the field {fields.media['audio']} does not tell its rate, so say it"
        )
    whole = settings.samples_per_frame
    if "video" in fields.media and abs(whole - round(whole)) > 1e-6:
        raise UserError(
            f"tfds.sample_rate = {settings.sample_rate}: must be a multiple of "
            f"frames_per_second = {settings.frames_per_second:g}"
        )
    return rate


def _still(value: Any, size: int) -> np.ndarray:
    """An encoded picture, or one as [H, W] or [H, W, C], as uint8 [size, size, 3]."""
    if isinstance(value, bytes):
        with Image.open(io.BytesIO(value)) as image:
            return as_image(image, size)
    pixels = np.asarray(value)
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    return crop_square(
        rgb(Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)), size
    )


def _at(tree: Any, path: str) -> Any:
    for part in path.split("."):
        tree = tree[part]
    return tree
