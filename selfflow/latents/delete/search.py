"""Searches a data set and its latents for ids of deleted samples."""

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file

from selfflow.data.built import BuiltDataset
from selfflow.data.shards import BadRecord
from selfflow.latents.ids import decode_ids, format_id

_SHORT_BYTES = 8  # shorter ids occur in large files by chance
_BLOCK_BYTES = 16 << 20


def _no_progress() -> None:
    pass


def find_remaining(
    built: BuiltDataset, folders: Iterable[Path], ids: Collection[str], advance: Callable[[], None] = _no_progress
) -> list[str]:
    """Returns the places where ids still occur.

    Every record of the data set is read: its id is compared, and its decompressed bytes are searched. The ids in
    indexes of latents are compared, and all files of all folders are searched as bytes. Ids of fewer than 8 bytes are
    only compared.

    Args:
      built: the present data set.
      folders: folders of latents.
      ids: ids that must not occur.
      advance: called after each record.

    Returns:
      A line for each place; empty if there is none.
    """
    folders = list(folders)
    words = _written_forms(built, ids)
    pattern = _pattern(words)
    lines, remaining, matches = _search_records(built, ids, pattern, advance)
    # An id may be part of the longer id of a remaining sample, which is not a match. Matches are therefore decided once
    # the ids of all records are known.
    longer: list[bytes] = []
    if pattern:
        longer = [word for word in (form.encode() for form in _written_forms(built, remaining)) if pattern.search(word)]
    for split, i, name in matches:
        records = built.records(split)
        if _contains(records.raw(i), pattern, longer):
            lines.append(f"{records.shard_of(i)}: inside the record {format_id(name)}")
    for folder in folders:
        lines += _search_indexes(folder, ids)
    if pattern:
        sizes = [len(word.encode()) for word in words] + [len(name) for name in longer]
        overlap = 1 + max(sizes)
        for folder in (built.folder, *folders):
            for path in sorted(folder.rglob("*")):
                if path.is_file() and _in_file(path, pattern, longer, overlap):
                    lines.append(f"{path.relative_to(folder.parent)}: in its bytes")
    return lines


def _search_records(
    built: BuiltDataset, ids: Collection[str], pattern: re.Pattern[bytes] | None, advance: Callable[[], None]
) -> tuple[list[str], set[str], list[tuple[str, int, str]]]:
    """Reads all records of a data set.

    Returns:
      Lines about records of these ids and unreadable ones; the ids of all records; and (split, number, id) of the
      records in whose bytes the pattern occurs.
    """
    lines: list[str] = []
    names: set[str] = set()
    matches: list[tuple[str, int, str]] = []
    for split in built.splits:
        records = built.records(split)
        for i in range(len(records)):
            try:
                name, raw = records[i]["id"], records.raw(i)
            except BadRecord as error:
                lines.append(f"{error.shard}: record {i} of {split} cannot be searched: {error.reason}")
                continue
            names.add(name)
            if name in ids:
                lines.append(f"{records.shard_of(i)}: the record {format_id(name)}")
            elif pattern and pattern.search(raw):
                matches.append((split, i, name))
            advance()
    return lines, names, matches


def _search_indexes(folder: Path, ids: Collection[str]) -> Iterator[str]:
    """Yields lines about index rows with these ids in a folder of latents, and about unreadable indexes."""
    for path in folder.glob("*.index.safetensors"):
        try:
            rows = {row.decode(errors="replace") for row in decode_ids(load_file(path)["id"])}
        except (OSError, SafetensorError, KeyError) as error:
            yield f"{folder.name}/{path.name}: it cannot be searched: {error}"
            continue
        for name in sorted(rows & set(ids)):
            yield f"{folder.name}/{path.name}: the row of {format_id(name)}"


def _written_forms(built: BuiltDataset, ids: Collection[str]) -> set[str]:
    """Returns ids as stored in records, and as in JSON files, which escape characters other than ASCII."""
    forms = set()
    for name in ids:
        stored = _stored_id(built, name)
        forms |= {stored, json.dumps(stored)[1:-1]}
    return forms


def _stored_id(built: BuiltDataset, name: str) -> str:
    """Returns the id as stored in the record, without the prefix that decoding adds."""
    return name.removeprefix(built.settings.id_prefix)


def _in_file(path: Path, pattern: re.Pattern[bytes], longer: list[bytes], overlap: int) -> bool:
    """Whether an id occurs in a file, which is read in blocks that overlap by twice the longest id."""
    with path.open("rb") as file:
        data = file.read(_BLOCK_BYTES)
        block = file.read(_BLOCK_BYTES)
        while block:
            # A match near the end may be part of a longer id: it is searched again with the next block.
            if _contains(data, pattern, longer, len(data) - overlap):
                return True
            data = data[-2 * overlap :] + block
            block = file.read(_BLOCK_BYTES)
    return _contains(data, pattern, longer)


def _contains(data: bytes, pattern: re.Pattern[bytes], longer: list[bytes], end: int | None = None) -> bool:
    """Whether data[:end] contains the start of an id that is not part of one of the `longer` ids."""
    for match in pattern.finditer(data):
        start, stop = match.span()
        if end is not None and start >= end:
            continue
        # A longer id that contains the match lies within its length on either side.
        is_part = False
        for name in longer:
            if data.find(name, max(0, stop - len(name)), start + len(name)) >= 0:
                is_part = True
                break
        if not is_part:
            return True
    return False


def _pattern(ids: Iterable[str]) -> re.Pattern[bytes] | None:
    """Compiles a regular expression that matches any id of sufficient length, as a prefix tree.

    With a prefix tree the number of comparisons per byte hardly depends on the number of ids.
    """
    encoded = {name.encode() for name in ids}
    words = sorted(word for word in encoded if len(word) >= _SHORT_BYTES)
    return re.compile(_prefix_tree(words)) if words else None


def _prefix_tree(words: list[bytes]) -> bytes:
    """Builds a regular expression for the sorted words; a word that is a prefix of others matches in place of them."""
    shared = len(os.path.commonprefix([words[0], words[-1]]))
    start = re.escape(words[0][:shared])
    if len(words[0]) == shared:
        return start
    # Branch at the first byte that differs.
    groups: dict[int, list[bytes]] = {}
    for word in words:
        groups.setdefault(word[shared], []).append(word[shared:])
    branches = [_prefix_tree(group) for group in groups.values()]
    return start + b"(?:" + b"|".join(branches) + b")"
