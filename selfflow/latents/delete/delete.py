"""Removes samples for good, from a data set and from everything that was encoded of it.

The order makes every interruption harmless. New shards are written beside the old ones; `forgotten.json` notes what is
going on, from which moment on `encode` refuses latents that still hold the samples; `dataset_info.json` is exchanged,
which exchanges all shards in one step; then the latents follow, one folder after the other; at last the note is closed.
The same command takes up what a killed one left, and ids are kept nowhere but in its file.
"""

import json
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from selfflow.data.built import DELETED, BuiltDataset
from selfflow.data.stored import read_splits
from selfflow.errors import UserError
from selfflow.latents.delete.plan import DeletionPlan, plan_deletion
from selfflow.latents.delete.remove import (
    change_latents,
    clear_unfinished,
    drop_replaced,
    finish_latents,
    switch_data,
    write_without,
)
from selfflow.latents.delete.search import find_remaining
from selfflow.latents.encode import folder_name, locked
from selfflow.latents.store import INDEXES, MANIFEST
from selfflow.latents.verify import latents_folders
from selfflow.storage.atomic import atomic_write

Advance = Callable[[], None]


@dataclass
class DeletionReport:
    """What a forgetting did.

    Attributes:
      built: the data set as it is now.
      removed: number of records that left each split of the data set.
      latents: number of records that left each finished folder of latents.
      cleared: unfinished folders of latents, in which encoding begins anew.
      missing: ids that were nowhere.
      siblings: remaining records that are clips, FILE@SECONDS, of the same files; clips may overlap.
      before: when the same ids were forgotten, or that was begun, if it was before.
      resumed: whether that had been interrupted.
      fitted: autoencoders that were fitted to records of this data set.
      left: where ids were found nevertheless.
    """

    built: BuiltDataset
    removed: dict[str, int] = field(default_factory=dict)
    latents: dict[str, int] = field(default_factory=dict)
    cleared: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    siblings: list[str] = field(default_factory=list)
    before: str = ""
    resumed: bool = False
    fitted: list[Path] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def delete_samples(
    built: BuiltDataset, ids: Collection[str], data_dir: Path, advance: Advance = lambda: None
) -> DeletionReport:
    """Removes samples from a data set and all its latents, and searches what is left for their ids.

    Statistics of latents, reconstruction quality and autoencoders stay as they are: later numbers remain comparable.

    Args:
      built: the data set.
      ids: of the samples.
      data_dir: cache folder.
      advance: called after each record that is read, twice for every record of the data set.

    Raises:
      UserError: if none of the ids is known, `train` would be empty, something cannot be read, or another
        forgetting was interrupted. Nothing is changed then.
    """
    ids = set(ids)
    with ExitStack() as held:
        held.enter_context(locked(built.folder / "forget.lock", f"forget samples of {built.name}"))
        folders = latents_folders(data_dir, built.name)
        for folder in folders:
            names = {"lock-0"} | {path.name for path in folder.glob("lock-*")}
            for name in sorted(names):
                held.enter_context(locked(folder / name, f"forget samples in {folder.name}"))
        return _forget(built, ids, folders, data_dir, advance)


def _forget(
    built: BuiltDataset, ids: set[str], folders: list[Path], data_dir: Path, advance: Advance
) -> DeletionReport:
    for folder in folders:
        finish_latents(folder)
    plan = plan_deletion(built, ids, folders, advance)
    if not (plan.found or plan.waiting or plan.known):
        raise UserError(
            f"none of the {len(ids)} ids is in {built.name} or its latents, such as {min(ids)!r}: nothing was changed; "
            "`selfflow data show` shows what ids look like"
        )
    done = DeletionReport(built, missing=[] if plan.known else sorted(ids - plan.found))
    if plan.known:
        done.before, done.resumed = plan.entry["when"], bool(plan.found or plan.waiting)
    if plan.found or plan.waiting:
        _remove(plan, folders, done)
    done.built = replace(plan.built, splits={split: len(left) for split, left in plan.remaining.items() if left})
    files = {name.rpartition("@")[0] for name in ids} - {""}
    done.siblings = [i for some in plan.remaining.values() for i in some if i.rpartition("@")[0] in files]
    done.fitted = fitted_to(done.built, data_dir)
    for index in (data_dir / INDEXES).glob(f"{folder_name(built.name)}-*"):  # made anew, without them
        index.unlink()
    done.left = find_remaining(done.built, folders, ids, advance)
    return done


def _remove(plan: DeletionPlan, folders: list[Path], done: DeletionReport) -> None:
    folder, fingerprint, entry = plan.built.folder, plan.built.fingerprint, plan.entry
    if plan.count:
        splits = read_splits(folder)
        info = write_without(folder, plan.gone)
        replaced = [path for split, mask in plan.gone.items() if mask.any() for path in splits[split].paths]
        entry = entry | {"unfinished": True, "replaced": [str(path.relative_to(folder)) for path in replaced]}
        _note(folder, fingerprint, [entry if e["ids"] == entry["ids"] else e for e in plan.recorded])
    for latents in folders:
        if not (latents / MANIFEST).exists() and clear_unfinished(latents):
            done.cleared.append(latents.name)
    if plan.count:
        switch_data(folder, info)
    done.removed = {split: int(mask.sum()) for split, mask in plan.gone.items() if mask.any()}
    if entry.get("unfinished"):
        drop_replaced(folder, entry["replaced"])
        _clean_notes(folder, plan.ids, {name for some in plan.remaining.values() for name in some})
    for change in plan.changes:
        if change.removed or change.forgotten != change.manifest["forgotten"]:
            change_latents(change)
            done.latents[change.folder.name] = change.removed
    if entry.get("unfinished"):
        _note(folder, fingerprint, plan.recorded)


def fitted_to(built: BuiltDataset, data_dir: Path) -> list[Path]:
    """The autoencoders in `data_dir` that were fitted to records of a data set."""
    found = []
    for notes in sorted((data_dir / "autoencoders").glob("*.json")):
        if f"{built.name} {built.fingerprint}" in json.loads(notes.read_text()).get("fitted_on", {}):
            found.append(notes.with_suffix(".safetensors"))
    return found


def _note(folder: Path, fingerprint: str, entries: list[dict[str, Any]]) -> None:
    with atomic_write(folder / DELETED, durable=True) as partial:
        partial.write_text(json.dumps({"fingerprint": fingerprint, "forgotten": entries}, indent=1))


def _clean_notes(folder: Path, ids: set[str], remaining: set[str]) -> None:
    """Takes what a builder remarked about these samples out of its `report.json`.

    An id may be the name of a file and a time, FILE@SECONDS: remarks on a file go with its last clip.
    """
    path = folder / "report.json"
    if not path.exists():
        return
    kept_files = {i.rpartition("@")[0] for i in remaining}
    gone = ids | {i.rpartition("@")[0] for i in ids} - kept_files - {""}

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [cleaned(inner) for inner in value if not (isinstance(inner, dict) and inner.get("file") in gone)]
        return value

    with atomic_write(path, durable=True) as partial:
        partial.write_text(json.dumps(cleaned(json.loads(path.read_text())), indent=1) + "\n")
