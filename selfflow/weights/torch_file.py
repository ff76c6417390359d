"""Files of torch.save, read without torch and without executing anything in them.

Since torch 1.6 such a file is an uncompressed zip: `NAME/data.pkl` describes containers and tensors, `NAME/data/KEY`
holds the elements of a storage, `NAME/byteorder` the byte order. Before, it was a sequence of pickles (a magic number,
a version, the machine, containers and tensors, the keys of storages), followed for each key by the number of elements
and the elements. Format: torch/serialization.py of torch 2.
"""

import io
import math
import mmap
import struct
import zipfile
from pathlib import Path

import numpy as np

from selfflow.errors import UserError
from selfflow.weights.unpickler import Damaged, Refused, Storage, Tensor, unpickle

_MAGIC = 0x1950A86A20F9469CFC6C
_LARGEST_PICKLE = 64 << 20  # bytes; that of a model of a thousand blocks has a few megabytes


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors under `model` or `state_dict` if the file has one of these keys, else all of them.

    Args:
      path: a file of torch.save, a zip or in the format from before torch 1.6.

    Returns:
      {key: read-only array}, in the types of the file.

    Raises:
      UserError: if the file is of another format, is damaged or cut short, names anything but tensors and plain
        containers, or has a value that is not a tensor.
    """
    not_torch = f"{path} is not a file of torch.save: give the .pt file, or weights as .safetensors"
    try:
        with path.open("rb") as file:
            start = file.read(4)
            if start[:1] == b"\x80":
                # Reading beyond the end of a map allocates nothing, for any length that the pickles state.
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    if unpickle(mapped) != _MAGIC:
                        raise UserError(not_torch)
                    return _LegacyFile(path, mapped).tensors()
        if start[:2] != b"PK":
            raise UserError(not_torch)
        with zipfile.ZipFile(path) as archive:
            return _ZipFile(path, archive).tensors()
    except Refused as error:
        raise UserError(
            f"{path} refers to {error}; only tensors and plain containers are read from a pickle: save "
            "model.state_dict() alone, or as safetensors"
        ) from None
    # RuntimeError (NotImplementedError is one): the archive is encrypted, or compressed in a way torch never uses.
    except (Damaged, zipfile.BadZipFile, EOFError, struct.error, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); copy it again") from None


class _LegacyFile:
    """The format from before torch 1.6, positioned behind the magic number."""

    def __init__(self, path: Path, file: mmap.mmap):
        self.path, self.file = path, file

    def tensors(self) -> dict[str, np.ndarray]:
        unpickle(self.file)  # a version that never changed
        machine = unpickle(self.file)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise UserError(f"{self.path} was not saved on a little-endian machine; save it again on one")
        tensors = _select_tensors(self.path, unpickle(self.file))
        keys = unpickle(self.file)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise ValueError("the keys of storages are not a list of strings")

        dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
        elements = {}
        for key in keys:
            if key not in dtypes:
                raise ValueError("a storage that no tensor uses")
            elements[key] = self._read_elements(dtypes[key])
        arrays = {}
        for name, tensor in tensors.items():
            if tensor.storage.key not in elements:
                raise UserError(f"{self.path} lacks the elements of {name}; copy it again")
            arrays[name] = _view(self.path, name, tensor, elements[tensor.storage.key])
        return arrays

    def _read_elements(self, dtype: np.dtype) -> np.ndarray:
        (count,) = struct.unpack("<q", self.file.read(8))
        size = count * dtype.itemsize
        if not 0 <= size <= self.file.size() - self.file.tell():
            raise ValueError("the file ends early")
        return np.frombuffer(self.file.read(size), dtype)


class _ZipFile:
    """The format since torch 1.6."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self.path, self.archive = path, archive
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"{path} has {len(pickles)} entries data.pkl, expected one of torch.save: copy it again")
        self.prefix = pickles[0].removesuffix("data.pkl")

    def tensors(self) -> dict[str, np.ndarray]:
        if self.prefix + "byteorder" in self.archive.namelist():
            order = self._read_entry("byteorder", 16)
            if order != b"little":
                raise UserError(f"{self.path} has byte order {order!r}; save it again on a little-endian machine")
        program = self._read_entry("data.pkl", _LARGEST_PICKLE)
        elements: dict[str, np.ndarray] = {}
        arrays = {}
        for name, tensor in _select_tensors(self.path, unpickle(io.BytesIO(program))).items():
            key = tensor.storage.key
            if key not in elements:
                elements[key] = self._read_elements(name, tensor.storage)
            arrays[name] = _view(self.path, name, tensor, elements[key])
        return arrays

    def _read_elements(self, name: str, storage: Storage) -> np.ndarray:
        expected = storage.elements * storage.dtype.itemsize
        entry = f"data/{storage.key}"
        if self.prefix + entry not in self.archive.namelist():
            raise UserError(f"{self.path} lacks the elements of {name}; copy it again")
        size = self.archive.getinfo(self.prefix + entry).file_size
        if size != expected:
            raise UserError(f"{self.path}: {name} has {size} bytes of elements, expected {expected}; copy it again")
        return np.frombuffer(self._read_entry(entry, expected), storage.dtype)

    def _read_entry(self, name: str, most: int) -> bytes:
        info = self.archive.getinfo(self.prefix + name)
        # torch.save does not compress, so that no entry can be larger than the file.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise UserError(f"{self.path}: {info.filename} is compressed, which torch.save never does; save it again")
        if info.file_size > most:
            raise UserError(
                f"{self.path}: {info.filename} has {info.file_size} bytes, expected at most {most}; save it again"
            )
        if info.header_offset + info.file_size > self.path.stat().st_size:
            raise zipfile.BadZipFile(f"{info.filename} ends early")
        return self.archive.read(info)


def _select_tensors(path: Path, content: object) -> dict[str, Tensor]:
    """Returns the state dict in the content of a file."""
    for name in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} has no state dict: save model.state_dict()")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path}: {key} is of type {type(value).__name__}, expected a tensor: save model.state_dict() alone, "
                "or under the key model"
            )
    return content


def _view(path: Path, name: str, tensor: Tensor, elements: np.ndarray) -> np.ndarray:
    storage, offset, shape, strides = tensor
    if (len(elements), elements.dtype) != (storage.elements, storage.dtype):
        raise UserError(
            f"{path}: {name} and another tensor disagree about the elements of their storage; copy it again"
        )
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
    if math.prod(shape) > len(elements) > last:
        # Such a view could have any size.
        raise UserError(f"{path}: {name} of shape {shape} repeats its elements; save a .contiguous() tensor")
    if 0 not in shape and last >= len(elements):
        raise UserError(
            f"{path}: {name} of shape {shape} reaches beyond the {len(elements)} elements of its storage; copy it again"
        )
    byte_strides = [n * storage.dtype.itemsize for n in strides]
    return np.lib.stride_tricks.as_strided(elements[offset:], shape, byte_strides, writeable=False)
