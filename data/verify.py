"""Verifies a built data set by reading all of it; `selfflow.latents.verify` does the same for its latents."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from selfflow.data.built import DELETED, BuiltDataset, read_deleted
from selfflow.data.dataset import Dataset
from selfflow.data.shards import BadRecord
from selfflow.data.stored import INFO, leftovers, read_splits
from selfflow.errors import UserError
from selfflow.media import medium_of


@dataclass(frozen=True)
class Kind:
    """A kind of problem.

    Attributes:
      name: name of the kind.
      remedy: remedy, in which {folder} stands for that of the data set or of the latents.
      note: whether it is reported as a note only.
    """

    name: str
    remedy: str
    note: bool = False


_REBUILD = "remove {folder} and run `selfflow data build`; latents of this data set are then encoded again, too"
DESCRIPTION = Kind("damaged description", _REBUILD)
UNREADABLE = Kind("unreadable records", _REBUILD)
SHAPE = Kind("wrong shapes or types", _REBUILD)
NOT_FINITE = Kind("values that are not finite", _REBUILD)
NO_ID = Kind("records without an id", _REBUILD)
DUPLICATE = Kind("duplicate ids", "make the ids of the source distinct, then " + _REBUILD)
EMPTY = Kind("empty splits", _REBUILD)
UNFINISHED_DELETION = Kind("unfinished deletion", "run `selfflow data delete` again with the same file of ids")
LEFTOVER = Kind("leftovers of interrupted commands", "no command reads them: delete them", note=True)


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
      kind: kind with its remedy.
      file: name of the file.
      record: id of the record, or its position where the id is unknown; "" if the problem is about the whole file.
      detail: description of the problem.
    """

    kind: Kind
    file: str
    record: str
    detail: str

    def __str__(self) -> str:
        return f"{self.file}{f', {self.record}' if self.record else ''}: {self.detail}"


@dataclass
class Contents:
    """The reference that the latents of a data set are compared with.

    Attributes:
      ids: ids of all records in order, by split; None where a record cannot be read.
      rows: labels and `quality` of all records in order, by split; {} where a record cannot be read.
    """

    ids: dict[str, list[str | None]] = field(default_factory=dict)
    rows: dict[str, list[dict[str, float]]] = field(default_factory=dict)


def _no_progress() -> None:
    pass


def verify_data(
    built: BuiltDataset, contents: Contents | None = None, advance: Callable[[], None] = _no_progress
) -> list[Problem]:
    """Reads every record of a data set.

    Args:
      built: the data set.
      contents: records for `verify_latents`, filled in here.
      advance: called after each record.

    Returns:
      All problems and notes, by file and record.
    """
    contents = Contents() if contents is None else contents
    try:
        splits = read_splits(built.folder)
        shapes = _stored_shapes(built)
        deletions = read_deleted(built.folder)
    except UserError as error:
        return [Problem(DESCRIPTION, INFO, "", str(error))]
    problems: list[Problem] = []
    for entry in deletions["deleted"] if deletions else ():
        if entry.get("unfinished"):
            # Its records may exist in part: a second run of the command completes it.
            detail = f"the deletion of {entry['count']} samples, started at {entry['when']}, was interrupted"
            problems.append(Problem(UNFINISHED_DELETION, DELETED, "", detail))
    shard_by_id: dict[str, str] = {}
    for name, split in splits.items():
        # Every listed split must have records.
        if not sum(split.lengths):
            problems.append(Problem(EMPTY, INFO, "", f"the split {name} has no record"))
            continue
        try:
            problems += _verify_split(built, name, shapes, shard_by_id, contents, advance)
        except UserError as error:  # what all records share, such as features.json
            problems.append(Problem(DESCRIPTION, "features.json", "", str(error)))
    for path in leftovers(built.folder):
        problems.append(Problem(LEFTOVER, str(path.relative_to(built.folder.parent)), "", ""))
    return problems


def _stored_shapes(built: BuiltDataset) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays in a record by modality: of media, or of latents."""
    if not built.settings.holds_latents:
        return built.settings.media_shapes(built.folder)
    return {m: tuple(description["shape"]) for m, description in built.metadata["latents"].items()}


def _verify_split(
    built: BuiltDataset,
    split: str,
    shapes: dict[str, tuple[int, ...]],
    shard_by_id: dict[str, str],
    contents: Contents,
    advance: Callable[[], None],
) -> list[Problem]:
    problems, unreadable = [], Unreadable(UNREADABLE)
    records = built.records(split)
    ids, rows = contents.ids.setdefault(split, []), contents.rows.setdefault(split, [])
    for i in range(len(records)):
        position = f"{split} record {i}"
        try:
            record = records[i]
        except BadRecord as error:
            unreadable.add(error, i, position)
            # An unreadable record keeps its place, because indexes of latents go by position.
            ids.append(None)
            rows.append({})
            advance()
            continue
        shard, name = records.shard_of(i), str(record.get("id") or "")
        ids.append(name)
        rows.append(numbers_of(record))
        if not name:
            problems.append(Problem(NO_ID, shard, position, "it has no id"))
        elif name in shard_by_id:
            problems.append(Problem(DUPLICATE, shard, name, f"another record in {shard_by_id[name]} has this id"))
        # The first record of an id, so that all later ones are duplicates of it.
        shard_by_id.setdefault(name, shard)
        for kind, detail in _faults(record, shapes, built.settings):
            problems.append(Problem(kind, shard, name or position, detail))
        advance()
    return unreadable.problems() + problems


def numbers_of(record: dict[str, Any]) -> dict[str, float]:
    """Labels (all scalar integers) and quality of a record, as an index of latents stores them."""
    numbers = {}
    for name, value in record.items():
        if np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.integer):
            numbers[name] = int(value)
    return numbers | {"quality": float(record.get("quality", np.nan))}


class Unreadable:
    """Collects records that cannot be read; those of one file and one reason are one problem."""

    def __init__(self, kind: Kind):
        self._kind = kind
        # (index, name) of records by file and reason.
        self._groups: dict[tuple[str, str], list[tuple[int, str]]] = {}

    def add(self, error: BadRecord, i: int, name: str) -> None:
        """Adds record i, to be called `name`."""
        # Without its index the reason is the same for all records of a damaged block.
        reason = error.reason.replace(f"record {i} ", "")
        self._groups.setdefault((error.shard, reason), []).append((i, name))

    def problems(self) -> list[Problem]:
        """One problem for each file and reason."""
        problems = []
        for (shard, reason), records in self._groups.items():
            (first, name), (last, last_name) = records[0], records[-1]
            if len(records) > 1:
                consecutive = last - first + 1 == len(records)
                rest = f"from {name} to {last_name}" if consecutive else f"such as {name}"
                name = f"{len(records)} records {rest}"
            problems.append(Problem(self._kind, shard, name, reason))
        return problems


def _faults(
    record: dict[str, Any], shapes: dict[str, tuple[int, ...]], settings: Dataset
) -> Iterator[tuple[Kind, str]]:
    """Kind and detail of everything that is wrong with one record."""
    present = record.get("present")
    if not isinstance(present, dict) or set(present) != set(shapes):
        yield SHAPE, f"`present` is {present!r}, not a boolean for each of {', '.join(shapes)}"
        return
    for m, shape in shapes.items():
        if not present[m]:
            continue
        array = record.get(m)
        # The time axis is the first.
        fixed = 1 if settings.varying_length and medium_of(m).has_time else 0
        dtype = np.float16 if settings.holds_latents else medium_of(m).dtype
        if not isinstance(array, np.ndarray) or array.ndim != len(shape) or array.shape[fixed:] != shape[fixed:]:
            yield SHAPE, f"{m} has shape {getattr(array, 'shape', None)}, not {shape}"
        elif not array.size:
            yield SHAPE, f"{m} is present and empty"
        elif array.dtype != dtype:
            yield SHAPE, f"{m} holds {array.dtype}, not {np.dtype(dtype)}"
    # NaN in any feature, ground truth included, would spread to losses and probes.
    for name, value in _leaves(record):
        if np.asarray(value).dtype.kind == "f" and not np.isfinite(value).all():
            yield NOT_FINITE, f"{name} holds NaN or infinity"


def _leaves(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Features of a record by dotted name."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
