"""Trees of frozen dataclasses as JSON and back, every field checked against its type; hashes of JSON data."""

import dataclasses
import hashlib
import json
import types
import typing
from typing import Any, Literal

from selfflow.errors import UserError, did_you_mean


def to_json(value: Any) -> Any:
    """Returns a tree of dataclasses, dicts, tuples and plain values as JSON data."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_json(v) for key, v in value.items()}
    return [to_json(v) for v in value] if isinstance(value, tuple | list) else value


def from_json(data: Any, kind: Any, where: str, name: str = "") -> Any:
    """Returns the inverse of `to_json`, which checks every field against its type.

    Args:
      data: JSON data.
      kind: the type to read.
      where: the file it comes from, for errors.
      name: dotted name of the field, for errors.

    Raises:
      UserError: naming the file, the field, its value and the expected type.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    error = UserError(f"{where}: {_field(kind, name)} is {data!r}, expected {_type_name(kind)}")
    if origin in (typing.Union, types.UnionType):
        return from_json(data, _union_member(data, args, error), where, name)
    if dataclasses.is_dataclass(kind):
        if not isinstance(data, dict):
            raise error
        return _read_dataclass(data, kind, where, name)
    if origin is Literal:
        if data not in args:
            raise error
        return data
    if origin is dict:
        if not isinstance(data, dict):
            raise error
        return {key: from_json(value, args[1], where, f"{name}.{key}") for key, value in data.items()}
    if origin is tuple:
        if not isinstance(data, list):
            raise error
        # tuple[X, ...] has any length, tuple[X, Y] that of its arguments.
        kinds = args[:1] * len(data) if len(args) == 2 and args[1] is Ellipsis else args
        if len(kinds) != len(data):
            raise error
        return tuple(from_json(value, k, where, f"{name}[{i}]") for i, (value, k) in enumerate(zip(data, kinds)))
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    # bool is a subclass of int.
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise error
    return data


def _read_dataclass(data: dict[str, Any], kind: type, where: str, name: str) -> Any:
    hints = typing.get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    prefix = f"{name}." if name else ""
    for key in data:
        if key not in known:
            raise UserError(f"{where}: unknown field {prefix}{key}; {did_you_mean(key, known)}")
    values = {key: from_json(value, hints[key], where, f"{prefix}{key}") for key, value in data.items()}
    try:
        return kind(**values)
    except TypeError as error:  # a field without a default is missing
        raise UserError(f"{where}: {_field(kind, name)}: {error}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _union_member(data: Any, members: tuple, error: UserError) -> Any:
    """Returns the member of a union that JSON data belongs to: a dataclass by its field `kind`, None, or the one other
    type."""
    if isinstance(data, dict):
        for member in members:
            if dataclasses.is_dataclass(member):
                kinds = typing.get_args(typing.get_type_hints(member).get("kind"))
                if data.get("kind") in kinds:
                    return member
        raise error
    if data is None and types.NoneType in members:
        return types.NoneType
    plain = [member for member in members if member is not types.NoneType and not dataclasses.is_dataclass(member)]
    if len(plain) != 1:
        raise error
    return plain[0]


def _field(kind: Any, name: str) -> str:
    """Name of a field in messages; the root has none, and is called by its type."""
    return name or f"the {_type_name(kind).lower()}"


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join("none" if a is types.NoneType else _type_name(a) for a in typing.get_args(kind))
    return kind.__name__ if isinstance(kind, type) else str(kind)


def dataclasses_in(kind: Any) -> set[type]:
    """Returns all dataclasses that occur in a type, itself included."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        parts, classes = [hints[field.name] for field in dataclasses.fields(kind)], {kind}
    else:
        parts, classes = typing.get_args(kind), set()
    for part in parts:
        classes |= dataclasses_in(part)
    return classes


def digest(value: Any, length: int = 16) -> str:
    """Returns the first hexadecimal digits of the SHA-256 of JSON data.

    Args:
      value: JSON data, in which the order of keys makes no difference; or text, which is hashed as UTF-8.
      length: number of digits; two values out of n are equal by chance with probability about n^2 / 2 / 16^length.
    """
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
