"""Latents on disk: every record of a data set, encoded once, with the autoencoders that encoded it.

A folder of latents holds `manifest.json` (written last; a folder without it is unfinished), the autoencoders, and
for each split `SPLIT-00000-of-00003.array_record`, ... and `SPLIT.index.safetensors`. A record is a safetensors blob:
for each modality M of the record `M` [...], float16, and `M.std` if the autoencoder is stochastic; `M.features` [...,
E] if alignment uses a frozen encoder; `caption` [l, C] if the record has a caption. A folder is self-contained and can
be moved.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, load_file

from selfflow.autoencoders.config import AnyAutoencoder, Autoencoder, config_without_path
from selfflow.autoencoders.load import load_autoencoder
from selfflow.data.shards import BadRecord, ShardReader
from selfflow.encoders.text.config import Text
from selfflow.errors import UserError
from selfflow.latents.ids import decode_ids
from selfflow.modality import Modality
from selfflow.serialization import digest, to_json

MANIFEST = "manifest.json"
NEXT_MANIFEST = "manifest.next"  # the next manifest while `selfflow data delete` runs
INDEX_FOLDER = "indexes"  # in the cache folder: indexes of data sets that autoencoders train on
CAPTION = "caption"


class Latents:
    """A finished folder of latents.

    Args:
      path: the folder.
      exclude: ids of samples that are never read.

    Attributes:
      manifest: data set, autoencoder identities, shard lengths per split, statistics, reconstruction quality.

    Raises:
      UserError: if the folder holds no finished latents.
    """

    def __init__(self, path: Path, exclude: Collection[str] = ()):
        self.path, self.exclude = path, np.array([i.encode() for i in exclude], bytes)
        self._splits: dict[str, LatentSource] = {}
        if (path / NEXT_MANIFEST).exists():
            raise UserError(f"{path}: a deletion of samples was interrupted: run that `selfflow data delete` again")
        try:
            self.manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{path} holds no finished latents (no {MANIFEST}): run `selfflow encode`") from error
        except json.JSONDecodeError as error:
            raise UserError(f"{path / MANIFEST} is damaged: remove {path} and encode again") from error

    @property
    def hash(self) -> str:
        """Hash of the data set, its records and the networks that encoded them, without features."""
        parts = ("dataset", "fingerprint", "shards", "modalities", "text", "deleted")
        return digest({name: self.manifest[name] for name in parts})

    @property
    def features(self) -> dict[str, str]:
        """Identity of the stored features, by modality."""
        return {m: entry["identity"] for m, entry in self.manifest["features"].items()}

    @property
    def records(self) -> dict[str, int]:
        """Number of records of each split."""
        return {split: sum(lengths) for split, lengths in self.manifest["shards"].items()}

    def index(self, split: str) -> dict[str, np.ndarray]:
        """Columns [n] of a split: `id` (bytes), `quality`, `present/M`, `frames/M`, `label/F`, `caption` (length)."""
        path = self.path / f"{split}.index.safetensors"
        try:
            index = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is missing or damaged ({error}): remove {self.path} and encode again") from error
        index["id"] = decode_ids(index["id"])
        return index

    def open_split(self, split: str) -> "LatentSource":
        """Opens a split for random access; later calls return the same source."""
        if split not in self._splits:
            index = self.index(split)
            lengths = self.manifest["shards"][split]
            if len(index["id"]) != sum(lengths):
                raise UserError(
                    f"{self.path / split}: index and shards differ in length: remove {self.path}, encode again"
                )
            excluded = np.isin(index["id"], self.exclude)
            self._splits[split] = LatentSource(self.path, split, lengths, index, excluded)
        return self._splits[split]

    def autoencoder_path(self, modality: str) -> Path | None:
        """File of the autoencoder of a modality; None for latents that were computed elsewhere without one."""
        if self.manifest["modalities"][modality]["autoencoder"]["kind"] == "precomputed":
            return None
        return self.path / f"autoencoder_{modality}.safetensors"

    def autoencoder(self, modality: str, config: AnyAutoencoder) -> Autoencoder:
        """Loads the autoencoder that encoded a modality."""
        path = self.autoencoder_path(modality) or self.path
        try:
            autoencoder = load_autoencoder(config, path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is missing or damaged ({error}): remove {self.path} and encode again") from error
        identity = self.manifest["modalities"][modality]["identity"]
        if autoencoder.identity != identity:
            raise UserError(
                f"{path} is {autoencoder.identity}, but the latents were made by {identity}: remove {self.path} and "
                "encode again"
            )
        return autoencoder

    def check(
        self,
        configs: Mapping[str, AnyAutoencoder],
        modalities: Mapping[str, Modality],
        text: Text | None = None,
        identity: str | None = None,
    ) -> None:
        """Checks that these latents fit an experiment.

        Args:
          configs: autoencoder of each modality.
          modalities: shapes and periods of the latents.
          text: config of the caption encoder, or None if the experiment has no captions.
          identity: identity of the caption encoder; None if it is not on this machine.

        Raises:
          UserError: naming what differs.
        """
        for m, config in configs.items():
            entry = self.manifest["modalities"].get(m)
            if entry is None:
                continue  # no record has it; `Batches` raises an error if the mixture uses it
            timed = bool(modalities[m].period)  # clips may differ in length
            self._check_equal(m, "autoencoder", entry["autoencoder"], config_without_path(config))
            self._check_equal(m, "resolution", entry["latent"][timed:], list(modalities[m].latent[timed:]))
            self._check_equal(m, "frame rate (period in 10 ms)", entry["period"], modalities[m].period)
        entry = self.manifest["text"] or {"settings": None, "identity": None}
        tokens = (entry["settings"] or {}).get("tokens")
        if text is not None and (tokens != text.tokens or identity not in (None, entry["identity"])):
            raise UserError(
                f"{self.path}: its captions were encoded by {entry['identity']} ({entry['settings']}), the "
                f"experiment's text is {identity or ''} ({to_json(text)}); encode again or change the experiment"
            )

    def _check_equal(self, m: str, what: str, stored: Any, expected: Any) -> None:
        if stored != expected:
            raise UserError(
                f"{self.path}: its {m} latents have another {what}: {stored} there, {expected} in the experiment; "
                "encode again or change the experiment"
            )


class LatentSource:
    """Random access to one split: `source[i]` is record i, {name: array}.

    Raises:
      BadRecord: from `source[i]`, if the record cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        lengths: list[int],
        index: dict[str, np.ndarray],
        excluded: np.ndarray | None = None,
    ):
        self.folder, self.split, self.index = folder, split, index
        self.excluded = np.zeros(len(index["id"]), bool) if excluded is None else excluded
        count = len(lengths)
        self._shards = ShardReader([folder / shard_name(split, number, count) for number in range(count)], lengths)

    @property
    def remedy(self) -> str:
        """Remedy for unreadable records, for error messages."""
        return f"remove {self.folder} and encode again, or copy it again"

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes read records by number: they need no index, which may be large.
        return self.__dict__ | {"index": {}, "excluded": None}

    def __len__(self) -> int:
        return len(self._shards)

    def shard_of(self, i: int) -> str:
        """Name of the file that holds record i."""
        return self._shards.shard_of(i)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        raw = self._shards[i]
        try:
            return load(raw)
        except Exception as error:  # damaged bytes make the decoder raise errors of many kinds
            raise BadRecord(self.shard_of(i), f"record {i} cannot be decoded: {error}".splitlines()[0]) from error

    def indices_with(self, modalities: tuple[str, ...], quality: float = 0.0) -> np.ndarray:
        """Returns the numbers of records with all `modalities` and at least this quality, without excluded ones."""
        present = [self.index.get(f"present/{m}", np.zeros(len(self), bool)) for m in modalities]
        return np.flatnonzero(np.logical_and.reduce(present) & (self.index["quality"] >= quality) & ~self.excluded)

    def id(self, i: int) -> str:
        """Id of record i."""
        return self.index["id"][i].decode(errors="replace")


def shard_name(split: str, number: int, count: int) -> str:
    """Returns the file name of a shard, numbered as in TFDS."""
    return f"{split}-{number:05d}-of-{count:05d}.array_record"
