"""A data set that lies ready on disk."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfflow.data.records import Records
from selfflow.errors import UserError

FORGOTTEN = "forgotten.json"


@dataclass(frozen=True)
class Built:
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
        """Identity of the records as they were built; stays the same when samples are forgotten."""
        if (self.folder / FORGOTTEN).exists():
            return json.loads((self.folder / FORGOTTEN).read_text())["fingerprint"]
        return hashlib.sha256((self.folder / "dataset_info.json").read_bytes()).hexdigest()[:16]

    @property
    def forgotten(self) -> list[dict[str, Any]]:
        """What was removed since, oldest first: number of samples, date, hash of the list of ids."""
        path = self.folder / FORGOTTEN
        return json.loads(path.read_text())["forgotten"] if path.exists() else []


def build(settings: Any, data_dir: Path) -> Built:
    """Builds a data set, or finds it again.

    Raises:
      UserError: if its training split is empty, and whatever the builder refuses.
    """
    builder = settings.build(data_dir)
    splits = {split: info.num_examples for split, info in builder.info.splits.items() if info.num_examples}
    if "train" not in splits:
        raise UserError(f"{builder.info.full_name}: its split train is empty; {builder.data_dir}")
    return Built(settings, builder.info.full_name, Path(builder.data_dir), splits, dict(builder.info.metadata or {}))
