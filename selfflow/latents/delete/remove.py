"""Takes records out of a data set, and out of latents, so that a kill at any moment leaves nothing unreadable."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from selfflow.data.stored import (
    INFO,
    KEPT,
    StoredSplit,
    next_template,
    read_info,
    read_splits,
    shard_paths,
)
from selfflow.errors import UserError
from selfflow.latents.store import FORGETTING, MANIFEST, shard_name
from selfflow.latents.verify import foreign_files
from selfflow.storage.atomic import atomic_write, sync

_NEW = ".new"


def write_without(folder: Path, gone: dict[str, np.ndarray]) -> dict[str, Any]:
    """Writes the shards of a data set without some records beside the old ones, which stay as they are.

    Every shard of a split that loses records gets a new name, so that replacing `dataset_info.json` by what this
    returns exchanges all of them in one step.

    Args:
      folder: of the data set.
      gone: by split, bool [records]: which to leave out.

    Returns:
      What is to stand in `dataset_info.json`; splits without records are left out of it.
    """
    info = read_info(folder)
    kept_splits = []
    for told, (name, split) in zip(info["splits"], read_splits(folder, info).items()):
        mask = gone.get(name)
        if mask is None or not mask.any():
            kept_splits.append(told)
        elif not mask.all():
            kept_splits.append(told | _write_split(folder, info, split, mask))
    return info | {"splits": kept_splits}


def _write_split(folder: Path, info: dict, split: StoredSplit, gone: np.ndarray) -> dict[str, Any]:
    parts = np.split(gone, np.cumsum(split.lengths)[:-1])
    kept = [(path, part) for path, part in zip(split.paths, parts) if not part.all()]
    template = next_template(split.template)
    size = split.size - sum(_bytes_gone(path, part) for path, part in zip(split.paths, parts) if part.any())
    for (path, part), new in zip(kept, shard_paths(folder, info, split.name, template, len(kept)), strict=True):
        new.unlink(missing_ok=True)  # never written into: it may be a link to a shard
        if part.any():
            rewrite(path, new, ~part, "group_size:1")
        else:
            try:
                os.link(path, new)
            except OSError:  # not every file system has links
                shutil.copyfile(path, new)
                sync(new)
    sync(folder)
    lengths = [str(int((~part).sum())) for _, part in kept]
    told = {"filepathTemplate": template, "numBytes": str(size), "shardLengths": lengths}
    return told | {"statistics": {}} if "statistics" in told else told


def _bytes_gone(path: Path, gone: np.ndarray) -> int:
    return sum(len(record) for record, out in zip(read_raw(path), gone) if out)


def read_raw(path: Path) -> list[bytes]:
    """All records of a shard, as they are stored.

    Raises:
      UserError: if not all of it can be read.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(path), options="readahead_buffer_size:0")
        return reader.read_all() if reader.num_records() else []
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"{path} cannot be read ({reason}), so nothing was forgotten: `selfflow data verify` tells what to do"
        ) from error


def rewrite(old: Path, new: Path, keep: np.ndarray, options: str) -> None:
    """Copies the records of a shard that are to be kept; the new file is on the disk when this returns."""
    from array_record.python.array_record_module import ArrayRecordWriter

    records = read_raw(old)
    if len(records) != len(keep):
        raise UserError(f"{old} holds {len(records)} records, not {len(keep)}: `selfflow data verify` tells what to do")
    with atomic_write(new, durable=True) as partial:
        writer = ArrayRecordWriter(str(partial), options)
        for record, wanted in zip(records, keep):
            if wanted:
                writer.write(record)
        try:
            writer.close()
        except RuntimeError as error:
            raise OSError(None, str(error).split(";")[0]) from error


def switch_data(folder: Path, info: dict[str, Any]) -> None:
    """Makes the shards that `write_without` wrote those of the data set."""
    with atomic_write(folder / INFO, durable=True) as partial:
        partial.write_text(json.dumps(info, indent=2))


def drop_replaced(folder: Path, replaced: list[str]) -> None:
    """Deletes the files that the data set consisted of before, and what killed processes wrote instead of them."""
    named = {path for split in read_splits(folder).values() for path in split.paths}
    unfinished = [*folder.rglob(f"{KEPT}[0-9]*-*"), *folder.glob("*.json.partial-*")]
    for path in [folder / name for name in replaced] + unfinished:
        if path not in named:
            path.unlink(missing_ok=True)
    sync(folder)


@dataclass(frozen=True)
class Change:
    """What is to become of a finished folder of latents.

    Attributes:
      folder: where.
      manifest: as it stands there.
      keep: by split, bool [records].
      forgotten: what the manifest is to say.
    """

    folder: Path
    manifest: dict[str, Any]
    keep: dict[str, np.ndarray]
    forgotten: list[dict[str, Any]]

    @property
    def removed(self) -> int:
        return sum(int((~mask).sum()) for mask in self.keep.values())


def change_latents(change: Change) -> None:
    """Rewrites the shards of a folder of latents that lose records, its indexes and its manifest.

    All new files are written beside the old ones; `manifest.forgetting` then says that they are whole, and
    `finish_latents` exchanges them. Killed before it, the old latents stand; killed after it, the next call of
    `finish_latents` goes on.
    """
    folder, manifest = change.folder, change.manifest
    for path in [*folder.glob(f"*{_NEW}*"), *folder.glob(f"{FORGETTING}.partial-*")]:
        path.unlink()  # of a process that was killed before it was done
    shards = dict(manifest["shards"])
    unreadable = {}
    for split, keep in change.keep.items():
        bad = [(int(i), *rest) for i, *rest in manifest["unreadable"].get(split, [])]
        position = np.cumsum(keep) - 1
        if bad := [(int(position[i]), *rest) for i, *rest in bad if keep[i]]:
            unreadable[split] = bad
        if keep.all():
            continue
        if not keep.any():
            del shards[split]
            continue
        lengths = manifest["shards"][split]
        parts = np.split(keep, np.cumsum(lengths)[:-1])
        shards[split] = [int(part.sum()) for part in parts]
        for number, part in enumerate(parts):
            if not part.all():
                path = folder / shard_name(split, number, len(lengths))
                rewrite(path, path.with_name(path.name + _NEW), part, "group_size:1,uncompressed")
        path = folder / f"{split}.index.safetensors"
        index = {name: np.ascontiguousarray(column[keep]) for name, column in load_file(path).items()}
        save_file(index, path.with_name(path.name + _NEW))
        sync(path.with_name(path.name + _NEW))
    told = manifest | {"shards": shards, "unreadable": unreadable, "forgotten": change.forgotten}
    with atomic_write(folder / FORGETTING, durable=True) as partial:
        partial.write_text(json.dumps(told, indent=1))
    finish_latents(folder)


def finish_latents(folder: Path) -> None:
    """Exchanges the files that `change_latents` has written; does nothing where there is none to exchange."""
    if not (folder / FORGETTING).exists():
        return
    manifest = json.loads((folder / FORGETTING).read_text())
    for path in folder.glob(f"*{_NEW}"):
        os.replace(path, path.with_name(path.name.removesuffix(_NEW)))
    for path in foreign_files(folder, manifest):
        if path.name != FORGETTING and path.suffix in (".array_record", ".safetensors"):
            path.unlink()  # of a split that is empty now
    sync(folder)
    os.replace(folder / FORGETTING, folder / MANIFEST)
    sync(folder)


def clear_unfinished(folder: Path) -> bool:
    """Deletes what was encoded so far in an unfinished folder of latents: its shards would count records anew.

    Returns:
      Whether there was anything.
    """
    paths = [path for path in folder.iterdir() if not path.name.startswith("lock-")]
    for path in paths:
        path.unlink()
    sync(folder)
    return bool(paths)
