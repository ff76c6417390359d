"""How TFDS keeps a data set on disk: its description and the shards that it names."""

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
    """One split as `dataset_info.json` tells of it: its files and the records in each."""

    name: str
    paths: list[Path]
    lengths: list[int]
    size: int
    template: str


def read_info(folder: Path) -> dict[str, Any]:
    """What `dataset_info.json` says.

    Raises:
      UserError: if it is missing or damaged.
    """
    path = folder / INFO
    try:
        info = json.loads(path.read_text())
        info["name"], [(s["name"], [int(n) for n in s.get("shardLengths", [])]) for s in info.get("splits", [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is missing or damaged ({error}): remove {folder} and build again") from error
    return info


def read_splits(folder: Path, info: dict[str, Any] | None = None) -> dict[str, StoredSplit]:
    """The splits of a data set, those without records too.

    Raises:
      UserError: if `dataset_info.json` is missing or damaged.
    """
    info = read_info(folder) if info is None else info
    found = {}
    for split in info.get("splits", []):
        lengths = [int(length) for length in split.get("shardLengths", [])]
        template = split.get("filepathTemplate", "")
        paths = shard_paths(folder, info, split["name"], template, len(lengths))
        found[split["name"]] = StoredSplit(split["name"], paths, lengths, int(split.get("numBytes", 0)), template)
    return found


def shard_paths(folder: Path, info: dict[str, Any], split: str, template: str, count: int) -> list[Path]:
    """The `count` files of a split, named by a template of TFDS; "" is its default."""
    from tensorflow_datasets.core import naming

    named = naming.ShardedFileTemplate(
        dataset_name=info["name"], data_dir=folder, split=split, filetype_suffix="array_record", template=template
    )
    return [Path(path) for path in named.sharded_filepaths(num_shards=count)] if count else []


def next_template(template: str) -> str:
    """A template whose files bear other names than those of this one: kept1-NAME, then kept2-NAME, and so on."""
    from tensorflow_datasets.core import naming

    head, slash, tail = (template or naming.DEFAULT_FILENAME_TEMPLATE).rpartition("/")
    before = re.match(f"{KEPT}([0-9]+)-", tail)
    number, tail = (int(before[1]), tail[before.end() :]) if before else (0, tail)
    return f"{head}{slash}{KEPT}{number + 1}-{tail}"


def leftovers(folder: Path) -> list[Path]:
    """Files of records that `dataset_info.json` does not name, and what interrupted builds left beside the folder."""
    named = {path for split in read_splits(folder).values() for path in split.paths}
    strange = [path for path in folder.rglob("*") if "array_record" in path.name and path not in named]
    return sorted(strange + list(folder.parent.glob(f"incomplete.*_{folder.name}")))
