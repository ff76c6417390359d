"""latents.json: what a folder of latents says of itself."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfflow.errors import UserError
from selfflow.media import medium_of

MANIFEST = "latents.json"
_MODALITIES = ("image", "video", "audio")
_FIELDS = {"autoencoder", "shape", "stride", "temporal_stride", "first_frame_alone", "frames_per_second", "sample_rate"}
_FIELDS |= {"scale", "shift", "channels_first"}
_EXAMPLE = '{"image": {"autoencoder": "sd-vae-ft-ema", "shape": [32, 32, 4], "stride": 8, "scale": 0.18215}}'


@dataclass(frozen=True)
class Stream:
    """The latents of one modality.

    Attributes:
      autoencoder: which made them: its name, or the identity that `selfflow encode` prints.
      shape: of one latent, channels last and as long as clips nominally are: [H, W, C], [T, H, W, C] or [T, C].
      stride: pixels along the side of a latent position; 0 for sound.
      hop: frames or samples in one latent frame.
      lead: how many of those the first latent frame lacks: hop - 1 where a film's first frame stands alone.
      scale, shift: a number, or one for each channel: (stored - shift) * scale has about unit variance.
      channels_first: whether files have the channels before all other axes, as torch does.
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
        """Shape of what was encoded."""
        if not self.stride:
            return (self.shape[0] * self.temporal_stride,)
        *frames, height, width, _ = self.shape
        return (
            *(t * self.temporal_stride - self.causal_padding for t in frames),
            height * self.stride,
            width * self.stride,
            3,
        )


@dataclass(frozen=True)
class Manifest:
    """What latents.json says.

    Attributes:
      streams: by modality.
      frames_per_second: of the films; 0 where there are none.
      sample_rate: samples per second of the sounds; 0 where there are none.
      labels: {name of a label: names of its classes, or how many there are}.
    """

    streams: dict[str, Stream]
    frames_per_second: float
    sample_rate: int
    labels: dict[str, int | list[str]]

    def classes(self, label: str) -> int:
        """How many classes a label has."""
        known = self.labels[label]
        return known if isinstance(known, int) else len(known)


def read_manifest(folder: Path) -> Manifest:
    """Reads latents.json.

    Raises:
      UserError: naming file and field, if it is not there, is damaged or does not tell enough.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {what}; the source must be the folder that holds {MANIFEST} and the latents")
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; write one that tells of the latents, such as {_EXAMPLE}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict) or not found.keys() & set(_MODALITIES):
        raise UserError(f"{path} tells of no {', '.join(_MODALITIES)}; write one such as {_EXAMPLE}")
    if unknown := sorted(found.keys() - {*_MODALITIES, "labels"}):
        raise UserError(f"{path}: {unknown[0]} is not known; there are {', '.join(_MODALITIES)} and labels")
    told = {m: found[m] for m in _MODALITIES if m in found}
    return Manifest(
        {m: _stream(told[m], m, f"{path}: {m}") for m in told},
        told.get("video", {}).get("frames_per_second", 0.0),
        told.get("audio", {}).get("sample_rate", 0),
        _labels(found.get("labels", {}), f"{path}: labels"),
    )


def _stream(told: Any, m: str, who: str) -> Stream:
    _want(isinstance(told, dict), who, "is no table of fields")
    unknown = sorted(told.keys() - _FIELDS)
    _want(not unknown, who, f"has {unknown}, which is not known; there are {', '.join(sorted(_FIELDS))}")
    medium = medium_of(m)
    needed = {"autoencoder", "shape", "stride" if medium.is_visual else "temporal_stride"}
    if medium.has_time:
        needed.add(medium.rate_field)
    _want(needed <= told.keys(), who, f"lacks {', '.join(sorted(needed - told.keys()))}")
    _want(isinstance(told["autoencoder"], str) and told["autoencoder"], who, "has an autoencoder that is no name")
    shape = told["shape"]
    axes = len(medium.latent_axes)
    fits = isinstance(shape, list) and len(shape) == axes and all(_whole(n) for n in shape)
    _want(fits, who, f"has shape {shape}: give {axes} whole numbers above 0, channels last")
    for name in ("stride", "temporal_stride", "sample_rate"):
        _want(_whole(told.get(name, 1)), who, f"has {name} {told.get(name)!r}: give a whole number above 0")
    rate = told.get("frames_per_second", 1)
    _want(_number(rate) and rate > 0, who, f"has frames_per_second {rate!r}: give a number above 0")
    alone, hop = told.get("first_frame_alone", False), told.get("temporal_stride", 1)
    _want(isinstance(alone, bool) and (m == "video" or not alone), who, "has a first_frame_alone that is for films")
    first = told.get("channels_first", False)
    _want(isinstance(first, bool), who, f"has channels_first {first!r}: give true or false")
    numbers = {name: _per_channel(told.get(name, other), shape[-1]) for name, other in (("scale", 1.0), ("shift", 0.0))}
    for name, value in numbers.items():
        _want(value is not None, who, f"has {name} {told.get(name)!r}: give a number, or {shape[-1]}, one per channel")
    _want(0.0 not in (numbers["scale"], *_listed(numbers["scale"])), who, "has a scale of 0")
    stride = told["stride"] if medium.is_visual else 0
    return Stream(told["autoencoder"], tuple(shape), stride, hop, (hop - 1) * alone, **numbers, channels_first=first)


def _labels(told: Any, who: str) -> dict[str, int | list[str]]:
    _want(isinstance(told, dict), who, "are no table of label: number or names of its classes")
    for name, classes in told.items():
        named = isinstance(classes, list) and classes and all(isinstance(c, str) for c in classes)
        _want(named or _whole(classes), who, f"say {classes!r} of {name}: give the number or the names of its classes")
        taken = {*_MODALITIES, *(f"{m}_std" for m in _MODALITIES), "id", "present", "quality", "caption"}
        _want(name not in taken and name.isidentifier(), who, f"have one called {name!r}: give it another name")
    return told


def _want(true: Any, who: str, wrong: str) -> None:
    if not true:
        raise UserError(f"{who} {wrong}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def _per_channel(value: Any, channels: int) -> float | tuple[float, ...] | None:
    if isinstance(value, list):
        return tuple(map(float, value)) if len(value) == channels and all(map(_number, value)) else None
    return float(value) if _number(value) else None


def _listed(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else ()
