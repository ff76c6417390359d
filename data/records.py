"""The records of a built data set, one by one, whichever data set it is and however some of its shards are damaged."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from selfflow.data.dataset import Dataset
from selfflow.data.shards import BadRecord, ShardReader, one_line
from selfflow.errors import UserError


class Records(Sequence):
    """Random access to one split of a built data set: `records[i]` is a record in the common form.

    That is a dict with `id` (str), the modalities that the data set has, `present`, `quality`, integer labels, and
    `caption` (str) where there is one. Travels to other processes; files are opened when they are first needed.
    Never imports TensorFlow.

    Args:
      settings: the dataclass that made the data set.
      folder: where its shards lie, `builder.data_dir`.
      split: which split.

    Raises:
      UserError: on first use, if there is no prepared data set in `folder`, or no such split in it.
      BadRecord: from `records[i]` and `raw(i)`, if record i cannot be read; others are not touched by that.
    """

    def __init__(self, settings: Dataset, folder: Path, split: str):
        self._settings, self._folder, self._split = settings, Path(folder), split
        self._shards: ShardReader | None = None
        self._decode: Callable[[bytes], dict[str, Any]] | None = None

    def __getstate__(self) -> tuple:
        return self._settings, self._folder, self._split

    def __setstate__(self, state: tuple) -> None:
        self.__init__(*state)

    def __len__(self) -> int:
        return len(self._opened())

    def __getitem__(self, i: int) -> dict[str, Any]:
        raw = self.raw(i)
        if self._decode is None:
            self._decode = self._settings.decoder(self._folder)
        try:
            return self._decode(raw)
        except UserError:
            raise
        except Exception as error:  # whatever the bytes are, what they do to a decoder is about this record
            raise BadRecord(self.shard_of(i), f"record {i} cannot be decoded: {one_line(error)}") from error

    def raw(self, i: int) -> bytes:
        """Record i as it is stored, serialized."""
        return self._opened()[i]

    def shard_of(self, i: int) -> str:
        """Name of the file that holds record i."""
        return self._opened().shard_of(i)

    def _opened(self) -> ShardReader:
        if self._shards is not None:
            return self._shards
        from tensorflow_datasets.core import naming
        from tensorflow_datasets.core.splits import SplitInfo

        path = self._folder / "dataset_info.json"
        try:
            info = json.loads(path.read_text())
            found = {split["name"]: split for split in info.get("splits", [])}
            name = info["name"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} does not tell of a data set ({one_line(error)}): build it again") from error
        if self._split not in found:
            raise UserError(f"{self._folder} has no split {self._split!r}; choose from {', '.join(found) or 'none'}")
        split = found[self._split]
        lengths = [int(length) for length in split.get("shardLengths", [])]
        template = naming.ShardedFileTemplate(
            dataset_name=name,
            data_dir=self._folder,
            split=self._split,
            filetype_suffix="array_record",
            **({"template": split["filepathTemplate"]} if split.get("filepathTemplate") else {}),
        )
        shards = SplitInfo(name=self._split, shard_lengths=lengths, num_bytes=0, filename_template=template)
        self._shards = ShardReader([Path(path) for path in shards.filepaths] if lengths else [], lengths)
        return self._shards
