"""Pickles of plain data, read without the means to run anything.

A pickle is a program. Python's own unpickler imports what it names and calls it; this one knows only the instructions
that build numbers, strings, lists, tuples and dicts, and calls nothing but the functions that its caller hands it.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any


class Refused(ValueError):
    """A pickle that asks for more than plain data; the message names what it asks for."""


class Damaged(ValueError):
    """Bytes that are no whole pickle."""


_VALUES = frozenset(
    "INT LONG LONG1 LONG4 BININT BININT1 BININT2 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "STRING SHORT_BINSTRING BINSTRING SHORT_BINBYTES BINBYTES BINBYTES8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS = {"EMPTY_DICT": dict, "EMPTY_LIST": list}


def unpickle(data: bytes | IO[bytes], known: Mapping[str, Any], persistent: Callable[[Any], Any]) -> Any:
    """The object that a pickle describes.

    Args:
      data: the pickle, of any protocol, or a file that is read to the end of the pickle that starts where it stands.
      known: what stands for the names that it may import, each "module.name"; those that are callable may be called.
      persistent: makes an object of what the pickle says lies outside it.

    Raises:
      Refused: at any other name and at any other instruction.
      Damaged: if the data is cut short or is no pickle.
    """
    try:
        return _Machine(known, persistent).run(data)
    except Refused:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from None


class _Machine:
    def __init__(self, known: Mapping[str, Any], persistent: Callable[[Any], Any]):
        self.known, self.persistent = known, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes | IO[bytes]) -> Any:
        # genops decodes instructions and executes none of them.
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise ValueError("no end")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _CONTAINERS:
            stack.append(_CONTAINERS[name]())
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            self.below.append(stack)
            self.stack = []
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[int(argument)])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [self._tuple(stack[-count:], count)]
        elif name in ("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS"):
            self._marked(name)
        elif name == "APPEND":
            value = stack.pop()
            _of(list, stack[-1]).append(value)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set(stack[-1], [key, value])
        elif name == "GLOBAL":
            stack.append(self._import(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(self._import(f"{_of(str, module)}.{_of(str, attribute)}"))
        elif name in ("BINPERSID", "PERSID"):
            stack.append(self.persistent(stack.pop() if name == "BINPERSID" else argument))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            # Only the names in `known` can put anything callable on the stack.
            stack.append(function(*_of(tuple, arguments)))
        elif name == "BUILD":
            # The state of an ordered dict holds version numbers, nothing of what is in it.
            stack.pop()
            _of(dict, stack[-1])
        elif name in ("INST", "EXT1", "EXT2", "EXT4"):
            raise Refused(_shown(f"{name} {argument}"))
        else:
            raise Refused(f"the instruction {name}")

    def _marked(self, name: str) -> None:
        items, self.stack = self.stack, self.below.pop()
        if name == "TUPLE":
            self.stack.append(tuple(items))
        elif name == "LIST":
            self.stack.append(items)
        elif name == "DICT":
            self.stack.append(_set({}, items))
        elif name == "APPENDS":
            _of(list, self.stack[-1]).extend(items)
        else:
            _set(self.stack[-1], items)

    def _tuple(self, items: list[Any], count: int) -> tuple:
        if len(items) != count:
            raise ValueError("too few values for a tuple")
        return tuple(items)

    def _import(self, name: str) -> Any:
        if name not in self.known:
            raise Refused(_shown(name))
        return self.known[name]


def _shown(name: str) -> str:
    # It comes from the file, and goes to a terminal.
    return name[:200] if name.isprintable() else ascii(name)[:200]


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} stands where a {kind.__name__} should")
    return value


def _set(target: Any, items: list[Any]) -> dict:
    _of(dict, target)
    if len(items) % 2:
        raise ValueError("a key without a value")
    for key, value in zip(items[::2], items[1::2]):
        # Nothing else: hashing a deeply nested key could exhaust the interpreter's own stack.
        target[_of((str, int, float), key)] = value
    return target
