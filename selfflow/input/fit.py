"""Autoencoders that are fitted to the data of an experiment, once, and kept."""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfflow.autoencoders.linear import Linear, LinearAutoencoder
from selfflow.buckets.copies import fetch, publish
from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.input.built import Built
from selfflow.progress import Progress
from selfflow.tree import to_json

_FORMAT = 2  # raised when equal settings come to mean other autoencoders
_RECORDS = 512
_BYTES = 200e6  # of raw media; long or large clips are fitted on fewer of them
_CHUNK = 64


@dataclass(frozen=True)
class Fitted:
    """An autoencoder on disk.

    Attributes:
      config: which transform.
      path: its arrays.
      identity: kind and hash of the arrays.
      fitted_on: records of each data set that it was fitted on, by name and fingerprint.
    """

    config: Linear
    path: Path
    identity: str
    fitted_on: dict[str, int]

    def autoencoder(self) -> LinearAutoencoder:
        return LinearAutoencoder.load(self.config, self.path)


def fitted_path(
    modality: str, config: Linear, data: Mapping[str, Built], exclude: Collection[str], data_dir: Path
) -> Path:
    """Where the autoencoder that `fit` makes of these arguments lies."""
    sets = sorted([built.name, built.fingerprint, json.dumps(built.mapping)] for built in data.values())
    key = json.dumps([_FORMAT, modality, to_json(config), sets, sorted(exclude)])
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return data_dir / "autoencoders" / f"{modality}-{config.kind}-{digest}.safetensors"


def fit(modality: str, config: Linear, data: Mapping[str, Built], exclude: Collection[str], data_dir: Path) -> Fitted:
    """Fits an autoencoder to a few hundred training records, evenly from all data sets; finds it if it was fitted.

    Args:
      modality: which.
      config: the transform.
      data: the data sets that have it.
      exclude: ids of samples to leave out.
      data_dir: cache folder; it goes to `data_dir/autoencoders`.

    Raises:
      UserError: if no training record has the modality.
    """
    path = fitted_path(modality, config, data, exclude, data_dir)
    notes = path.with_suffix(".json")
    fetch(path.parent, notes.name, only=path.stem)
    if not notes.exists():
        with Progress(f"fit the {modality} autoencoder", 1, unit="fit") as shown:
            per_set = _RECORDS // len(data)
            records, fitted_on = [], {}
            for built in data.values():
                found = sample_of(built, "train", modality, per_set, exclude, _BYTES / len(data))
                fitted_on[f"{built.name} {built.fingerprint}"] = len(found)
                records += [record[modality] for record in found]
            if not records:
                names = ", ".join(b.name for b in data.values())
                raise UserError(f"autoencoders.{modality}: no record of the training split of {names} has {modality}")
            autoencoder = LinearAutoencoder.fit(config, _batches(records))
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".partial-{os.getpid()}")
            autoencoder.save(partial)
            os.replace(partial, path)
            partial.write_text(json.dumps({"identity": autoencoder.identity, "fitted_on": fitted_on}))
            os.replace(partial, notes)
            shown.advance()
    publish(path.parent, notes.name, only=path.stem)
    known = json.loads(notes.read_text())
    return Fitted(config, path, known["identity"], known["fitted_on"])


def sample_of(
    built: Built, split: str, modality: str, count: int, exclude: Collection[str] = (), largest: float = float("inf")
) -> list[dict[str, Any]]:
    """Up to `count` records that have a modality, from all over a split, of at most `largest` bytes of it together.

    Of each record the modality and its material, if it has one. At least `_CHUNK` are taken, however large; records
    that cannot be read are passed over.
    """
    records, found, size = built.records(split), [], 0
    for i in np.random.default_rng(0).permutation(len(records)):
        try:
            record = records[int(i)]
        except BadRecord:
            continue  # encoding counts and names it
        if modality not in record or not record["present"][modality] or record["id"] in exclude:
            continue
        found.append({name: record[name] for name in (modality, "material") if name in record})
        size += record[modality].nbytes
        if len(found) == count or (size >= largest and len(found) >= _CHUNK):
            break
    return found


def _batches(media: list[np.ndarray]) -> list[np.ndarray]:
    """Media [...] stacked to [B, ...], those of equal shape together."""
    by_shape: dict[tuple, list[np.ndarray]] = {}
    for item in media:
        by_shape.setdefault(item.shape, []).append(item)
    return [np.stack(same[i : i + _CHUNK]) for same in by_shape.values() for i in range(0, len(same), _CHUNK)]
