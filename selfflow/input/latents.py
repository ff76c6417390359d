"""Latents on disk: every record of a dataset encoded once, beside the autoencoders that did it."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, load_file, save, save_file

from selfflow.autoencoders.linear import Linear, LinearAutoencoder
from selfflow.autoencoders.quality import reconstruction_quality
from selfflow.errors import UserError
from selfflow.progress import Progress, progress

_FIT_RECORDS = 512
_FIT_BYTES = 200e6  # of raw media; long or large clips are fitted on fewer of them
_QUALITY_RECORDS = 128
_CHUNK = 64
_FORMAT = 1  # raised when equal settings come to mean other latents


class Latents:
    """A folder of latents.

    Attributes:
      path: the folder.
      manifest: dataset name, autoencoder identities, records per split, reconstruction quality.
      autoencoders: by modality.
    """

    def __init__(self, path: Path, configs: dict[str, Linear]):
        self.path = path
        self.manifest = json.loads((path / "manifest.json").read_text())
        self.autoencoders = {
            m: LinearAutoencoder.load(config, path / f"autoencoder_{m}.safetensors") for m, config in configs.items()
        }

    @property
    def hash(self) -> str:
        """Identity of these latents: of the dataset, its records and the autoencoders."""
        identity = {name: self.manifest[name] for name in ("dataset", "records", "autoencoders")}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def index(self, split: str) -> dict[str, np.ndarray]:
        """Per record of a split: `present/M` as booleans and `label/F` for each integer field F."""
        return load_file(self.path / f"{split}.index.safetensors")

    def source(self, split: str) -> "LatentSource":
        """Random access to the latents of a split."""
        return LatentSource(self.path / f"{split}.array_record", self.index(split))


class LatentSource:
    """Random access to one split: `source[i]` is {modality: latent}, float16, of those present in record i."""

    def __init__(self, path: Path, index: dict[str, np.ndarray]):
        self._path, self.index = path, index
        self._records = None

    def __len__(self) -> int:
        return len(next(iter(self.index.values())))

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if self._records is None:
            from grain.sources import ArrayRecordDataSource

            self._records = ArrayRecordDataSource([str(self._path)])
        return load(self._records[int(i)])

    def having(self, modalities: tuple[str, ...]) -> np.ndarray:
        """The records in which all of `modalities` are present."""
        present = [self.index.get(f"present/{m}", np.zeros(len(self), bool)) for m in modalities]
        return np.flatnonzero(np.logical_and.reduce(present))


def prepare_latents(builder: Any, configs: dict[str, Linear], data_dir: Path, sample_rate: int) -> Latents:
    """Opens the latents of a dataset; fits the autoencoders and encodes every split first, if need be.

    Args:
      builder: a prepared TFDS builder whose records hold the modalities and `present`.
      configs: the autoencoder of each modality.
      data_dir: cache folder; latents go to `data_dir/latents`.
      sample_rate: samples a second of the sound.

    Raises:
      UserError: if a modality is in no record.
    """
    dataset = f"{builder.info.full_name}"
    sizes = {split: info.num_examples for split, info in builder.info.splits.items() if info.num_examples}
    # The dataset's name says which settings made it, its folder which build: a new build is a new cache.
    built = os.stat(Path(builder.data_dir) / "dataset_info.json").st_mtime_ns
    key = json.dumps([_FORMAT, dataset, built, sizes, {m: repr(c) for m, c in sorted(configs.items())}], sort_keys=True)
    folder = data_dir / "latents" / f"{dataset.replace('/', '-')}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not (folder / "manifest.json").exists():
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        partial.mkdir(parents=True, exist_ok=True)
        try:
            _encode_all(builder, dataset, sizes, configs, partial, sample_rate)
            if not (folder / "manifest.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return Latents(folder, configs)


def _encode_all(
    builder: Any, dataset: str, sizes: dict[str, int], configs: dict[str, Linear], folder: Path, sample_rate: int
) -> None:
    autoencoders = {}
    train = builder.as_data_source("train")
    with Progress("fit autoencoders", len(configs), unit="modality") as shown:
        for m, config in configs.items():
            if m not in builder.info.features:
                raise UserError(f"autoencoders.{m}: the data set {dataset} has no {m}")
            count = min(_FIT_RECORDS, max(_CHUNK, int(_FIT_BYTES / train[0][m].nbytes)))
            media = [np.stack(chunk) for chunk in _chunks(_present(train, m, count))]
            if not media:
                raise UserError(f"autoencoders.{m}: no record of the training split of {dataset} has {m}")
            autoencoders[m] = LinearAutoencoder.fit(config, media)
            autoencoders[m].save(folder / f"autoencoder_{m}.safetensors")
            shown.advance()
    for split, size in sizes.items():
        _encode_split(builder.as_data_source(split), split, autoencoders, folder)
        assert len(load_file(folder / f"{split}.index.safetensors")["quality"]) == size
    checked = builder.as_data_source("validation" if "validation" in sizes else "train")
    materials = list((builder.info.metadata or {}).get("materials", []))
    quality = {
        m: reconstruction_quality(
            a, list(_present(checked, m, _QUALITY_RECORDS, whole=True)), m, sample_rate, materials
        )
        for m, a in autoencoders.items()
    }
    manifest = {
        "dataset": dataset,
        "records": sizes,
        "autoencoders": {m: a.identity for m, a in autoencoders.items()},
        "quality": quality,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _present(source: Any, modality: str, count: int, whole: bool = False) -> Iterator[Any]:
    """The first `count` records that have a modality, evenly spread so that no part of a split is favoured."""
    found = 0
    for i in np.random.default_rng(0).permutation(len(source)):
        record = source[int(i)]
        if record["present"][modality]:
            yield record if whole else record[modality]
            found += 1
            if found == count:
                return


def _chunks(items: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _encode_split(source: Any, split: str, autoencoders: dict[str, LinearAutoencoder], folder: Path) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    index: dict[str, list] = {f"present/{m}": [] for m in autoencoders} | {"quality": []}
    writer = ArrayRecordWriter(str(folder / f"{split}.array_record"), "group_size:1,uncompressed")
    for i in progress(range(len(source)), f"encode {split}", unit="record"):
        record = source[i]
        latents = {}
        for m, autoencoder in autoencoders.items():
            present = bool(record["present"][m])
            index[f"present/{m}"].append(present)
            if present:
                latents[m] = autoencoder.encode(record[m]).astype(np.float16)
        index["quality"].append(np.float32(record["quality"]))
        for name, value in record.items():
            if np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.integer):
                index.setdefault(f"label/{name}", []).append(int(value))
        writer.write(save(latents))
    writer.close()
    save_file({name: np.asarray(values) for name, values in index.items()}, folder / f"{split}.index.safetensors")
