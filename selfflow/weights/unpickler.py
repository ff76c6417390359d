"""Pickles of tensors, read without executing anything that they name.

A pickle is a program: Python's unpickler imports the functions that it names and calls them. The subclass here accepts
the few names that torch writes for tensors, and resolves each to an inert substitute; any other name is
refused. Formats: Lib/pickletools.py of CPython, torch/_utils.py and torch/serialization.py of torch 2.
"""

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class Refused(ValueError):
    """The pickle refers to more than tensors and plain data; the message names the object."""


class Damaged(ValueError):
    """The bytes are not a complete pickle."""


class Storage(NamedTuple):
    """Elements that are stored outside the pickle.

    Attributes:
      key: name of the storage in the file.
      dtype: type of the elements.
      elements: number of elements.
    """

    key: str
    dtype: np.dtype
    elements: int


class Tensor(NamedTuple):
    """A view of a storage.

    Attributes:
      storage: storage of the elements.
      offset: index of the first element.
      shape: shape of the tensor.
      strides: strides in elements.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def unpickle(file: IO[bytes]) -> Any:
    """Reads the pickle at the position of a file, and leaves the position behind it.

    Args:
      file: a binary file that can seek.

    Returns:
      Plain data (numbers, strings, lists, tuples and dicts), with `Tensor` for each tensor.

    Raises:
      Refused: if the pickle names a function or class that is not one of `_NAMES`, or has an instruction that such
        files do not need.
      Damaged: if the pickle is cut short, or its instructions do not fit together.
    """
    start = file.tell()
    try:
        _check_instructions(file)
        end = file.tell()
        file.seek(start)
        return _TensorUnpickler(io.BytesIO(file.read(end - start)), encoding="utf-8").load()
    except Refused:
        raise
    except _NOT_A_PICKLE as error:
        raise Damaged(f"{type(error).__name__}: {error}") from None


# Exceptions of pickletools and of the unpickler for such bytes.
_NOT_A_PICKLE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    LookupError,
    ArithmeticError,
    TypeError,
    AttributeError,
)
# Everything that plain data and tensors need. Left out are sets, byte arrays, out-of-band buffers, the registry of
# extension codes, which would bypass `find_class`, and the old ways to make an instance.
_INSTRUCTIONS = frozenset(
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET "
    "GLOBAL STACK_GLOBAL PERSID BINPERSID REDUCE NEWOBJ BUILD".split()
)
_PUT = ("PUT", "BINPUT", "LONG_BINPUT")
_GET = ("GET", "BINGET", "LONG_BINGET")
_DEEPEST = 8  # tuples in tuples; the arguments of a tensor have two


def _check_instructions(file: IO[bytes]) -> None:
    """Checks what `find_class` never sees, on decoded instructions of which none is executed.

    The unpickler allocates an array as long as the largest index of the memo, and hashes the keys of dicts: C code
    that recurses without a limit, and takes exponential time if tuples share their elements. pickletools has already
    compared the lengths of strings with the bytes that follow.
    """
    # For each object on the stack, how deep tuples are nested in it; lists and dicts are never hashed and count as 0.
    depths: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    start = file.tell()
    for opcode, argument, position in pickletools.genops(file):
        name = opcode.name
        if name not in _INSTRUCTIONS:
            operand = "" if argument is None else f" {argument}"
            raise Refused(_printable(f"the instruction {name}{operand}"))
        if name == "MARK":
            marks.append(len(depths))
        elif name in _PUT:
            if int(argument) > position - start:
                raise ValueError(f"index {argument} of the memo")
            memo[int(argument)] = depths[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = depths[-1]
        elif name in _GET:
            depths.append(memo[int(argument)])
        else:
            operands = opcode.stack_before
            if pickletools.markobject in operands:
                bottom = marks.pop() - operands.index(pickletools.markobject)
            else:
                bottom = len(depths) - len(operands)
            if bottom < 0:
                raise ValueError(f"too few values for {name}")
            depth = 1 + max(depths[bottom:], default=0) if name.startswith("TUPLE") else 0
            if depth > _DEEPEST:
                raise Refused(f"tuples nested more than {_DEEPEST} deep")
            depths[bottom:] = [depth] * len(opcode.stack_after)


class _TensorUnpickler(pickle.Unpickler):
    """Resolves the names in `_NAMES`, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[f"{module}.{name}"]
        except KeyError:
            raise Refused(_printable(f"{module}.{name}")) from None

    def persistent_load(self, pid: Any) -> Storage:
        """Returns a storage from its description, ("storage", type, key, device, number of elements).

        Files from before torch 1.6 have a sixth part for views into storages, which torch has not made since 0.4.
        """
        if not isinstance(pid, tuple) or len(pid) not in (5, 6):
            raise ValueError("the description of a storage does not have five parts")
        kind, storage_type, key, _, elements, *view = pid
        if view not in ([], [None]):
            raise Refused("a view into a storage")
        if kind != "storage" or not isinstance(storage_type, _StorageType) or not isinstance(key, str):
            raise ValueError("a storage without type or key")
        _check_counts(elements)
        return Storage(key, storage_type.dtype, elements)


# The instruction BUILD sets attributes of any object that it finds, of the functions and classes of this module, too.
# Named tuples have no attribute that can be set, and an `_OrderedDict` discards what is to be set.
class _StorageType(NamedTuple):
    dtype: np.dtype


class _Function(NamedTuple):
    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class _OrderedDict(dict):
    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Discards the version numbers that `state_dict()` attaches."""


def _ordered_dict(*arguments: Any) -> _OrderedDict:
    """Python 3 writes an empty dict and then its items; Python 2 wrote one list of [key, value] lists."""
    items = _OrderedDict()
    if not arguments:
        return items
    (pairs,) = arguments
    if not isinstance(pairs, list):
        raise Refused("collections.OrderedDict of something else than pairs")
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise Refused("collections.OrderedDict of something else than pairs")
        if not isinstance(pair[0], str):
            raise ValueError("a key that is not a string")
        items[pair[0]] = pair[1]
    return items


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    """Returns a tensor; ignores the further arguments, `requires_grad` and the hooks."""
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ValueError("a tensor without storage, shape or strides")
    if len(shape) != len(strides):
        raise ValueError("a tensor with more strides than axes, or fewer")
    _check_counts(offset, *shape, *strides)
    return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise ValueError("a parameter without a tensor")
    return tensor


def _check_counts(*numbers: Any) -> None:
    for number in numbers:
        if not isinstance(number, int) or number < 0:
            raise ValueError("a size, a stride or an offset that is not a whole number from 0")


def _printable(name: str) -> str:
    """Returns a name from a file in a form that is safe to print on a terminal, at most 200 characters."""
    return name[:200] if name.isprintable() else ascii(name)[:200]


_NAMES = {
    "torch.FloatStorage": _StorageType(np.dtype("<f4")),
    "torch.HalfStorage": _StorageType(np.dtype("<f2")),
    "torch.BFloat16Storage": _StorageType(np.dtype(jnp.bfloat16)),
    "torch.DoubleStorage": _StorageType(np.dtype("<f8")),
    "torch.LongStorage": _StorageType(np.dtype("<i8")),
    "torch.IntStorage": _StorageType(np.dtype("<i4")),
    "torch.ShortStorage": _StorageType(np.dtype("<i2")),
    "torch.CharStorage": _StorageType(np.dtype("i1")),
    "torch.ByteStorage": _StorageType(np.dtype("u1")),
    "torch.BoolStorage": _StorageType(np.dtype("?")),
    "collections.OrderedDict": _Function(_ordered_dict),
    "torch._utils._rebuild_tensor": _Function(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _Function(_rebuild_tensor),
    "torch._utils._rebuild_parameter": _Function(_rebuild_parameter),
}
