"""Planning of deletions: locates the records of the ids, and checks that they can be deleted before any change."""

import datetime
import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from selfflow.data.built import BuiltDataset
from selfflow.data.shards import BadRecord
from selfflow.data.stored import read_info, read_splits
from selfflow.errors import UserError
from selfflow.latents.delete.remove import LatentsChange
from selfflow.latents.ids import decode_ids, deleted_ids, format_id, format_ids, hash_id, hash_ids
from selfflow.latents.store import MANIFEST

_HASH_DIGITS = 64


@dataclass(frozen=True)
class DeletionPlan:
    """The records to delete.

    Attributes:
      built: the present data set.
      ids: ids to delete.
      masks: masks by split, bool [records], True for the records of these ids.
      remaining: ids of the remaining records in order, by split.
      changes: changes to each finished folder of latents.
      entry: present or future entry of this list of ids in `deleted.json`.
      entries: all entries of `deleted.json` after the deletion.
      is_repeated: whether the same list was deleted before, perhaps in part.
      present: the ids that are in the data set or its latents.
      earlier: the other ids, which earlier deletions have removed.
    """

    built: BuiltDataset
    ids: set[str]
    masks: dict[str, np.ndarray]
    remaining: dict[str, list[str]]
    changes: list[LatentsChange]
    entry: dict[str, Any]
    entries: list[dict[str, Any]]
    is_repeated: bool
    present: set[str]
    earlier: set[str]

    @property
    def count(self) -> int:
        """Number of records to delete from the data set."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    @property
    def is_unfinished(self) -> bool:
        """Whether an earlier run of the same command was interrupted."""
        for change in self.changes:
            if change.deleted != change.manifest["deleted"]:
                return True
        return self.entry.get("unfinished", False)


def plan_deletion(built: BuiltDataset, ids: set[str], folders: list[Path], advance: Callable[[], None]) -> DeletionPlan:
    """Reads the data set and the indexes of its latents; changes nothing.

    Args:
      built: the data set.
      ids: ids to delete.
      folders: all latents of the data set.
      advance: called after each record that is read.

    Raises:
      UserError: if an id neither exists nor was deleted earlier, `train` would become empty, a file cannot be read, or
        another deletion was interrupted.
    """
    _refuse_other_formats(built.folder)
    # Read the data set again: another deletion may have ended while this one waited for its lock.
    splits = {}
    for name, split in read_splits(built.folder).items():
        if sum(split.lengths):
            splits[name] = sum(split.lengths)
    built = replace(built, splits=splits)

    # The records of the data set.
    masks, remaining = {}, {}
    present: set[str] = set()
    count = 0
    for split, names in _read_ids(built, advance).items():
        masks[split] = _are_in(names, ids)
        remaining[split] = [name for name, deleted in zip(names, masks[split]) if not deleted]
        present |= ids.intersection(names)
        count += int(masks[split].sum())

    # The entry of this deletion replaces the entry of an interrupted deletion of the same ids.
    entry = _entry(built.deleted, ids, built.folder)
    final = {key: value for key, value in entry.items() if key not in ("unfinished", "replaced")}
    entries, is_repeated = [], False
    for recorded in built.deleted:
        if recorded["ids"] == final["ids"]:
            recorded, is_repeated = final, True
        entries.append(recorded)
    if not is_repeated:
        final["count"] = count
        if count:
            entries.append(final)

    # The records of its latents.
    changes = []
    for folder in folders:
        if (folder / MANIFEST).exists():
            planned = _plan_folder(folder, built, remaining, ids, entries, final)
            changes.append(planned.change)
            present |= planned.present
    earlier = deleted_ids(ids - present, [*built.deleted, *_deletions_of(changes)])
    unmatched = ids - present - earlier
    if unmatched:
        similar = _similar(unmatched, set().union(*remaining.values()))
        raise UserError(
            f"{len(unmatched)} of {len(ids)} ids are not in {built.name} or its latents and were not deleted earlier: "
            f"{format_ids(unmatched)}; nothing was changed{similar}: correct or "
            "remove these lines (`selfflow data ids` prints all ids)"
        )
    if masks["train"].all():
        raise UserError("these are all samples of the split train: delete the data set and its latents instead")
    entry = final | entry if is_repeated else final
    return DeletionPlan(built, ids, masks, remaining, changes, entry, entries, is_repeated, present, earlier)


def _are_in(names: list[str], ids: set[str]) -> np.ndarray:
    """Returns the mask of names that are ids, bool [names]; numpy would compare text without trailing zeros."""
    return np.array([name in ids for name in names], bool)


def _deletions_of(changes: list[LatentsChange]) -> list[dict[str, Any]]:
    """Returns the deletions that folders of latents record."""
    entries = []
    for change in changes:
        entries += change.manifest["deleted"]
    return entries


def _similar(unmatched: set[str], names: set[str]) -> str:
    """Returns a hint for the first unmatched id that names a file of clips, or that is a misspelt id."""
    spellings = {}
    for name in sorted(names):
        spellings.setdefault(_spelling(name), name)
        spellings.setdefault(_spelling(name.rpartition("@")[0]), name)
    for id in sorted(unmatched):
        similar = spellings.get(_spelling(id))
        if _spelling(id) and similar:
            # Unicode forms of one text look alike, so the message shows escapes.
            return f"; there is {format_id(similar)} ({ascii(similar)}), not {ascii(id)}"
    return ""


def _spelling(id: str) -> str:
    """Normalises case, Unicode form and surrounding blanks of an id."""
    return unicodedata.normalize("NFC", id).casefold().strip()


def _entry(entries: list[dict[str, Any]], ids: set[str], folder: Path) -> dict[str, Any]:
    """Returns the entry of this list of ids, or a new one; entries identify lists by their hash only."""
    key = hash_ids(ids, _HASH_DIGITS)
    for entry in entries:
        if entry.get("unfinished") and entry["ids"] != key:
            raise UserError(
                f"{folder}: the deletion of {entry['count']} samples of {entry['when']} was interrupted: run it "
                "again with its own file of ids first"
            )
    for entry in entries:
        if entry["ids"] == key:
            return entry
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"count": 0, "when": now, "ids": key, "hashes": sorted(map(hash_id, ids))}


def _refuse_other_formats(folder: Path) -> None:
    info = read_info(folder)
    formats = {info.get("fileFormat"), *info.get("alternativeFileFormats", [])} - {"array_record", None}
    if formats:
        raise UserError(
            f"{folder} is also prepared as {', '.join(sorted(formats))}, in which the samples would stay: delete those "
            "files and their names in dataset_info.json first"
        )


def _read_ids(built: BuiltDataset, advance: Callable[[], None]) -> dict[str, list[str]]:
    """Reads the ids of every split, in order."""
    names = {}
    for split in built.splits:
        records = built.records(split)
        names[split] = []
        for i in range(len(records)):
            try:
                names[split].append(records[i]["id"])
            except BadRecord as error:
                raise UserError(
                    f"{built.folder / error.shard}: {error.reason}: whether it holds the samples is unknown, so "
                    "nothing was deleted; `selfflow data verify` names the remedy"
                ) from error
            advance()
    return names


class _FolderPlan(NamedTuple):
    """Change of a folder of latents, and the ids that occur in it."""

    change: LatentsChange
    present: set[str]


def _plan_folder(
    folder: Path,
    built: BuiltDataset,
    remaining: dict[str, list[str]],
    ids: set[str],
    entries: list[dict[str, Any]],
    entry: dict[str, Any],
) -> _FolderPlan:
    """Plans the change of a finished folder of latents, which may belong to another build of the data set."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        rows = {}
        for split, lengths in manifest["shards"].items():
            table = load_file(folder / f"{split}.index.safetensors")["id"]
            rows[split] = [name.decode(errors="replace") for name in decode_ids(table)]
            if len(rows[split]) != sum(lengths):
                raise ValueError(f"{split}: index and shards differ in length")
        is_of_this_build = (manifest["dataset"], manifest["fingerprint"]) == (built.name, built.fingerprint)
        deleted = manifest["deleted"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is damaged ({error}), so nothing was deleted: remove it and try again") from error
    keep = {}
    present: set[str] = set()
    for split, names in rows.items():
        present |= ids.intersection(names)
        if is_of_this_build:
            keep[split] = _aligned(names, remaining.get(split, []), folder / split)
        else:
            # Records of another build need not correspond to records of this build.
            keep[split] = ~_are_in(names, ids)
    if is_of_this_build:
        deleted = entries
    elif present and entry["ids"] not in [recorded["ids"] for recorded in deleted]:
        deleted = [*deleted, entry]
    return _FolderPlan(LatentsChange(folder, manifest, keep, deleted), present)


def _aligned(rows: list[str], remaining: list[str], where: Path) -> np.ndarray:
    """Returns the mask of index rows whose records the data set keeps, bool [rows].

    A row without an id belongs to a record that was unreadable during encoding: it is matched with a record of the data
    set that has no other row.
    """
    known, expected, keep = set(rows), iter(remaining), np.zeros(len(rows), bool)
    following = next(expected, None)
    for i, name in enumerate(rows):
        if following is not None and (name == following or (not name and following not in known)):
            keep[i], following = True, next(expected, None)
    if following is not None:
        raise UserError(
            f"{where}: its ids are not those of the data set ({following!r} is missing), so nothing was deleted: "
            f"remove {where.parent} and try again"
        )
    return keep
