"""A data set that lies ready on disk."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfflow.data.records import Records
from selfflow.data.stored import INFO
from selfflow.errors import UserError
from selfflow.serialization import to_json
from selfflow.storage.mirror import fetch_folder, publish_folder

DELETED = "deleted.json"


@dataclass(frozen=True)
class BuiltDataset:
    """What is known of a built data set without reading its records; travels to worker processes.

    Attributes:
      settings: the dataclass that made it.
      name: NAME/CONFIG/VERSION, as TFDS writes it.
      folder: where its shards lie.
      splits: number of records of each split that has any.
      metadata: what the builder noted, such as names of labels.
    """

    settings: Any
    name: str
    folder: Path
    splits: dict[str, int]
    metadata: dict[str, Any]

    def records(self, split: str) -> Records:
        """Random access to the records of a split."""
        return Records(self.settings, self.folder, split)

    @property
    def fingerprint(self) -> str:
        """Identity of the records as they were built; stays the same when samples are deleted."""
        told = read_deleted(self.folder)
        if told is not None:
            return told["fingerprint"]
        return hashlib.sha256((self.folder / INFO).read_bytes()).hexdigest()[:16]

    @property
    def deleted(self) -> list[dict[str, Any]]:
        """What was removed since, oldest first: number of samples, date, hash of the list of ids."""
        return (read_deleted(self.folder) or {"deleted": []})["deleted"]

    @property
    def mapping(self) -> Any:
        """Settings that decide how the same stored records are read; None where the name says it all."""
        return to_json(self.settings) if self.settings.kind == "tfds" else None


def read_deleted(folder: Path) -> dict[str, Any] | None:
    """What `deleted.json` says; None where there is none.

    Raises:
      UserError: if it is damaged.
    """
    path = folder / DELETED
    try:
        told = json.loads(path.read_text())
        told["fingerprint"], [(entry["count"], entry["when"], entry["ids"]) for entry in told["deleted"]]
        return told
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): remove {folder} and build again, then delete again") from error


def build(settings: Any, data_dir: Path) -> BuiltDataset:
    """Builds a data set, or finds it again.

    Raises:
      UserError: if its training split is empty, and whatever the builder refuses.
    """
    from google.protobuf.json_format import ParseError

    fetch_folder(data_dir, INFO)
    try:
        builder = settings.build(data_dir)
    except ParseError as error:  # TFDS does not say of which file
        where = ", ".join(str(path) for path in (data_dir / settings.kind).rglob(INFO) if _broken(path))
        raise UserError(f"{where or data_dir} is damaged: remove its folder and build again") from error
    if not (Path(builder.data_dir) / INFO).exists():
        raise UserError(f"{builder.data_dir} has lost its dataset_info.json: remove this folder and build again")
    publish_folder(Path(builder.data_dir), INFO)
    splits = {split: info.num_examples for split, info in builder.info.splits.items() if info.num_examples}
    if "train" not in splits:
        raise UserError(f"{builder.info.full_name}: its split train is empty; {builder.data_dir}")
    return BuiltDataset(
        settings, builder.info.full_name, Path(builder.data_dir), splits, dict(builder.info.metadata or {})
    )


def _broken(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return True
    return False
