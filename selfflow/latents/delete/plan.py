"""What deletion some samples will change: found out, and refused where it cannot be done, before anything changes."""

import datetime
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from selfflow.data.built import BuiltDataset
from selfflow.data.shards import BadRecord
from selfflow.data.stored import read_info, read_splits
from selfflow.errors import UserError
from selfflow.latents.delete.remove import Change
from selfflow.latents.ids import decode_ids
from selfflow.latents.store import MANIFEST
from selfflow.serialization import digest


@dataclass(frozen=True)
class DeletionPlan:
    """What is to be done, found out before anything is changed.

    Attributes:
      built: the data set as it is.
      ids: to be deleted.
      gone: by split, bool [records]: which records of the data set are theirs.
      remaining: by split, the ids of the others in order.
      changes: of each finished folder of latents.
      entry: of this list of ids, as `deleted.json` has it or will have it.
      recorded: all entries, as they will be at the end.
      known: whether the entry stands there already.
      found: those of the ids that are in the data set or its latents.
    """

    built: BuiltDataset
    ids: set[str]
    gone: dict[str, np.ndarray]
    remaining: dict[str, list[str]]
    changes: list[Change]
    entry: dict[str, Any]
    recorded: list[dict[str, Any]]
    known: bool
    found: set[str]

    @property
    def count(self) -> int:
        return sum(int(mask.sum()) for mask in self.gone.values())

    @property
    def waiting(self) -> bool:
        """Whether an earlier run of the same command left something to do."""
        stale = any(change.deleted != change.manifest["deleted"] for change in self.changes)
        return stale or self.entry.get("unfinished", False)


def plan_deletion(built: BuiltDataset, ids: set[str], folders: list[Path], advance: Callable[[], None]) -> DeletionPlan:
    """Finds out what is to be done.

    Args:
      built: the data set.
      ids: to be deleted.
      folders: all latents of the data set.
      advance: called after each record that is read.

    Raises:
      UserError: if `train` would be empty, something cannot be read, or another deletion was interrupted.
    """
    _refuse_other_formats(built.folder)
    # As it is now that the lock is held.
    splits = {name: sum(split.lengths) for name, split in read_splits(built.folder).items()}
    built = replace(built, splits={name: total for name, total in splits.items() if total})
    entries = built.deleted
    entry = _entry(entries, ids, built.folder)
    names = _read_ids(built, advance)
    gone = {split: np.isin(found, sorted(ids)) for split, found in names.items()}
    if gone["train"].all():
        raise UserError("these are all samples of the split train: delete the data set and its latents instead")
    remaining = {split: [i for i, out in zip(found, gone[split]) if not out] for split, found in names.items()}
    count = sum(int(mask.sum()) for mask in gone.values())
    known = any(e["ids"] == entry["ids"] for e in entries)
    final = {key: entry[key] for key in ("count", "when", "ids")} | ({} if known else {"count": count})
    recorded = [final if e["ids"] == final["ids"] else e for e in entries] + ([final] if count and not known else [])
    changes, found = [], {name for some in names.values() for name in some} & ids
    for folder in folders:
        if (folder / MANIFEST).exists():
            change, there = _planned(folder, built, remaining, ids, recorded, final)
            changes.append(change)
            found |= there
    return DeletionPlan(built, ids, gone, remaining, changes, final | entry if known else final, recorded, known, found)


def hash_of_ids(ids: Collection[str]) -> str:
    """What is kept of a list of ids: SHA-256 of the sorted ids, a line each."""
    return digest("\n".join(sorted(ids)), 64)


def _entry(entries: list[dict[str, Any]], ids: set[str], folder: Path) -> dict[str, Any]:
    """What is noted of this list of ids, or what is to be."""
    digest = hash_of_ids(ids)
    for entry in entries:
        if entry.get("unfinished") and entry["ids"] != digest:
            raise UserError(
                f"{folder}: the deletion of {entry['count']} samples of {entry['when']} was interrupted: run it "
                "again with its own file of ids first"
            )
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return next((e for e in entries if e["ids"] == digest), {"count": 0, "when": now, "ids": digest})


def _refuse_other_formats(folder: Path) -> None:
    info = read_info(folder)
    formats = {info.get("fileFormat"), *info.get("alternativeFileFormats", [])} - {"array_record", None}
    if formats:
        raise UserError(
            f"{folder} is also prepared as {', '.join(sorted(formats))}, in which the samples would stay: delete those "
            "files and their names in dataset_info.json first"
        )


def _read_ids(built: BuiltDataset, advance: Callable[[], None]) -> dict[str, list[str]]:
    """The ids of every split, in order."""
    found = {}
    for split in built.splits:
        records = built.records(split)
        found[split] = ids = []
        for i in range(len(records)):
            try:
                ids.append(records[i]["id"])
            except BadRecord as error:
                raise UserError(
                    f"{built.folder / error.shard}: {error.reason}: whether it holds the samples cannot be told, so "
                    "nothing was deleted; `selfflow data verify` tells what to do"
                ) from error
            advance()
    return found


def _planned(
    folder: Path,
    built: BuiltDataset,
    remaining: dict[str, list[str]],
    ids: set[str],
    recorded: list,
    final: dict[str, Any],
) -> tuple[Change, set[str]]:
    """What is to become of a finished folder of latents, and which of the ids stand in it."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        rows = {}
        for split, lengths in manifest["shards"].items():
            table = load_file(folder / f"{split}.index.safetensors")["id"]
            rows[split] = [name.decode(errors="replace") for name in decode_ids(table)]
            if len(rows[split]) != sum(lengths):
                raise ValueError(f"{split}: index and shards differ in length")
        own = (manifest["dataset"], manifest["fingerprint"]) == (built.name, built.fingerprint)
        deleted = manifest["deleted"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is damaged ({error}), so nothing was deleted: remove it and try again") from error
    found = {name for some in rows.values() for name in some} & ids
    if own:
        keep = {split: _aligned(names, remaining.get(split, []), folder / split) for split, names in rows.items()}
        return Change(folder, manifest, keep, recorded), found
    keep = {split: ~np.isin(names, sorted(ids)) for split, names in rows.items()}
    known = any(entry["ids"] == final["ids"] for entry in deleted)
    return Change(folder, manifest, keep, deleted if known or not found else [*deleted, final]), found


def _aligned(rows: list[str], remaining: list[str], where: Path) -> np.ndarray:
    """Which rows of an index are of samples that the data set still has, bool [rows].

    A row without an id is of a record that could not be read when it was encoded: it stands for one of the data set
    that no other row stands for.
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
