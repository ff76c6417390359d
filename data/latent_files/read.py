"""A file of latents -> samples. Knows nothing of where they are kept."""

import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16, which safetensors may hold
import numpy as np
from safetensors import safe_open

from selfflow.data.latent_files.manifest import Manifest, Stream
from selfflow.data.shards import one_line

SUFFIXES = (".npz", ".safetensors")
CAPTION = "caption"


class Unusable(Exception):
    """Why a file, or a sample of it, is no latents."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def samples(path: Path, told: Manifest, strange: set[str]) -> Iterator[tuple[int | None, dict[str, Any] | Unusable]]:
    """The samples of one file: (its place in a stack, None for a file of one sample; its arrays, or what is wrong).

    Arrays are M and, where the autoencoder was stochastic, M_std: float16, channels last, of about unit variance; each
    label an int, and `caption`, a str, where there is one. Arrays of other names go into `strange`.

    Raises:
      Unusable: nothing of the file can be used.
    """
    try:
        with _opened(path) as arrays:
            known = {*told.streams, *(f"{m}.std" for m in told.streams), *told.labels, CAPTION}
            strange.update(set(arrays.names()) - known)
            yield from _samples(arrays, told)
    except Unusable:
        raise
    except Exception as error:  # whatever the bytes are, what they do to a reader is about this file
        raise Unusable("unreadable", f"{type(error).__name__}: {one_line(error)}") from error


class _Npz(AbstractContextManager):
    """Arrays of an npz by name; each is read once."""

    def __init__(self, path: Path):
        if not zipfile.is_zipfile(path):  # numpy would take it for a pickle, which runs what it likes
            raise ValueError("it is damaged, or no npz")
        self._file = np.load(path, allow_pickle=False)
        self._read: dict[str, np.ndarray] = {}

    def __exit__(self, *_) -> None:
        self._file.close()

    def names(self) -> list[str]:
        return list(self._file.files)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._array(name).shape

    def row(self, name: str, i: int | None) -> np.ndarray:
        return self._array(name) if i is None else self._array(name)[i]

    def _array(self, name: str) -> np.ndarray:
        if name not in self._read:
            try:
                self._read[name] = self._file[name]
            except ValueError as error:
                raise Unusable("unreadable", f"{name} is damaged, or holds objects of Python") from error
        return self._read[name]


class _Safetensors(AbstractContextManager):
    """Arrays of a safetensors file by name; of a stack no more is read than what is asked for."""

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


def _opened(path: Path) -> _Npz | _Safetensors:
    return _Npz(path) if path.suffix == ".npz" else _Safetensors(path)


def _samples(arrays: _Npz | _Safetensors, told: Manifest) -> Iterator[tuple[int | None, dict[str, Any] | Unusable]]:
    names = arrays.names()
    there = [m for m in told.streams if m in names]
    if not there:
        raise Unusable("no latents", f"it has {', '.join(names) or 'nothing'}, not {' or '.join(told.streams)}")
    deeper = {m: len(arrays.shape(m)) - len(told.streams[m].shape) for m in there}
    for m, more in deeper.items():
        if more not in (0, 1):
            raise Unusable("wrong shape", f"{m} has shape {arrays.shape(m)}, one sample {told.streams[m].shape}")
    if len(set(deeper.values())) > 1:
        raise Unusable("wrong shape", "some of its modalities are stacks of samples and others are not")
    counts = {arrays.shape(m)[0] for m in there if deeper[m]}
    if len(counts) > 1:
        raise Unusable("wrong shape", f"its stacks hold {' and '.join(map(str, sorted(counts)))} samples")
    if counts == {0}:
        raise Unusable("no latents", "its stack is empty")
    for name in names if counts else ():
        if name in (*told.labels, CAPTION, *(f"{m}.std" for m in there)) and arrays.shape(name)[:1] != (*counts,):
            raise Unusable(
                "wrong shape", f"{name} has shape {arrays.shape(name)}, its stacks hold {min(counts)} samples"
            )
    for i in range(counts.pop()) if counts else (None,):
        try:
            yield i, _sample(arrays, names, there, told, i)
        except Unusable as error:
            yield i, error


def _sample(arrays: Any, names: list[str], there: list[str], told: Manifest, i: int | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for m in there:
        stream = told.streams[m]
        found[m] = _latent(arrays.row(m, i), m, stream, stream.shift)
        if f"{m}.std" in names:
            found[f"{m}_std"] = np.abs(_latent(arrays.row(f"{m}.std", i), f"{m}.std", stream, 0.0))
            if found[f"{m}_std"].shape != found[m].shape:
                raise Unusable("wrong shape", f"{m} and {m}.std differ")
    for label in told.labels:
        found[label] = -1
        if label in names:
            value = np.asarray(arrays.row(label, i))
            if value.size != 1 or value.dtype.kind not in "iu":
                raise Unusable("wrong label", f"{label} is {value.dtype} {value.shape}, not one whole number")
            found[label] = int(value.reshape(()))
            if not -1 <= found[label] < told.classes(label):
                raise Unusable("wrong label", f"{label} is {found[label]}, of {told.classes(label)} classes")
    if CAPTION in names:
        value = np.asarray(arrays.row(CAPTION, i))
        if value.dtype.kind != "U" or value.size != 1:
            raise Unusable("wrong caption", f"{CAPTION} is {value.dtype} {value.shape}, not one text")
        found[CAPTION] = str(value.reshape(()))
        try:
            found[CAPTION].encode()
        except UnicodeEncodeError as error:
            raise Unusable("wrong caption", f"{CAPTION} is no text: {error}") from error
    return found


def _latent(stored: np.ndarray, name: str, stream: Stream, shift: float | tuple[float, ...]) -> np.ndarray:
    x = np.asarray(stored)
    if x.dtype.kind != "f" and x.dtype.name != "bfloat16":
        raise Unusable("wrong type", f"{name} holds {x.dtype}")
    x = np.moveaxis(x, 0, -1) if stream.channels_first else x
    free = int(len(stream.shape) != 3)  # clips may be shorter or longer
    if x.shape[free:] != stream.shape[free:] or not x.size:
        raise Unusable("wrong shape", f"{name} has shape {x.shape}, not {stream.shape} (channels last)")
    with np.errstate(over="ignore", invalid="ignore"):
        x = ((x.astype(np.float32) - np.float32(shift)) * np.float32(stream.scale)).astype(np.float16)
    if not np.isfinite(x).all():
        raise Unusable("not finite", f"{name} holds NaN, infinity or numbers beyond float16")
    return np.ascontiguousarray(x)
