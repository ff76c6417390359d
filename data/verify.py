"""Reads all of a built data set and says what is wrong with it; `verify_latents` does so for what was encoded of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from selfflow.data.built import BuiltDataset, read_deleted
from selfflow.data.shards import BadRecord
from selfflow.data.stored import INFO, leftovers, read_splits
from selfflow.errors import UserError
from selfflow.media import medium_of

OF_ANY_LENGTH = ("tfds", "latent_files")


@dataclass(frozen=True)
class Kind:
    """A kind of problem and what to do about it, where {folder} is that of the data set or of the latents.

    A note is no problem: it is only told.
    """

    name: str
    remedy: str
    note: bool = False


_AGAIN = "remove {folder} and run `selfflow data build`; latents that were made of it are then made anew, too"
DESCRIPTION = Kind("damaged description", _AGAIN)
UNREADABLE = Kind("unreadable records", _AGAIN)
SHAPE = Kind("wrong shapes or types", _AGAIN)
NOT_FINITE = Kind("values that are not finite", _AGAIN)
NO_ID = Kind("records without an id", _AGAIN)
DUPLICATE = Kind("ids that stand twice", "make the ids of the source differ, then " + _AGAIN)
EMPTY = Kind("empty splits", _AGAIN)
UNFINISHED_DELETION = Kind("unfinished deletion", "run `selfflow data delete` again with the same file of ids")
LEFTOVER = Kind("leftovers of interrupted commands", "they are read by nothing and may be deleted", note=True)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
      kind: what sort of thing, with its remedy.
      file: name of the file.
      record: id of the record, or its place where the id cannot be known; "" where it is about the whole file.
      detail: what exactly.
    """

    kind: Kind
    file: str
    record: str
    detail: str

    def __str__(self) -> str:
        return f"{self.file}{f', {self.record}' if self.record else ''}: {self.detail}"


@dataclass
class Contents:
    """What latents must agree with: per split the ids in order (None where a record cannot be read), and numbers.

    Attributes:
      ids: by split.
      rows: by split; whole numbers of each record that are its labels, and `quality`.
    """

    ids: dict[str, list[str | None]] = field(default_factory=dict)
    rows: dict[str, list[dict[str, float]]] = field(default_factory=dict)


def verify_data(
    built: BuiltDataset, contents: Contents | None = None, advance: Callable[[], None] = lambda: None
) -> list[Problem]:
    """Reads every record of a data set.

    Args:
      built: the data set.
      contents: filled with what `verify_latents` needs.
      advance: called after each record.

    Returns:
      All problems and notes, by file and record.
    """
    contents = Contents() if contents is None else contents
    problems: list[Problem] = []
    try:
        stored = read_splits(built.folder)
        shapes = _shapes(built)
        deleted = read_deleted(built.folder) or {"deleted": []}
    except UserError as error:
        return [Problem(DESCRIPTION, INFO, "", str(error))]
    for entry in deleted["deleted"]:
        if entry.get("unfinished"):
            detail = f"the deletion of {entry['count']} samples, begun at {entry['when']}, was interrupted"
            problems.append(Problem(UNFINISHED_DELETION, "deleted.json", "", detail))
    seen: dict[str, str] = {}
    for name, split in stored.items():
        if not sum(split.lengths):
            problems.append(Problem(EMPTY, INFO, "", f"the split {name} has no record"))
            continue
        try:
            problems += _verify_split(built, name, shapes, seen, contents, advance)
        except UserError as error:  # what all records share, such as features.json
            problems.append(Problem(DESCRIPTION, "features.json", "", str(error)))
    return problems + [
        Problem(LEFTOVER, str(p.relative_to(built.folder.parent)), "", "") for p in leftovers(built.folder)
    ]


def _shapes(built: BuiltDataset) -> dict[str, tuple[int, ...]]:
    if built.settings.kind == "latent_files":
        return {m: tuple(told["shape"]) for m, told in built.metadata["latents"].items()}
    return built.settings.media_shapes(*([built.folder] if built.settings.kind == "tfds" else []))


def _verify_split(
    built: BuiltDataset, split: str, shapes: dict[str, tuple], seen: dict[str, str], contents: Contents, advance
) -> list[Problem]:
    problems, bad = [], Unreadable(UNREADABLE)
    records = built.records(split)
    ids, rows = contents.ids.setdefault(split, []), contents.rows.setdefault(split, [])
    for i in range(len(records)):
        try:
            record = records[i]
        except BadRecord as error:
            bad.add(error, i, f"{split} record {i}")
            ids.append(None)
            rows.append({})
        else:
            shard, name = records.shard_of(i), str(record.get("id") or "")
            ids.append(name)
            rows.append(numbers_of(record))
            if not name:
                problems.append(Problem(NO_ID, shard, f"{split} record {i}", "it has no id"))
            elif name in seen:
                problems.append(Problem(DUPLICATE, shard, name, f"it stands in {seen[name]}, too"))
            seen.setdefault(name, shard)
            for kind, detail in _faults(record, shapes, built.settings.kind):
                problems.append(Problem(kind, shard, name or f"{split} record {i}", detail))
        advance()
    return bad.problems() + problems


def numbers_of(record: dict[str, Any]) -> dict[str, float]:
    """The labels of a record, as an index of latents keeps them, and its quality."""
    labels = {
        name: int(value)
        for name, value in record.items()
        if np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.integer)
    }
    return labels | {"quality": float(record.get("quality", np.nan))}


class Unreadable:
    """Gathers records that cannot be read: those of one file and one reason are one problem."""

    def __init__(self, kind: Kind):
        self._kind = kind
        self._found: dict[tuple[str, str], list[tuple[int, str]]] = {}

    def add(self, error: BadRecord, i: int, name: str) -> None:
        reason = error.reason.replace(f"record {i} ", "")
        self._found.setdefault((error.shard, reason), []).append((i, name))

    def problems(self) -> list[Problem]:
        listed = []
        for (shard, reason), records in self._found.items():
            (first, name), (last, other) = records[0], records[-1]
            if len(records) > 1:
                run = f"{len(records)} records from {name} to {other}"
                name = run if last - first + 1 == len(records) else f"{len(records)} records, {name} and others"
            listed.append(Problem(self._kind, shard, name, reason))
        return listed


def _faults(record: dict[str, Any], shapes: dict[str, tuple[int, ...]], kind: str) -> Iterator[tuple[Kind, str]]:
    """Whatever is wrong with one record of a kind of data set."""
    present = record.get("present")
    if not isinstance(present, dict) or set(present) != set(shapes):
        yield SHAPE, f"`present` is {present!r}, not a yes or no for each of {', '.join(shapes)}"
        return
    for m, shape in shapes.items():
        media = record.get(m)
        if not present[m]:
            continue
        free = int(kind in OF_ANY_LENGTH and medium_of(m).has_time)
        expected = np.float16 if kind == "latent_files" else medium_of(m).dtype
        if not isinstance(media, np.ndarray) or media.ndim != len(shape) or media.shape[free:] != shape[free:]:
            yield SHAPE, f"{m} has shape {getattr(media, 'shape', None)}, not {shape}"
        elif not media.size:
            yield SHAPE, f"{m} is present and empty"
        elif media.dtype != expected:
            yield SHAPE, f"{m} holds {media.dtype}, not {np.dtype(expected)}"
    for name, value in _leaves(record):
        if np.asarray(value).dtype.kind == "f" and not np.isfinite(value).all():
            yield NOT_FINITE, f"{name} holds NaN or infinity"


def _leaves(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
