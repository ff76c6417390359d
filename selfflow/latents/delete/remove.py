"""Removal of records from a data set and from latents; a kill at any moment leaves both readable."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from selfflow.data.stored import INFO, KEPT, StoredSplit, next_template, read_info, read_splits, shard_paths
from selfflow.errors import UserError
from selfflow.latents.store import MANIFEST, NEXT_MANIFEST, shard_name
from selfflow.latents.verify import foreign_files
from selfflow.storage.atomic import atomic_write, sync

_NEW = ".new"


def write_remaining(folder: Path, deleted: dict[str, np.ndarray]) -> dict[str, Any]:
    """Writes shards without the deleted records beside the present shards, which do not change.

    Every shard of a split that loses records gets a new name, so that replacing `dataset_info.json` by the result
    exchanges all shards in one step.

    Args:
      folder: folder of the data set.
      deleted: masks by split, bool [records], True for records to delete.

    Returns:
      The next content of `dataset_info.json`, without splits that become empty.
    """
    info = read_info(folder)
    splits = []
    for entry, (name, split) in zip(info["splits"], read_splits(folder, info).items()):
        mask = deleted.get(name)
        if mask is None or not mask.any():
            splits.append(entry)
        elif not mask.all():
            changed = entry | _write_split(folder, info, split, mask)
            if "statistics" in entry:
                changed["statistics"] = {}  # they include the deleted records
            splits.append(changed)
    return info | {"splits": splits}


def _write_split(folder: Path, info: dict, split: StoredSplit, deleted: np.ndarray) -> dict[str, Any]:
    """Writes the remaining records of a split; returns the fields of `dataset_info.json` that change."""
    # Shards that become empty are left out; the others keep their order.
    masks = np.split(deleted, np.cumsum(split.lengths)[:-1])
    remaining, size = [], split.size
    for path, mask in zip(split.paths, masks):
        if not mask.all():
            remaining.append((path, mask))
        if mask.any():
            size -= _deleted_bytes(path, mask)
    template = next_template(split.template)
    new_paths = shard_paths(folder, info, split.name, template, len(remaining))
    for (path, mask), new in zip(remaining, new_paths, strict=True):
        new.unlink(missing_ok=True)  # not overwritten in place, as it may be a hard link to a shard
        if mask.any():
            copy_records(path, new, ~mask, "group_size:1")
        else:
            try:
                os.link(path, new)
            except OSError:  # not every file system has hard links
                shutil.copyfile(path, new)
                sync(new)
    sync(folder)
    lengths = [str(int((~mask).sum())) for _, mask in remaining]
    return {"filepathTemplate": template, "numBytes": str(size), "shardLengths": lengths}


def _deleted_bytes(path: Path, deleted: np.ndarray) -> int:
    return sum(len(record) for record, is_deleted in zip(read_raw(path), deleted) if is_deleted)


def read_raw(path: Path) -> list[bytes]:
    """All records of a shard, as bytes.

    Raises:
      UserError: if the shard is damaged.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(path), options="readahead_buffer_size:0")
        return reader.read_all() if reader.num_records() else []
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"{path} cannot be read ({reason}), so nothing was deleted: `selfflow data verify` names the remedy"
        ) from error


def copy_records(old: Path, new: Path, keep: np.ndarray, options: str) -> None:
    """Copies the records to keep to a new shard, which is flushed to disk on return.

    Args:
      old, new: the shards.
      keep: mask of the records to keep, bool [records].
      options: options of `ArrayRecordWriter`.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    records = read_raw(old)
    if len(records) != len(keep):
        raise UserError(f"{old} holds {len(records)} records, not {len(keep)}: `selfflow data verify` names the remedy")
    with atomic_write(new, durable=True) as partial:
        writer = ArrayRecordWriter(str(partial), options)
        for record, is_kept in zip(records, keep):
            if is_kept:
                writer.write(record)
        try:
            writer.close()
        except RuntimeError as error:
            raise OSError(None, str(error).split(";")[0]) from error


def switch_shards(folder: Path, info: dict[str, Any]) -> None:
    """Replaces `dataset_info.json`, after which the data set consists of the shards of `write_remaining`."""
    with atomic_write(folder / INFO, durable=True) as partial:
        partial.write_text(json.dumps(info, indent=2), encoding="utf-8")


def remove_replaced(folder: Path, replaced: list[str]) -> None:
    """Deletes the previous shards of a data set, and partial files of killed processes."""
    current: set[Path] = set()
    for split in read_splits(folder).values():
        current.update(split.paths)
    unfinished = [*folder.rglob(f"{KEPT}[0-9]*-*"), *folder.glob("*.json.partial-*")]
    for path in [folder / name for name in replaced] + unfinished:
        if path not in current:
            path.unlink(missing_ok=True)
    sync(folder)


@dataclass(frozen=True)
class LatentsChange:
    """Records to remove from a finished folder of latents.

    Attributes:
      folder: the folder.
      manifest: present manifest of the folder.
      keep: masks by split, bool [records].
      deleted: the entry `deleted` of the next manifest.
    """

    folder: Path
    manifest: dict[str, Any]
    keep: dict[str, np.ndarray]
    deleted: list[dict[str, Any]]

    @property
    def removed(self) -> int:
        """Number of records to remove."""
        return sum(int((~mask).sum()) for mask in self.keep.values())


def apply_change(change: LatentsChange) -> None:
    """Removes records from the shards, indexes and manifest of a folder of latents.

    All new files are written beside the present ones; `manifest.next` then marks them as complete, and `finish_change`
    exchanges them. A kill before `manifest.next` leaves the present latents; after a later kill, `finish_change`
    resumes.
    """
    folder, manifest = change.folder, change.manifest
    for path in [*folder.glob(f"*{_NEW}*"), *folder.glob(f"{NEXT_MANIFEST}.partial-*")]:
        path.unlink()  # left by a killed process
    shards = dict(manifest["shards"])
    unreadable = {}
    for split, keep in change.keep.items():
        still_unreadable = _renumbered(manifest["unreadable"].get(split, []), keep)
        if still_unreadable:
            unreadable[split] = still_unreadable
        if keep.all():
            continue
        if not keep.any():
            del shards[split]
            continue
        lengths = manifest["shards"][split]
        # Shards keep their names; only those that lose records are written again.
        masks = np.split(keep, np.cumsum(lengths)[:-1])
        shards[split] = [int(mask.sum()) for mask in masks]
        for number, mask in enumerate(masks):
            if not mask.all():
                path = folder / shard_name(split, number, len(lengths))
                copy_records(path, _next(path), mask, "group_size:1,uncompressed")
        path = folder / f"{split}.index.safetensors"
        index = {name: np.ascontiguousarray(column[keep]) for name, column in load_file(path).items()}
        save_file(index, _next(path))
        sync(_next(path))
    next_manifest = manifest | {"shards": shards, "unreadable": unreadable, "deleted": change.deleted}
    with atomic_write(folder / NEXT_MANIFEST, durable=True) as partial:
        partial.write_text(json.dumps(next_manifest, indent=1), encoding="utf-8")
    finish_change(folder)


def _next(path: Path) -> Path:
    return path.with_name(path.name + _NEW)


def _renumbered(unreadable: list, keep: np.ndarray) -> list[tuple]:
    """Returns the entries of unreadable records that are kept, with their new record numbers."""
    position = np.cumsum(keep) - 1  # new number of each kept record
    return [(int(position[int(i)]), *rest) for i, *rest in unreadable if keep[int(i)]]


def finish_change(folder: Path) -> None:
    """Exchanges the files that `apply_change` has written; does nothing if there are none."""
    if not (folder / NEXT_MANIFEST).exists():
        return
    manifest = json.loads((folder / NEXT_MANIFEST).read_text(encoding="utf-8"))
    # This can be resumed: files that were renamed before a kill no longer match.
    for path in folder.glob(f"*{_NEW}"):
        os.replace(path, path.with_name(path.name.removesuffix(_NEW)))
    for path in foreign_files(folder, manifest):
        if path.name != NEXT_MANIFEST and path.suffix in (".array_record", ".safetensors"):
            path.unlink()  # the index of a split that has become empty
    # The names of all new files must be on the disk before the manifest that needs them.
    sync(folder)
    os.replace(folder / NEXT_MANIFEST, folder / MANIFEST)
    sync(folder)


def clear_unfinished(folder: Path) -> bool:
    """Deletes the shards of an unfinished folder of latents, whose records would have other numbers.

    Returns:
      Whether there were any files.
    """
    paths = [path for path in folder.iterdir() if not path.name.startswith("lock-")]
    for path in paths:
        path.unlink()
    sync(folder)
    return bool(paths)
