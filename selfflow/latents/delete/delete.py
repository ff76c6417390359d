"""Deletes samples from a data set and from all latents encoded from it.

The order of the steps makes interruptions harmless:

1. New shards are written beside the present ones.
2. `deleted.json` records the deletion as unfinished; from now on `encode` refuses latents that hold the samples.
3. `dataset_info.json` is replaced, which exchanges all shards in one step.
4. The folders of latents are replaced, one after the other.
5. `deleted.json` records the deletion as finished.

After a kill the same command resumes. Only the user's file stores the ids; the entry of a deletion holds their hashes,
which identify ids that were deleted earlier.
"""

import json
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from selfflow.data.built import DELETED, BuiltDataset
from selfflow.data.stored import read_splits
from selfflow.latents.delete.plan import DeletionPlan, plan_deletion
from selfflow.latents.delete.remove import (
    apply_change,
    clear_unfinished,
    finish_change,
    remove_replaced,
    switch_shards,
    write_remaining,
)
from selfflow.latents.delete.search import find_remaining
from selfflow.latents.encode import folder_name
from selfflow.latents.store import INDEX_FOLDER, MANIFEST
from selfflow.latents.verify import latents_folders
from selfflow.storage.atomic import atomic_write
from selfflow.storage.lock import locked

Advance = Callable[[], None]


@dataclass
class DeletionReport:
    """Result of a deletion.

    Attributes:
      built: the data set after the deletion.
      removed: number of records that were removed from each split of the data set.
      latents: number of records that were removed from each finished folder of latents.
      cleared: unfinished folders of latents, in which encoding restarts.
      earlier: number of ids that earlier deletions had removed.
      siblings: remaining records that are clips, FILE@SECONDS, of the same files; clips may overlap.
      before: time of an earlier deletion of the same ids, finished or not; "" if there was none.
      resumed: whether that deletion was interrupted.
      fitted: autoencoders that were fitted to records of this data set.
      left: places where ids still occur.
    """

    built: BuiltDataset
    removed: dict[str, int] = field(default_factory=dict)
    latents: dict[str, int] = field(default_factory=dict)
    cleared: list[str] = field(default_factory=list)
    earlier: int = 0
    siblings: list[str] = field(default_factory=list)
    before: str = ""
    resumed: bool = False
    fitted: list[Path] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def _no_progress() -> None:
    pass


def delete_samples(
    built: BuiltDataset, ids: Collection[str], data_dir: Path, advance: Advance = _no_progress
) -> DeletionReport:
    """Removes samples from a data set and all its latents, then searches the remaining files for their ids.

    Statistics of latents, reconstruction quality and autoencoders are kept: later numbers remain comparable.

    Args:
      built: the data set.
      ids: ids of the samples.
      data_dir: cache folder.
      advance: called after each record that is read, twice for every record of the data set.

    Raises:
      UserError: if an id neither exists nor was deleted earlier, `train` would become empty, a file cannot be read, or
        another deletion was interrupted. In these cases nothing is changed.
    """
    ids = set(ids)
    with ExitStack() as locks:
        locks.enter_context(locked(built.folder / "delete.lock", f"delete samples of {built.name}"))
        folders = latents_folders(data_dir, built.name)
        for folder in folders:
            # An encoding holds the lock of its host.
            names = {"lock-0"} | {path.name for path in folder.glob("lock-*")}
            for name in sorted(names):
                locks.enter_context(locked(folder / name, f"delete samples in {folder.name}"))
        return _delete(built, ids, folders, data_dir, advance)


def _delete(
    built: BuiltDataset, ids: set[str], folders: list[Path], data_dir: Path, advance: Advance
) -> DeletionReport:
    # Finish the exchanges of files that a killed deletion prepared.
    for folder in folders:
        finish_change(folder)
    plan = plan_deletion(built, ids, folders, advance)
    has_work = bool(plan.present or plan.is_unfinished)
    report = DeletionReport(built, earlier=len(plan.earlier))
    if plan.is_repeated:
        report.before, report.resumed = plan.entry["when"], has_work
    if has_work:
        _remove(plan, folders, report)
    files = _files_of(ids)
    splits = {}
    for split, names in plan.remaining.items():
        if names:
            splits[split] = len(names)
        report.siblings += [name for name in names if name.rpartition("@")[0] in files]
    report.built = replace(plan.built, splits=splits)
    report.fitted = fitted_to(report.built, data_dir)
    for index in (data_dir / INDEX_FOLDER).glob(f"{folder_name(built.name)}-*"):  # rebuilt when needed
        index.unlink()
    report.left = find_remaining(report.built, folders, ids, advance)
    return report


def _remove(plan: DeletionPlan, folders: list[Path], report: DeletionReport) -> None:
    """Executes a plan; see the steps in the module docstring."""
    folder, fingerprint, entry = plan.built.folder, plan.built.fingerprint, plan.entry
    if plan.count:
        splits = read_splits(folder)
        info = write_remaining(folder, plan.masks)
        replaced = []
        for split, mask in plan.masks.items():
            if mask.any():
                replaced += [str(path.relative_to(folder)) for path in splits[split].paths]
        entry = entry | {"unfinished": True, "replaced": replaced}
        entries = []
        for recorded in plan.entries:
            entries.append(entry if recorded["ids"] == entry["ids"] else recorded)
        _record(folder, fingerprint, entries)
    for latents in folders:
        if not (latents / MANIFEST).exists() and clear_unfinished(latents):
            report.cleared.append(latents.name)
    if plan.count:
        switch_shards(folder, info)
    for split, mask in plan.masks.items():
        if mask.any():
            report.removed[split] = int(mask.sum())
    if entry.get("unfinished"):
        remove_replaced(folder, entry["replaced"])
        _clean_report(folder, plan.ids, set().union(*plan.remaining.values()))
    for change in plan.changes:
        if change.removed or change.deleted != change.manifest["deleted"]:
            apply_change(change)
            report.latents[change.folder.name] = change.removed
    if entry.get("unfinished"):
        _record(folder, fingerprint, plan.entries)


def fitted_to(built: BuiltDataset, data_dir: Path) -> list[Path]:
    """Returns the autoencoders in `data_dir` that were fitted to records of a data set."""
    paths = []
    for metadata in sorted((data_dir / "autoencoders").glob("*.json")):
        if f"{built.name} {built.fingerprint}" in json.loads(metadata.read_text(encoding="utf-8")).get("fitted_on", {}):
            paths.append(metadata.with_suffix(".safetensors"))
    return paths


def _files_of(ids: Collection[str]) -> set[str]:
    """Returns the files whose clips have these ids, FILE@SECONDS."""
    return {name.rpartition("@")[0] for name in ids} - {""}


def _record(folder: Path, fingerprint: str, entries: list[dict[str, Any]]) -> None:
    with atomic_write(folder / DELETED, durable=True) as partial:
        partial.write_text(json.dumps({"fingerprint": fingerprint, "deleted": entries}, indent=1), encoding="utf-8")


def _clean_report(folder: Path, ids: set[str], remaining: set[str]) -> None:
    """Removes remarks on deleted samples from the builder's `report.json`.

    An id may consist of a file name and a time, FILE@SECONDS: remarks on a file are removed with its last clip.
    """
    path = folder / "report.json"
    if not path.exists():
        return
    deleted = ids | (_files_of(ids) - _files_of(remaining))

    def without_deleted(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_deleted(inner) for key, inner in value.items()}
        if isinstance(value, list):
            kept = [inner for inner in value if not (isinstance(inner, dict) and inner.get("file") in deleted)]
            return [without_deleted(inner) for inner in kept]
        return value

    with atomic_write(path, durable=True) as partial:
        partial.write_text(
            json.dumps(without_deleted(json.loads(path.read_text(encoding="utf-8"))), indent=1) + "\n", encoding="utf-8"
        )
