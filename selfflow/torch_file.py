"""Weights that torch.save wrote, read without torch and without running what is in the file.

Since torch 1.6 the file is an uncompressed zip: `NAME/data.pkl` describes containers and tensors, `NAME/data/KEY`
holds the elements of a storage, `NAME/byteorder` says which way. Before, it was a row of pickles (a magic number, a
version, the machine, containers and tensors, the keys of storages), and then, key by key, the number of a storage's
elements and the elements. Format: torch/serialization.py and torch/_utils.py of torch 2.
"""

import math
import mmap
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
_MAGIC = 0x1950A86A20F9469CFC6C
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
      path: what torch.save wrote, as a zip or in the format before torch 1.6.

    Returns:
      {key: array}, of the types that the file has.

    Raises:
      UserError: if the file is not of that format, is damaged or cut short, asks for anything but tensors and plain
        containers, or holds something else among the tensors.
    """
    damaged = f"{path} is damaged or cut short"
    try:
        with path.open("rb") as file:
            start = file.read(4)
            if start[:1] == b"\x80":
                # Of a map no more is read than there is, whatever lengths the pickles tell.
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    return _Rows(path, mapped).tensors()
        if start[:2] != b"PK":
            raise UserError(f"{path} is no file of torch.save: give the .pt file, or weights as .safetensors")
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise UserError(
                    f"{path} holds {len(pickles)} times data.pkl, not once: it is no file of torch.save; copy it again"
                )
            return _Zip(path, archive, pickles[0].removesuffix("data.pkl")).tensors()
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


def _described(path: Path, data: bytes | mmap.mmap) -> dict[str, _Tensor]:
    known = {f"torch.{name}": dtype for name, dtype in _DTYPES.items()}
    known |= {
        "collections.OrderedDict": _ordered,
        "torch._utils._rebuild_tensor": _rebuild,
        "torch._utils._rebuild_tensor_v2": _rebuild,
        "torch._utils._rebuild_parameter": lambda tensor, *more: tensor,
    }
    tree = unpickle(data, known, _storage)
    for name in ("model", "state_dict"):
        if isinstance(tree, dict) and isinstance(tree.get(name), dict):
            tree = tree[name]
            break
    if not isinstance(tree, dict) or not tree:
        raise UserError(f"{path} holds no weights by name: save model.state_dict()")
    for key, value in tree.items():
        if not isinstance(key, str) or not isinstance(value, _Tensor):
            raise UserError(
                f"{path}: {key} is no tensor but {type(value).__name__}: save model.state_dict() alone, or "
                "under the key model"
            )
    return tree


def _view(path: Path, key: str, tensor: _Tensor, elements: np.ndarray) -> np.ndarray:
    storage, offset, shape, strides = tensor
    if (len(elements), elements.dtype) != (storage.elements, storage.dtype):
        raise UserError(f"{path}: {key} and another tensor disagree over their elements; copy the file again")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
    if math.prod(shape) > len(elements) > last:
        # Such a view could be of any size.
        raise UserError(f"{path}: {key} of shape {shape} repeats its elements; save it as it is, .contiguous()")
    if 0 not in shape and last >= len(elements):
        raise UserError(
            f"{path}: {key} of shape {shape} reaches beyond the {len(elements)} elements stored for it; "
            "copy the file again"
        )
    strides = [n * storage.dtype.itemsize for n in strides]
    return np.lib.stride_tricks.as_strided(elements[offset:], shape, strides, writeable=False)


class _Rows:
    """The format before torch 1.6."""

    def __init__(self, path: Path, file: mmap.mmap):
        self.path, self.file = path, file

    def tensors(self) -> dict[str, np.ndarray]:
        self.file.seek(0)
        nothing = lambda said: None
        if unpickle(self.file, {}, nothing) != _MAGIC:
            raise UserError(f"{self.path} is no file of torch.save: give the .pt file, or weights as .safetensors")
        unpickle(self.file, {}, nothing)  # a version that never changed
        machine = unpickle(self.file, {}, nothing)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise UserError(f"{self.path} is not of a little-endian machine; save it again on one")
        tree = _described(self.path, self.file)
        keys = unpickle(self.file, {}, nothing)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise ValueError("a list of storages that is none")
        dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tree.values()}
        storages = {key: self._elements(key, dtypes) for key in keys}
        for key, tensor in tree.items():
            if tensor.storage.key not in storages:
                raise UserError(f"{self.path} lacks the elements of {key}; copy it again")
        return {key: _view(self.path, key, tensor, storages[tensor.storage.key]) for key, tensor in tree.items()}

    def _elements(self, key: str, dtypes: dict[str, np.dtype]) -> np.ndarray:
        if key not in dtypes:
            raise ValueError("a storage that no tensor uses")
        (count,) = struct.unpack("<q", self.file.read(8))
        size = count * dtypes[key].itemsize
        if not 0 <= size <= self.file.size() - self.file.tell():
            raise ValueError("it ends early")
        return np.frombuffer(self.file.read(size), dtypes[key])


class _Zip:
    def __init__(self, path: Path, archive: zipfile.ZipFile, prefix: str):
        self.path, self.archive, self.prefix = path, archive, prefix
        self.storages: dict[str, np.ndarray] = {}

    def tensors(self) -> dict[str, np.ndarray]:
        if self.prefix + "byteorder" in self.archive.namelist():
            if (order := self._entry("byteorder", 16)) != b"little":
                raise UserError(f"{self.path} has byte order {order!r}; save it again on a little-endian machine")
        tree = _described(self.path, self._entry("data.pkl", _LARGEST_PICKLE))
        return {key: self._array(key, tensor) for key, tensor in tree.items()}

    def _array(self, key: str, tensor: _Tensor) -> np.ndarray:
        if tensor.storage.key not in self.storages:
            self.storages[tensor.storage.key] = self._elements(key, tensor.storage)
        return _view(self.path, key, tensor, self.storages[tensor.storage.key])

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


def _ordered(*items: Any) -> dict:
    # Python 3 writes an empty one and fills it, Python 2 wrote [[key, value], ...].
    if not items:
        return {}
    (pairs,) = items
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise Refused("collections.OrderedDict of something else than pairs")
    if not all(isinstance(key, str) for key, _ in pairs):
        raise ValueError("a key that is no string")
    return dict(pairs)


def _storage(said: Any) -> _Storage:
    # Before torch 1.6 a sixth told of views into storages, which torch has not made since 0.4.
    kind, dtype, key, _, elements, *view = said
    if view not in ([], [None]):
        raise Refused("a view into a storage")
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
