"""The files of a prepared TFDS data set: its description in `dataset_info.json`, and the shards of its splits."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfflow.errors import UserError

INFO = "dataset_info.json"
KEPT = "kept"


@dataclass(frozen=True)
class StoredSplit:
    """One split, as `dataset_info.json` describes it.

    Attributes:
      name: name of the split.
      paths: paths of the shards.
      lengths: number of records in each.
      size: bytes of all records before compression.
      template: template of the names of the shards; "" for the default of TFDS.
    """

    name: str
    paths: list[Path]
    lengths: list[int]
    size: int
    template: str


def read_info(folder: Path) -> dict[str, Any]:
    """Returns the content of `dataset_info.json`.

    Raises:
      UserError: it is missing or damaged.
    """
    path = folder / INFO
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        # Accessed here, so that missing fields and wrong types are reported in one place.
        info["name"]
        for split in info.get("splits", []):
            split["name"], [int(length) for length in split.get("shardLengths", [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is missing or damaged ({error}): remove {folder} and build again") from error
    return info


def read_splits(folder: Path, info: dict[str, Any] | None = None) -> dict[str, StoredSplit]:
    """Returns the splits of a data set by name, including those without records.

    Args:
      folder: folder of the data set.
      info: content of its `dataset_info.json`; read by default.

    Raises:
      UserError: `dataset_info.json` is missing or damaged.
    """
    info = read_info(folder) if info is None else info
    splits = {}
    for split in info.get("splits", []):
        name, template = split["name"], split.get("filepathTemplate", "")
        lengths = [int(length) for length in split.get("shardLengths", [])]
        paths = shard_paths(folder, info, name, template, len(lengths))
        splits[name] = StoredSplit(name, paths, lengths, int(split.get("numBytes", 0)), template)
    return splits


def shard_paths(folder: Path, info: dict[str, Any], split: str, template: str, count: int) -> list[Path]:
    """Returns the paths of the `count` shards of a split, named by `template`; "" for the default of TFDS."""
    if not count:
        return []
    from tensorflow_datasets.core import naming

    files = naming.ShardedFileTemplate(
        dataset_name=info["name"], data_dir=folder, split=split, filetype_suffix="array_record", template=template
    )
    return [Path(path) for path in files.sharded_filepaths(num_shards=count)]


def next_template(template: str) -> str:
    """Returns a template whose file names differ from those of `template`: kept1-NAME, then kept2-NAME, and so on."""
    from tensorflow_datasets.core import naming

    head, slash, tail = (template or naming.DEFAULT_FILENAME_TEMPLATE).rpartition("/")
    prefix = re.match(f"{KEPT}([0-9]+)-", tail)
    number, tail = (int(prefix[1]), tail[prefix.end() :]) if prefix else (0, tail)
    return f"{head}{slash}{KEPT}{number + 1}-{tail}"


def leftovers(folder: Path) -> list[Path]:
    """Shards that `dataset_info.json` does not name, and files of interrupted builds beside the folder."""
    named = {path for split in read_splits(folder).values() for path in split.paths}
    # Shards of an interrupted deletion, or of an older state of the data set.
    unnamed = [path for path in folder.rglob("*") if "array_record" in path.name and path not in named]
    return sorted(unnamed + list(folder.parent.glob(f"incomplete.*_{folder.name}")))
