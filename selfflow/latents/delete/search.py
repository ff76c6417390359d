"""Searches what is left of a data set and its latents for the ids of samples that were forgotten."""

import os
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file

from selfflow.data.built import BuiltDataset
from selfflow.data.shards import BadRecord
from selfflow.latents.store import ids_from

_SHORT = 8  # bytes; shorter ids stand in much data by chance
_BLOCK = 16 << 20


def find_remaining(
    built: BuiltDataset, folders: Iterable[Path], ids: Collection[str], advance: Callable[[], None] = lambda: None
) -> list[str]:
    """Where ids still stand.

    Every record of the data set is read: its id is compared, and its decompressed bytes are searched. Indexes of
    latents are compared, and all files of all folders are searched as bytes.
    Ids of fewer than 8 bytes are only compared.

    Args:
      built: the data set, as it is now.
      folders: of latents.
      ids: those that must not be found.
      advance: called after each record.

    Returns:
      A line for each place; none if all are gone.
    """
    folders, found = list(folders), []
    pattern = _pattern({_in_record(built, i) for i in ids})
    names: dict[str, list[str]] = {split: [] for split in built.splits}
    hits: list[tuple[str, int, str]] = []
    for split in built.splits:
        records = built.records(split)
        for i in range(len(records)):
            try:
                name, raw = records[i]["id"], records.raw(i)
            except BadRecord as error:
                found.append(f"{error.shard}: record {i} of {split} cannot be searched: {error.reason}")
                continue
            names[split].append(name)
            if name in ids:
                found.append(f"{records.shard_of(i)}: the record {name}")
            elif pattern and pattern.search(raw):
                hits.append((split, i, name))
            advance()
    remaining = {name for some in names.values() for name in some}
    # An id may be part of another one, of a sample that stays.
    covers = [c.encode() for c in {_in_record(built, n) for n in remaining} if pattern and pattern.search(c.encode())]
    for split, i, name in hits:
        records = built.records(split)
        if _found(records.raw(i), pattern, covers):
            found.append(f"{records.shard_of(i)}: inside the record {name}")
    for folder in folders:
        for path in folder.glob("*.index.safetensors"):
            try:
                rows = {row.decode(errors="replace") for row in ids_from(load_file(path)["id"])}
            except (OSError, SafetensorError, KeyError) as error:
                found.append(f"{folder.name}/{path.name}: it cannot be searched: {error}")
                continue
            found += [f"{folder.name}/{path.name}: the row of {name}" for name in sorted(rows & set(ids))]
    overlap = 1 + max(map(len, [*(i.encode() for i in ids), *covers]))
    for folder in (built.folder, *folders) if pattern else ():
        for path in (p for p in sorted(folder.rglob("*")) if p.is_file()):
            if _in_file(path, pattern, covers, overlap):
                found.append(f"{path.relative_to(folder.parent)}: in its bytes")
    return found


def _in_record(built: BuiltDataset, name: str) -> str:
    """The id as it is stored in the record, without what decoding puts before it."""
    return name.removeprefix(built.settings.id_prefix)


def _in_file(path: Path, pattern: re.Pattern[bytes], covers: list[bytes], overlap: int) -> bool:
    with path.open("rb") as file:
        data = file.read(_BLOCK)
        while block := file.read(_BLOCK):
            # What is found near the end may be part of a longer id: it is looked at with the next block.
            if _found(data, pattern, covers, len(data) - overlap):
                return True
            data = data[-2 * overlap :] + block
    return _found(data, pattern, covers)


def _found(data: bytes, pattern: re.Pattern[bytes], covers: list[bytes], end: int | None = None) -> bool:
    """Whether an id begins in data[:end] that is not part of one of the `covers`."""
    for match in pattern.finditer(data):
        start, stop = match.span()
        if (end is None or start < end) and all(
            data.find(cover, max(0, stop - len(cover)), start + len(cover)) < 0 for cover in covers
        ):
            return True
    return False


def _pattern(ids: Iterable[str]) -> re.Pattern[bytes] | None:
    """Finds any of the ids, however many: as a tree of what they share, every byte is looked at a few times only."""
    words = sorted({i.encode() for i in ids if len(i.encode()) >= _SHORT})
    return re.compile(_tree(words)) if words else None


def _tree(words: list[bytes]) -> bytes:
    """An expression for any of the sorted `words`; a word that another one begins with stands for both."""
    shared = len(os.path.commonprefix([words[0], words[-1]]))
    start = re.escape(words[0][:shared])
    if len(words[0]) == shared:
        return start
    groups: dict[int, list[bytes]] = {}
    for word in words:
        groups.setdefault(word[shared], []).append(word[shared:])
    return start + b"(?:" + b"|".join(_tree(group) for group in groups.values()) + b")"
