"""latents.json, which describes a folder of precomputed latents."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfflow.errors import UserError
from selfflow.media import medium_of

MANIFEST = "latents.json"
_MODALITIES = ("image", "video", "audio")
_FIELDS = {
    *("autoencoder", "shape", "stride", "temporal_stride", "first_frame_alone", "frames_per_second", "sample_rate"),
    *("scale", "shift", "channels_first"),
}
_RESERVED = {*_MODALITIES, *(f"{m}_std" for m in _MODALITIES), "id", "present", "quality", "caption"}
_EXAMPLE = '{"image": {"autoencoder": "sd-vae-ft-ema", "shape": [32, 32, 4], "stride": 8, "scale": 0.18215}}'

Labels = dict[str, int | list[str]]


@dataclass(frozen=True)
class Stream:
    """The latents of one modality.

    Attributes:
      autoencoder: name of the autoencoder, or its identity as `selfflow encode` prints it.
      shape: shape of one latent, channels last, at the nominal length: [H, W, C], [T, H, W, C] or [T, C].
      stride: pixels per latent position along each side; 0 for audio.
      temporal_stride: frames or samples in one latent frame.
      causal_padding: frames or samples that the first latent frame lacks: temporal_stride - 1 where it holds the first
        frame of a video alone.
      scale, shift: a number, or one for each channel: (stored - shift) * scale has about unit variance.
      channels_first: whether files have the channels before all other axes, as in torch.
    """

    autoencoder: str
    shape: tuple[int, ...]
    stride: int
    temporal_stride: int
    causal_padding: int
    scale: float | tuple[float, ...]
    shift: float | tuple[float, ...]
    channels_first: bool

    @property
    def media(self) -> tuple[int, ...]:
        """Shape of the media that were encoded."""
        if not self.stride:
            return (self.shape[0] * self.temporal_stride,)
        *latent_frames, height, width, _ = self.shape
        frames = [length * self.temporal_stride - self.causal_padding for length in latent_frames]
        return (*frames, height * self.stride, width * self.stride, 3)


@dataclass(frozen=True)
class Manifest:
    """The content of latents.json.

    Attributes:
      streams: streams by modality.
      frames_per_second: frames per second of the videos; 0 without video.
      sample_rate: samples per second of the audio; 0 without audio.
      labels: the names of a label's classes, or their number, by label.
    """

    streams: dict[str, Stream]
    frames_per_second: float
    sample_rate: int
    labels: Labels

    def class_count(self, label: str) -> int:
        """Number of classes of a label."""
        classes = self.labels[label]
        return classes if isinstance(classes, int) else len(classes)


def read_manifest(folder: Path) -> Manifest:
    """Reads latents.json.

    Raises:
      UserError: naming file and field, if it does not exist, is damaged or lacks a field.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {problem}; the source must be the folder that holds {MANIFEST} and the latents")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; describe the latents in it, such as {_EXAMPLE}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or not content.keys() & set(_MODALITIES):
        raise UserError(f"{path} describes no {', '.join(_MODALITIES)}; write for instance {_EXAMPLE}")
    unknown = sorted(content.keys() - {*_MODALITIES, "labels"})
    if unknown:
        raise UserError(f"{path}: {unknown[0]} is unknown; expected {', '.join(_MODALITIES)} or labels")
    streams = {m: _stream(content[m], m, f"{path}: {m}") for m in _MODALITIES if m in content}
    return Manifest(
        streams,
        content.get("video", {}).get("frames_per_second", 0.0),
        content.get("audio", {}).get("sample_rate", 0),
        _labels(content.get("labels", {}), f"{path}: labels"),
    )


def _stream(fields: Any, m: str, where: str) -> Stream:
    """Checks and converts the description of one modality."""
    _require(isinstance(fields, dict), where, "is not a table of fields")
    unknown = sorted(fields.keys() - _FIELDS)
    _require(not unknown, where, f"has {unknown}, which is unknown; expected fields: {', '.join(sorted(_FIELDS))}")
    medium = medium_of(m)
    # What the shape of the media and the clock of the tokens follow from.
    required = {"autoencoder", "shape", "stride" if medium.is_visual else "temporal_stride"}
    if medium.has_time:
        required.add(medium.rate_field)
    _require(required <= fields.keys(), where, f"lacks {', '.join(sorted(required - fields.keys()))}")
    named = isinstance(fields["autoencoder"], str) and fields["autoencoder"]
    _require(named, where, "has an autoencoder that is not a name")

    shape, axes = fields["shape"], len(medium.latent_axes)
    fits = isinstance(shape, list) and len(shape) == axes and all(map(_is_positive_integer, shape))
    _require(fits, where, f"has shape {shape}: give {axes} whole numbers above 0, channels last")
    for name in ("stride", "temporal_stride", "sample_rate"):
        value = fields.get(name, 1)
        _require(_is_positive_integer(value), where, f"has {name} {value!r}: give a whole number above 0")
    rate = fields.get("frames_per_second", 1)
    _require(_is_number(rate) and rate > 0, where, f"has frames_per_second {rate!r}: give a number above 0")

    temporal_stride, alone = fields.get("temporal_stride", 1), fields.get("first_frame_alone", False)
    valid = isinstance(alone, bool) and (m == "video" or not alone)
    _require(valid, where, "has a first_frame_alone, which is a boolean for video only")
    channels_first = fields.get("channels_first", False)
    _require(isinstance(channels_first, bool), where, f"has channels_first {channels_first!r}: give true or false")
    scale = _per_channel(fields, "scale", 1.0, shape[-1], where)
    # A scale of 0 would erase the latents.
    _require(0.0 not in (scale if isinstance(scale, tuple) else (scale,)), where, "has a scale of 0")
    return Stream(
        fields["autoencoder"],
        tuple(shape),
        stride=fields["stride"] if medium.is_visual else 0,
        temporal_stride=temporal_stride,
        causal_padding=temporal_stride - 1 if alone else 0,
        scale=scale,
        shift=_per_channel(fields, "shift", 0.0, shape[-1], where),
        channels_first=channels_first,
    )


def _labels(labels: Any, where: str) -> Labels:
    _require(isinstance(labels, dict), where, "are not a table of the number or the names of each label's classes")
    for name, classes in labels.items():
        names = isinstance(classes, list) and classes and all(isinstance(entry, str) for entry in classes)
        valid = names or _is_positive_integer(classes)
        _require(valid, where, f"say {classes!r} of {name}: give the number or the names of its classes")
        # Labels become features of the record beside these.
        valid = name not in _RESERVED and name.isidentifier()
        _require(valid, where, f"have one called {name!r}: give it another name")
    return labels


def _per_channel(
    fields: dict[str, Any], name: str, default: float, channels: int, where: str
) -> float | tuple[float, ...]:
    """Returns a field that is a number, or a list of one number for each channel."""
    value = fields.get(name, default)
    if isinstance(value, list):
        valid = len(value) == channels and all(map(_is_number, value))
    else:
        valid = _is_number(value)
    _require(valid, where, f"has {name} {value!r}: give a number, or {channels}, one per channel")
    return tuple(map(float, value)) if isinstance(value, list) else float(value)


def _require(condition: Any, where: str, problem: str) -> None:
    if not condition:
        raise UserError(f"{where} {problem}")


def _is_positive_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
