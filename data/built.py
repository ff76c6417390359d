"""A built data set on disk."""

import hashlib
import importlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfflow.data import report
from selfflow.data.dataset import Dataset
from selfflow.data.records import Records
from selfflow.data.stored import INFO
from selfflow.errors import UserError
from selfflow.storage.mirror import fetch_folder, publish_folder

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

DELETED = "deleted.json"


@dataclass(frozen=True)
class BuiltDataset:
    """A built data set, whose records are read on demand. It can be sent to worker processes.

    Attributes:
      settings: settings of the data set.
      name: NAME/CONFIG/VERSION, as TFDS writes it.
      folder: folder of its shards.
      splits: number of records of each split that is not empty.
      metadata: metadata of the builder, such as the names of classes.
    """

    settings: Dataset
    name: str
    folder: Path
    splits: dict[str, int]
    metadata: dict[str, Any]

    def records(self, split: str) -> Records:
        """Returns the records of a split, with random access."""
        return Records(self.settings, self.folder, split)

    def modalities(self) -> set[str]:
        """Returns the modalities of training records, by the report of the build if there is one, else by the
        settings."""
        path = self.folder / report.FILE
        if not path.exists():
            return set(self.settings.media_shapes())
        modalities = set()
        for content, count in json.loads(path.read_text(encoding="utf-8"))["records"]["train"].items():
            if count:
                modalities |= set(re.split(" with | and ", content))
        return modalities

    @property
    def fingerprint(self) -> str:
        """Hash that identifies the build; deletions do not change it."""
        deletions = read_deleted(self.folder)
        if deletions is not None:
            return deletions["fingerprint"]
        return hashlib.sha256((self.folder / INFO).read_bytes()).hexdigest()[:16]

    @property
    def deleted(self) -> list[dict[str, Any]]:
        """Deletions since the build, oldest first, each with the number of samples, the date and a hash of the ids."""
        return (read_deleted(self.folder) or {"deleted": []})["deleted"]


def read_deleted(folder: Path) -> dict[str, Any] | None:
    """Returns the content of `deleted.json`; None if the file does not exist.

    Raises:
      UserError: the file is damaged.
    """
    path = folder / DELETED
    try:
        deletions = json.loads(path.read_text(encoding="utf-8"))
        deletions["fingerprint"]
        for entry in deletions["deleted"]:
            entry["count"], entry["when"], entry["ids"]
        return deletions
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}): remove {folder} and build again, then delete the samples again"
        ) from error


def load_builder(settings: Dataset, data_dir: Path) -> "tfds.core.DatasetBuilder":
    """Returns the prepared TFDS builder of a data set below `data_dir`; builds only what does not exist.

    Calls `build` of `data/KIND/builder.py`, which no other function imports.

    Raises:
      UserError: as raised by the builder.
    """
    module = importlib.import_module(f"selfflow.data.{settings.kind}.builder")
    return module.build(settings, Path(data_dir))


def build(settings: Dataset, data_dir: Path, recorded: str = "") -> BuiltDataset:
    """Builds a data set, or opens it if it exists.

    Args:
      settings: settings of the data set.
      data_dir: folder of data sets.
      recorded: name of the data set that a run was trained on (see `BuiltDataset.name`). If it exists, it is opened
        even if its source files have changed; a line on stderr then reports the change.

    Raises:
      UserError: the split train is empty, the description is damaged, or as raised by the builder.
    """
    from google.protobuf.json_format import ParseError

    fetch_folder(data_dir, INFO)
    try:
        if recorded and (data_dir / recorded / INFO).is_file():
            builder = _open_recorded(settings, data_dir, recorded)
        else:
            builder = load_builder(settings, data_dir)
    except ParseError as error:  # TFDS does not name the file
        damaged = [str(path) for path in (data_dir / settings.kind).rglob(INFO) if not _is_json(path)]
        raise UserError(f"{', '.join(damaged) or data_dir} is damaged: remove its folder and build again") from error
    if not (Path(builder.data_dir) / INFO).exists():
        raise UserError(f"{builder.data_dir} has no dataset_info.json: remove this folder and build again")
    publish_folder(Path(builder.data_dir), INFO)
    # TFDS also lists empty splits.
    splits = {split: info.num_examples for split, info in builder.info.splits.items() if info.num_examples}
    if "train" not in splits:
        raise UserError(f"{builder.info.full_name}: its split train is empty; {builder.data_dir}")
    metadata = dict(builder.info.metadata or {})
    return BuiltDataset(settings, builder.info.full_name, Path(builder.data_dir), splits, metadata)


def _open_recorded(settings: Dataset, data_dir: Path, name: str) -> "tfds.core.DatasetBuilder":
    from selfflow.data.tfds.builder import PreparedBuilder

    folder = data_dir / name
    if settings.source_changed(folder):
        print(
            f"{settings.kind}: the files in {settings.source_folder(data_dir)} have changed since {folder} was built: "
            "this run keeps its data set; new runs build another",
            file=sys.stderr,
        )
    return PreparedBuilder(builder_dir=str(folder))


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
