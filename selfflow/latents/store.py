"""Latents on disk: every record of a data set encoded once, beside the autoencoders that did it.

A folder of latents holds `manifest.json` (written last: without it the folder is unfinished), the autoencoders, and
for each split `SPLIT-00000-of-00003.array_record`, ... and `SPLIT.index.safetensors`. A record is a safetensors blob:
per modality M present in it M [...], float16, and `M.std` where the autoencoder is stochastic; `M.features` [..., E] of
a frozen encoder where one was asked for; `caption` [l, C] where there is one. A folder can be moved: it needs nothing
but itself.
"""

import hashlib
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
from selfflow.errors import UserError
from selfflow.modality import Modality
from selfflow.serialization import to_json

MANIFEST = "manifest.json"
FORGETTING = "manifest.forgetting"  # the next manifest, while `selfflow data delete` is at work
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
        self._sources: dict[str, LatentSource] = {}
        if (path / FORGETTING).exists():
            raise UserError(f"{path}: forgetting samples was interrupted: run that `selfflow data delete` again")
        try:
            self.manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{path} holds no finished latents (no {MANIFEST}): run `selfflow encode`") from error
        except json.JSONDecodeError as error:
            raise UserError(f"{path / MANIFEST} is damaged: remove {path} and encode again") from error

    @property
    def hash(self) -> str:
        """Identity of these latents: of the data set, its records and what encoded them; features have their own."""
        parts = ("dataset", "fingerprint", "shards", "modalities", "text", "forgotten")
        identity = {name: self.manifest[name] for name in parts}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def features(self) -> dict[str, str]:
        """Identity of the features that stand beside the latents of a modality."""
        return {m: made["identity"] for m, made in self.manifest.get("features", {}).items()}

    @property
    def records(self) -> dict[str, int]:
        """Number of records of each split."""
        return {split: sum(lengths) for split, lengths in self.manifest["shards"].items()}

    def index(self, split: str) -> dict[str, np.ndarray]:
        """Per record of a split: `id` (bytes), `quality`, `present/M`, `frames/M`, `label/F`, `caption` (length)."""
        path = self.path / f"{split}.index.safetensors"
        try:
            index = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is missing or damaged ({error}): remove {self.path} and encode again") from error
        index["id"] = ids_from(index["id"])
        return index

    def source(self, split: str) -> "LatentSource":
        """Random access to the latents of a split; opened once."""
        if split in self._sources:
            return self._sources[split]
        index = self.index(split)
        lengths = self.manifest["shards"][split]
        if len(index["id"]) != sum(lengths):
            raise UserError(f"{self.path / split}: index and shards differ in length: remove {self.path}, encode again")
        excluded = np.isin(index["id"], self.exclude)
        self._sources[split] = LatentSource(self.path, split, lengths, index, excluded)
        return self._sources[split]

    def autoencoder_path(self, modality: str) -> Path | None:
        """File of the autoencoder of a modality; None of one that is given by its latents alone."""
        if self.manifest["modalities"][modality]["autoencoder"]["kind"] == "precomputed":
            return None
        return self.path / f"autoencoder_{modality}.safetensors"

    def autoencoder(self, modality: str, config: AnyAutoencoder) -> Autoencoder:
        """The autoencoder that made the latents of a modality."""
        path = self.autoencoder_path(modality) or self.path
        try:
            loaded = load_autoencoder(config, path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is missing or damaged ({error}): remove {self.path} and encode again") from error
        if loaded.identity != self.manifest["modalities"][modality]["identity"]:
            raise UserError(
                f"{path} is {loaded.identity}, but the latents were made by "
                f"{self.manifest['modalities'][modality]['identity']}: remove {self.path} and encode again"
            )
        return loaded

    def check(
        self,
        configs: Mapping[str, AnyAutoencoder],
        modalities: Mapping[str, Modality],
        text: Any = None,
        identity: str | None = None,
    ) -> None:
        """Raises `UserError`, which names what differs, unless these latents are what an experiment asks for.

        Args:
          configs: autoencoder of each modality.
          modalities: shapes and periods of the latents.
          text: settings of the caption encoder, or None where captions are not wanted.
          identity: of that encoder; None where it is not there and the captions were encoded elsewhere.
        """
        for m, config in configs.items():
            made = self.manifest["modalities"].get(m)
            if made is None:
                continue  # a mixture that needs it will say that no record has it
            timed = bool(modalities[m].period)  # clips may have other lengths
            for what, theirs, ours in (
                ("autoencoder", made["autoencoder"], config_without_path(config)),
                ("resolution", made["latent"][timed:], list(modalities[m].latent[timed:])),
                ("frame rate (period in 10 ms)", made["period"], modalities[m].period),
            ):
                if theirs != ours:
                    raise UserError(
                        f"{self.path}: its {m} latents have another {what}: {theirs} there, {ours} in the experiment; "
                        "encode again or change the experiment"
                    )
        made = self.manifest["text"] or {"settings": None, "identity": None}
        if text is not None and (
            (made["settings"] or {}).get("tokens") != text.tokens or identity not in (None, made["identity"])
        ):
            raise UserError(
                f"{self.path}: its captions were encoded by {made['identity']} ({made['settings']}), the experiment's "
                f"text is {identity or ''} ({to_json(text)}); encode again or change the experiment"
            )


class LatentSource:
    """Random access to one split: `source[i]` is {name: array} of what record i holds.

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
        """What to do about records that cannot be read."""
        return f"remove {self.folder} and encode again, or copy it again"

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes read records that were chosen already: they need no index, which may be large.
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
        except Exception as error:  # whatever the bytes are, what they do to a decoder is about this record
            raise BadRecord(self.shard_of(i), f"record {i} cannot be decoded: {error}".splitlines()[0]) from error

    def having(self, modalities: tuple[str, ...], quality: float = 0.0) -> np.ndarray:
        """The records in which all of `modalities` are present, of at least this quality, without the excluded."""
        present = [self.index.get(f"present/{m}", np.zeros(len(self), bool)) for m in modalities]
        return np.flatnonzero(np.logical_and.reduce(present) & (self.index["quality"] >= quality) & ~self.excluded)

    def id(self, i: int) -> str:
        """Id of record i."""
        return self.index["id"][i].decode(errors="replace")


def shard_name(split: str, number: int, count: int) -> str:
    """File name of a shard, as TFDS counts them."""
    return f"{split}-{number:05d}-of-{count:05d}.array_record"


def ids_to(ids: list[str]) -> np.ndarray:
    """Ids as uint8 [n, longest], filled up with zeros: safetensors holds no text."""
    encoded = np.array([i.encode() for i in ids], bytes)
    return encoded.view(np.uint8).reshape(len(ids), encoded.itemsize)


def ids_from(array: np.ndarray) -> np.ndarray:
    """The inverse of `ids_to`: bytes [n]."""
    return np.ascontiguousarray(array).view(f"S{array.shape[1]}").reshape(-1)


INDEXES = "indexes"
