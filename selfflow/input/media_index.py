"""Indexes of built data sets: modalities of each record; cached, as computing one takes a pass over all records."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from selfflow.data.built import BuiltDataset
from selfflow.data.dataset import Dataset
from selfflow.data.features import read_features, read_specs
from selfflow.data.shards import BadRecord, one_line
from selfflow.latents.encode import folder_name
from selfflow.latents.ids import decode_ids, encode_ids
from selfflow.progress import Progress
from selfflow.serialization import digest
from selfflow.storage.atomic import atomic_write

_FORMAT = 1  # increment when the index of an unchanged data set changes

Index = dict[str, np.ndarray]


class _Row(NamedTuple):
    """One record: its id and quality, and whether it has each modality."""

    id: str
    quality: float
    present: dict[str, bool]


def media_index(built: BuiltDataset, split: str, folder: Path) -> Index:
    """Returns the columns [n] of a split: `id` (bytes), `quality` and `present/M`; unreadable records have no modality.

    Args:
      built: the data set.
      split: name of the split.
      folder: folder of the cached indexes.
    """
    key = digest([_FORMAT, built.fingerprint, built.deleted, built.settings.decoding_options()], 12)
    path = folder / f"{folder_name(built.name)}-{split}-{key}.safetensors"
    try:
        index = load_file(path)
    except (OSError, SafetensorError):
        rows, unreadable = _read_rows(built, split)
        index = _columns(rows)
        if not unreadable:  # unreadable records may be repaired before the next time
            _write(index, path)
    return index | {"id": decode_ids(index["id"])}


def _read_rows(built: BuiltDataset, split: str) -> tuple[list[_Row], int]:
    """Reads the index rows of all records, and counts unreadable records."""
    records, rows, unreadable = built.records(split), [], 0
    features = None
    if type(built.settings).decoder is Dataset.decoder:
        # The default decoder can decode the small fields of the index without the media.
        names = [name for name in read_specs(built.folder) if name in ("id", "quality") or name.startswith("present.")]
        features = read_features(built.folder, only=names)
    with Progress(f"index {built.name.split('/')[0]} {split}", len(records), unit="record") as shown:
        for i in range(len(records)):
            try:
                record = _decode(features, records.raw(i), records.shard_of(i)) if features else records[i]
            except BadRecord:
                unreadable += 1
                rows.append(_Row("", 0.0, {}))
            else:
                name = record["id"]
                name = name.decode() if isinstance(name, bytes) else name
                present = {m: bool(value) for m, value in record["present"].items()}
                rows.append(_Row(name, float(record["quality"]), present))
            shown.advance()
    return rows, unreadable


def _decode(features: Any, raw: bytes, shard: str) -> dict[str, Any]:
    try:
        return features.deserialize_example_np(raw)
    except Exception as error:  # damaged bytes make the decoder raise errors of many kinds
        raise BadRecord(shard, one_line(error)) from error


def _columns(rows: list[_Row]) -> Index:
    index = {
        "id": encode_ids([row.id for row in rows]),
        "quality": np.array([row.quality for row in rows], np.float32),
    }
    modalities = set()
    for row in rows:
        modalities |= row.present.keys()
    for m in modalities:
        index[f"present/{m}"] = np.array([row.present.get(m, False) for row in rows], bool)
    return index


def _write(index: Index, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            partial.write_bytes(save(index))
    except OSError as error:  # not fatal: the next command computes it again
        print(f"note: {path} cannot be written ({error.strerror})", file=sys.stderr)
