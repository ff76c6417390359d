"""Weights that torch.save wrote, read without torch and without running what is in the file.

The file is an uncompressed zip: `NAME/data.pkl` describes containers and tensors, `NAME/data/KEY` holds the elements
of a storage, `NAME/byteorder` says which way. Format: torch/serialization.py and torch/_utils.py of torch 2.
"""

import math
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from selfflow.errors import UserError
from selfflow.pickled import Damaged, Refused, unpickle

_DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "DoubleStorage": np.dtype("<f8"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
# The pickle of a model of a thousand blocks has a few megabytes; its elements lie outside.
_LARGEST_PICKLE = 64 << 20


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    elements: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by their keys: those under `model`, under `state_dict`, or all, as the file has it.

    Args:
      path: what torch.save wrote, in the zip format that it has had since torch 1.6.

    Returns:
      {key: array}, of the types that the file has.

    Raises:
      UserError: if the file is not of that format, is damaged or cut short, asks for anything but tensors and plain
        containers, or holds something else among the tensors.
    """
    damaged = f"{path} is damaged or cut short"
    with path.open("rb") as file:
        start = file.read(4)
    if start[:1] == b"\x80":
        raise UserError(f"{path} has torch's format before 1.6: load it in torch and save it again, or as safetensors")
    if start[:2] != b"PK":
        raise UserError(f"{path} is no file of torch.save: give the .pt file, or weights as .safetensors")
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise UserError(
                    f"{path} holds {len(pickles)} times data.pkl, not once: it is no file of torch.save; copy it again"
                )
            return _Reader(path, archive, pickles[0].removesuffix("data.pkl")).tensors()
    except Refused as error:
        raise UserError(
            f"{path} asks for {error}; nothing but tensors and plain containers is read from a pickle: save "
            "model.state_dict() alone, or as safetensors"
        ) from None
    except Damaged as error:
        raise UserError(f"{damaged} ({error}); copy it again") from None
    # RuntimeError and NotImplementedError: an archive that is encrypted, or packed in ways that torch never uses.
    except (zipfile.BadZipFile, EOFError, struct.error, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"{damaged} ({error}); copy it again") from None


class _Reader:
    def __init__(self, path: Path, archive: zipfile.ZipFile, prefix: str):
        self.path, self.archive, self.prefix = path, archive, prefix
        self.storages: dict[str, np.ndarray] = {}

    def tensors(self) -> dict[str, np.ndarray]:
        if self.prefix + "byteorder" in self.archive.namelist():
            if (order := self._entry("byteorder", 16)) != b"little":
                raise UserError(f"{self.path} has byte order {order!r}; save it again on a little-endian machine")
        known = {f"torch.{name}": dtype for name, dtype in _DTYPES.items()}
        known |= {
            "collections.OrderedDict": _ordered,
            "torch._utils._rebuild_tensor_v2": _rebuild,
            "torch._utils._rebuild_parameter": lambda tensor, *more: tensor,
        }
        tree = unpickle(self._entry("data.pkl", _LARGEST_PICKLE), known, _storage)
        for name in ("model", "state_dict"):
            if isinstance(tree, dict) and isinstance(tree.get(name), dict):
                tree = tree[name]
                break
        if not isinstance(tree, dict) or not tree:
            raise UserError(f"{self.path} holds no weights by name: save model.state_dict()")
        for key, value in tree.items():
            if not isinstance(key, str) or not isinstance(value, _Tensor):
                raise UserError(
                    f"{self.path}: {key} is no tensor but {type(value).__name__}: save model.state_dict() alone, or "
                    "under the key model"
                )
        return {key: self._array(key, tensor) for key, tensor in tree.items()}

    def _array(self, key: str, tensor: _Tensor) -> np.ndarray:
        storage, offset, shape, strides = tensor
        if storage.key not in self.storages:
            self.storages[storage.key] = self._elements(key, storage)
        elements = self.storages[storage.key]
        if (len(elements), elements.dtype) != (storage.elements, storage.dtype):
            raise UserError(f"{self.path}: {key} and another tensor disagree over their elements; copy the file again")
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
        if math.prod(shape) > len(elements) > last:
            # Such a view could be of any size.
            raise UserError(
                f"{self.path}: {key} of shape {shape} repeats its elements; save it as it is, .contiguous()"
            )
        if 0 not in shape and last >= len(elements):
            raise UserError(
                f"{self.path}: {key} of shape {shape} reaches beyond the {len(elements)} elements stored for it; "
                "copy the file again"
            )
        strides = [n * storage.dtype.itemsize for n in strides]
        return np.lib.stride_tricks.as_strided(elements[offset:], shape, strides, writeable=False)

    def _elements(self, key: str, storage: _Storage) -> np.ndarray:
        size = storage.elements * storage.dtype.itemsize
        name = f"data/{storage.key}"
        if self.prefix + name not in self.archive.namelist():
            raise UserError(f"{self.path} lacks the elements of {key}; copy it again")
        there = self.archive.getinfo(self.prefix + name).file_size
        if there != size:
            raise UserError(
                f"{self.path}: {key} says it has {size} bytes of elements, and {there} are there; copy the file again"
            )
        return np.frombuffer(self._entry(name, size), storage.dtype)

    def _entry(self, name: str, most: int) -> bytes:
        info = self.archive.getinfo(self.prefix + name)
        # Torch stores and never packs: nothing can grow beyond the file's own size.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise UserError(f"{self.path}: {info.filename} is compressed, which torch.save never does; save it again")
        if info.file_size > most:
            raise UserError(f"{self.path}: {info.filename} has {info.file_size} bytes, more than it can; save it again")
        if info.header_offset + info.file_size > self.path.stat().st_size:
            raise zipfile.BadZipFile(f"{info.filename} ends early")
        return self.archive.read(info)


def _ordered(*pairs: Any) -> dict:
    # Torch writes an empty one and fills it.
    if pairs:
        raise Refused("collections.OrderedDict of a list")
    return {}


def _storage(said: Any) -> _Storage:
    kind, dtype, key, _, elements = said
    described = kind == "storage" and isinstance(dtype, np.dtype) and isinstance(key, str) and _counts(elements)
    if not described:
        raise ValueError("a storage without type, key or length")
    return _Storage(key, dtype, elements)


def _rebuild(storage: Any, offset: int, shape: tuple, strides: tuple, *more: Any) -> _Tensor:
    # More is whether it needs gradients, and hooks, which torch writes as an empty ordered dict.
    described = isinstance(storage, _Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)
    if not described or len(shape) != len(strides) or not _counts(offset, *shape, *strides):
        raise ValueError("a tensor without storage, shape or strides")
    return _Tensor(storage, offset, shape, strides)


def _counts(*numbers: Any) -> bool:
    return all(isinstance(n, int) and n >= 0 for n in numbers)
