"""Trees of frozen dataclasses as JSON and back, every field checked against its type; hashes of JSON data."""

import dataclasses
import hashlib
import json
import types
import typing
from typing import Any, Literal

from selfflow.errors import UserError, did_you_mean


def to_json(value: Any) -> Any:
    """A tree of dataclasses, dicts, tuples and plain values as JSON data."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_json(v) for key, v in value.items()}
    return [to_json(v) for v in value] if isinstance(value, tuple | list) else value


def from_json(data: Any, kind: Any, where: str, name: str = "") -> Any:
    """Reads what `to_json` wrote, and checks every field against its type.

    Args:
      data: JSON data.
      kind: the type to read.
      where: the file it comes from, for errors.
      name: dotted name of the field, for errors.

    Raises:
      UserError: naming the file, the field, what stands there and what should.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    whole = name or f"the {_type_name(kind).lower()}"
    wrong = UserError(f"{where}: {whole} is {data!r}, expected {_type_name(kind)}")
    if origin in (typing.Union, types.UnionType):
        return from_json(data, _member(data, args, wrong), where, name)
    if dataclasses.is_dataclass(kind):
        if not isinstance(data, dict):
            raise wrong
        hints = typing.get_type_hints(kind)
        known = [f.name for f in dataclasses.fields(kind)]
        for key in data:
            if key not in known:
                field = f"{name}.{key}".lstrip(".")
                raise UserError(f"{where}: unknown field {field}; {did_you_mean(key, known)}")
        values = {k: from_json(v, hints[k], where, f"{name}.{k}".lstrip(".")) for k, v in data.items()}
        try:
            return kind(**values)
        except TypeError as error:
            raise UserError(f"{where}: {whole}: {error}") from error
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    if origin is Literal:
        if data not in args:
            raise wrong
        return data
    if origin is dict:
        if not isinstance(data, dict):
            raise wrong
        return {k: from_json(v, args[1], where, f"{name}.{k}") for k, v in data.items()}
    if origin is tuple:
        each = args[:1] * len(data) if len(args) == 2 and args[1] is Ellipsis and isinstance(data, list) else args
        if not isinstance(data, list) or len(each) != len(data):
            raise wrong
        return tuple(from_json(v, k, where, f"{name}[{i}]") for i, (v, k) in enumerate(zip(data, each)))
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind is types.NoneType:
        kind = type(None)
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise wrong
    return data


def _member(data: Any, members: tuple, wrong: UserError) -> Any:
    """The member of a union that JSON data belongs to, by `kind` or by type."""
    if isinstance(data, dict):
        for member in members:
            kinds = (
                typing.get_args(typing.get_type_hints(member).get("kind")) if dataclasses.is_dataclass(member) else ()
            )
            if data.get("kind") in kinds:
                return member
        raise wrong
    if data is None and types.NoneType in members:
        return types.NoneType
    plain = [m for m in members if m is not types.NoneType and not dataclasses.is_dataclass(m)]
    if len(plain) != 1:
        raise wrong
    return plain[0]


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join("none" if a is types.NoneType else _type_name(a) for a in typing.get_args(kind))
    return kind.__name__ if isinstance(kind, type) else str(kind)


def dataclasses_in(kind: Any) -> set[type]:
    """All dataclasses that a type is built of, itself included."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return {kind}.union(*(dataclasses_in(hints[f.name]) for f in dataclasses.fields(kind)))
    return set().union(*(dataclasses_in(a) for a in typing.get_args(kind)))


def digest(value: Any, length: int = 16) -> str:
    """The first hexadecimal digits of the SHA-256 of JSON data.

    Args:
      value: JSON data, in which the order of keys makes no difference; or text, which is hashed as UTF-8.
      length: number of digits; two values out of n are equal by chance with probability about n^2 / 2 / 16^length.
    """
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
