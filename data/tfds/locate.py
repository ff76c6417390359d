"""Finds a prepared TFDS data set on disk, without importing TFDS."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from selfflow.errors import UserError

FORMAT = "array_record"
_INFO = "dataset_info.json"


class DatasetName(NamedTuple):
    """Name, config and version of a TFDS data set; config and version are "" where they are not given."""

    name: str
    config: str
    version: str


def parse_name(text: str) -> DatasetName:
    """Parses NAME, NAME/CONFIG or NAME/CONFIG:VERSION.

    Raises:
      UserError: the text has another form.
    """
    match = re.fullmatch(r"([A-Za-z]\w*)(?:/([^/:]+))?(?::(\d+\.\d+\.\d+))?", text)
    if match is None:
        raise UserError(f"tfds.name = {text!r}: must be NAME, NAME/CONFIG or NAME/CONFIG:1.0.0")
    return DatasetName(match[1], match[2] or "", match[3] or "")


def find_prepared(dataset: DatasetName, roots: list[Path]) -> Path | None:
    """Returns the folder of a prepared data set in the first of some data folders, ArrayRecord before other formats and
    newer versions before older ones; None if there is none.

    Args:
      dataset: name of the data set.
      roots: data folders of TFDS, or the folder of the data set itself.

    Raises:
      UserError: several configs are prepared and the name does not choose one.
    """
    prepared: list[Path] = []
    for root in roots:
        # The root may be the folder of the data set itself.
        if (root / _INFO).exists():
            prepared.append(root)
            continue
        folder = root / dataset.name / dataset.config
        if not dataset.config and not list(folder.glob(f"*/{_INFO}")):
            configs = sorted({path.parent.parent.name for path in folder.glob(f"*/*/{_INFO}")})
            if len(configs) > 1:
                raise UserError(
                    f"tfds.name = {dataset.name!r}: several configs are prepared in {folder}; choose "
                    f"{dataset.name}/{configs[0]} or another"
                )
            folder = folder / configs[0] if configs else folder
        versions = [path.parent for path in folder.glob(f"{dataset.version or '*'}/{_INFO}")]
        prepared += sorted(filter(_version, versions), key=_version, reverse=True)
    # Another file format is returned last, so that the caller can name it in an error.
    for folder in prepared:
        if format_of(folder) == FORMAT:
            return folder
    return prepared[0] if prepared else None


def format_of(folder: Path) -> str:
    """Returns the file format of a prepared data set, such as "array_record" or "tfrecord".

    Raises:
      UserError: its dataset_info.json is damaged.
    """
    try:
        return json.loads((folder / _INFO).read_text(encoding="utf-8")).get("fileFormat") or "tfrecord"
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / _INFO} cannot be read: prepare the data set again") from error


def _version(folder: Path) -> tuple[int, ...]:
    """Returns the version that names a folder, as integers; () if it is not a version."""
    parts = folder.name.split(".")
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else ()
