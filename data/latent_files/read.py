"""Reads files of latents: npz and safetensors, one sample or a stack of samples each."""

import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes  # noqa: F401  registers bfloat16, which safetensors may hold
import numpy as np
from safetensors import safe_open

from selfflow.data.latent_files.manifest import Manifest, Stream
from selfflow.data.report import Unusable
from selfflow.data.shards import one_line
from selfflow.media import medium_of

SUFFIXES = (".npz", ".safetensors")
CAPTION = "caption"


@dataclass
class Sample:
    """One sample.

    Attributes:
      latents: latents by modality, float16, channels last, of about unit variance.
      stds: standard deviations of the latents by modality, where the autoencoder is stochastic.
      labels: all labels of the manifest; -1 for none.
      caption: caption; "" for none.
    """

    latents: dict[str, np.ndarray] = field(default_factory=dict)
    stds: dict[str, np.ndarray] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    caption: str = ""


def read_samples(
    path: Path, manifest: Manifest, unknown_arrays: set[str]
) -> Iterator[tuple[int | None, Sample | Unusable]]:
    """Yields the samples of one file: (index in a stack, None for a file of one sample; the sample, or its problem).

    Args:
      path: path of the file.
      manifest: the content of latents.json.
      unknown_arrays: names of arrays that the manifest does not describe are added to it.

    Raises:
      Unusable: the file has no usable sample.
    """
    try:
        with _open(path) as arrays:
            unknown_arrays.update(set(arrays.names()) - _known_arrays(manifest))
            yield from _samples(arrays, manifest)
    except Unusable:
        raise
    except Exception as error:  # readers raise errors of many types for damaged bytes
        raise Unusable("unreadable", f"{type(error).__name__}: {one_line(error)}") from error


def _known_arrays(manifest: Manifest) -> set[str]:
    return {*manifest.streams, *map(_std_name, manifest.streams), *manifest.labels, CAPTION}


def _std_name(modality: str) -> str:
    return f"{modality}.std"


class _Npz(AbstractContextManager):
    """Arrays of an npz by name; each is read once."""

    def __init__(self, path: Path):
        if not zipfile.is_zipfile(path):  # numpy would try to unpickle it, which executes code
            raise ValueError("it is damaged, or not an npz")
        self._file = np.load(path, allow_pickle=False)
        self._arrays: dict[str, np.ndarray] = {}

    def __exit__(self, *_) -> None:
        self._file.close()

    def names(self) -> list[str]:
        return list(self._file.files)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._array(name).shape

    def row(self, name: str, i: int | None) -> np.ndarray:
        return self._array(name) if i is None else self._array(name)[i]

    def _array(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            try:
                self._arrays[name] = self._file[name]
            except ValueError as error:
                raise Unusable("unreadable", f"{name} is damaged, or holds Python objects") from error
        return self._arrays[name]


class _Safetensors(AbstractContextManager):
    """Arrays of a safetensors file by name; only the requested row of a stack is read."""

    def __init__(self, path: Path):
        self._file = safe_open(path, "np")
        self._file.__enter__()

    def __exit__(self, *exit) -> None:
        self._file.__exit__(*exit)

    def names(self) -> list[str]:
        return list(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def row(self, name: str, i: int | None) -> np.ndarray:
        return self._file.get_tensor(name) if i is None else self._file.get_slice(name)[i : i + 1][0]


def _open(path: Path) -> _Npz | _Safetensors:
    return _Npz(path) if path.suffix.lower() == ".npz" else _Safetensors(path)


def _samples(arrays: _Npz | _Safetensors, manifest: Manifest) -> Iterator[tuple[int | None, Sample | Unusable]]:
    names = arrays.names()
    modalities = [m for m in manifest.streams if m in names]
    if not modalities:
        expected = " or ".join(manifest.streams)
        raise Unusable("no latents", f"it has {', '.join(names) or 'nothing'}, not {expected}")
    stack = _stack_size(arrays, modalities, manifest)
    if stack is not None:
        # All arrays of the samples must be stacks of the same size.
        for name in names:
            if name in {*manifest.labels, CAPTION, *map(_std_name, modalities)} and arrays.shape(name)[:1] != (stack,):
                detail = f"{name} has shape {arrays.shape(name)}, its stacks hold {stack} samples"
                raise Unusable("wrong shape", detail)
    for i in [None] if stack is None else range(stack):
        try:
            yield i, _sample(arrays, modalities, manifest, i)
        except Unusable as error:
            yield i, error


def _stack_size(arrays: _Npz | _Safetensors, modalities: list[str], manifest: Manifest) -> int | None:
    """Number of samples in a file; None if its latents are those of one sample, without a leading axis."""
    leading_axes, sizes = set(), set()
    for m in modalities:
        shape = arrays.shape(m)
        axes = len(shape) - len(manifest.streams[m].shape)
        if axes not in (0, 1):
            raise Unusable("wrong shape", f"{m} has shape {shape}, one sample {manifest.streams[m].shape}")
        leading_axes.add(axes)
        # The set is empty if no array has a leading axis.
        sizes.update(shape[:axes])
    if len(leading_axes) > 1:
        raise Unusable("wrong shape", "some of its modalities are stacks of samples and others are not")
    if len(sizes) > 1:
        raise Unusable("wrong shape", f"its stacks hold {' and '.join(map(str, sorted(sizes)))} samples")
    if sizes == {0}:
        raise Unusable("no latents", "its stack is empty")
    return sizes.pop() if sizes else None


def _sample(arrays: _Npz | _Safetensors, modalities: list[str], manifest: Manifest, i: int | None) -> Sample:
    names, sample = arrays.names(), Sample()
    for m in modalities:
        stream, std = manifest.streams[m], _std_name(m)
        # A standard deviation scales as the latent does, without its shift.
        sample.latents[m] = _latent(arrays.row(m, i), m, stream, stream.shift)
        if std in names:
            sample.stds[m] = np.abs(_latent(arrays.row(std, i), std, stream, 0.0))
            if sample.stds[m].shape != sample.latents[m].shape:
                raise Unusable("wrong shape", f"{m} and {std} differ")
    for label in manifest.labels:
        sample.labels[label] = _label(arrays.row(label, i), label, manifest) if label in names else -1
    if CAPTION in names:
        sample.caption = _caption(arrays.row(CAPTION, i))
    return sample


def _label(stored: np.ndarray, label: str, manifest: Manifest) -> int:
    value = np.asarray(stored)
    if value.size != 1 or value.dtype.kind not in "iu":
        raise Unusable("wrong label", f"{label} is {value.dtype} {value.shape}, not one whole number")
    number, classes = int(value.reshape(())), manifest.class_count(label)
    if not -1 <= number < classes:
        raise Unusable("wrong label", f"{label} is {number}, of {classes} classes")
    return number


def _caption(stored: np.ndarray) -> str:
    value = np.asarray(stored)
    if value.dtype.kind != "U" or value.size != 1:
        raise Unusable("wrong caption", f"{CAPTION} is {value.dtype} {value.shape}, not one text")
    text = str(value.reshape(()))
    # numpy stores any code point, and a record only those of UTF-8.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unusable("wrong caption", f"{CAPTION} is not valid text: {error}") from error
    return text


def _latent(stored: np.ndarray, name: str, stream: Stream, shift: float | tuple[float, ...]) -> np.ndarray:
    """Stored numbers as (stored - shift) * scale, float16, channels last."""
    x = np.asarray(stored)
    if x.dtype.kind != "f" and x.dtype.name != "bfloat16":
        raise Unusable("wrong type", f"{name} holds {x.dtype}")
    x = np.moveaxis(x, 0, -1) if stream.channels_first else x
    # The time axis of clips may be shorter or longer than the nominal shape.
    fixed = 1 if medium_of(name.removesuffix(".std")).has_time else 0
    if x.shape[fixed:] != stream.shape[fixed:] or not x.size:
        raise Unusable("wrong shape", f"{name} has shape {x.shape}, not {stream.shape} (channels last)")
    # An overflow of float16 becomes infinite and is reported below.
    with np.errstate(over="ignore", invalid="ignore"):
        x = ((x.astype(np.float32) - np.float32(shift)) * np.float32(stream.scale)).astype(np.float16)
    if not np.isfinite(x).all():
        raise Unusable("not finite", f"{name} holds NaN, infinity or numbers beyond float16")
    return np.ascontiguousarray(x)
