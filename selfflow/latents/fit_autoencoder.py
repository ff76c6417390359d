"""The autoencoders of an experiment on disk: fitted to its data once, or copied from where the user has them."""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfflow.autoencoders.config import AnyAutoencoder, Autoencoder, Precomputed, uses_pretrained
from selfflow.autoencoders.linear import LinearAutoencoder
from selfflow.autoencoders.load import load_autoencoder
from selfflow.data.built import BuiltDataset
from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.latents.pretrained_weights import copy_path, copy_weights, weights_metadata
from selfflow.media import medium_of
from selfflow.progress import Progress
from selfflow.serialization import to_json
from selfflow.storage.atomic import atomic_write
from selfflow.storage.copies import fetch, publish

_FORMAT = 2  # raised when equal settings come to mean other autoencoders
_RECORDS = 512
_BYTES = 200e6  # of raw media; long or large clips are fitted on fewer of them
_CHUNK = 64
_LINKED = 16e6  # bytes


@dataclass(frozen=True)
class FittedAutoencoder:
    """An autoencoder on disk.

    Attributes:
      config: which.
      path: its weights; None where only its latents are there.
      identity: kind and hash of the weights.
      fitted_on: records of each data set that it was fitted on here, by name and fingerprint.
    """

    config: AnyAutoencoder
    path: Path | None
    identity: str
    fitted_on: dict[str, int]

    def autoencoder(self) -> Autoencoder:
        return load_autoencoder(self.config, self.path)


def fitted_path(
    modality: str, config: AnyAutoencoder, data: Mapping[str, BuiltDataset], exclude: Collection[str], data_dir: Path
) -> Path:
    """Where the autoencoder that `fit_autoencoder` makes of these arguments lies."""
    if uses_pretrained(config):
        return copy_path(modality, config, data_dir)
    sets = sorted(
        [built.name, built.fingerprint, json.dumps(built.settings.decoding_options())] for built in data.values()
    )
    key = json.dumps([_FORMAT, modality, to_json(config), sets, sorted(exclude)])
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return data_dir / "autoencoders" / f"{modality}-{config.kind}-{digest}.safetensors"


def fit_autoencoder(
    modality: str, config: AnyAutoencoder, data: Mapping[str, BuiltDataset], exclude: Collection[str], data_dir: Path
) -> FittedAutoencoder:
    """Fits an autoencoder to a few hundred training records, evenly from all data sets; finds it if it was fitted.

    One that has weights already is copied, and needs its file no more.

    Args:
      modality: which.
      config: which.
      data: the data sets that have it.
      exclude: ids of samples to leave out.
      data_dir: cache folder; it goes to `data_dir/autoencoders`.

    Raises:
      UserError: if no training record has the modality, or weights are missing or of another model.
    """
    if isinstance(config, Precomputed):
        media = [built for built in data.values() if not built.settings.holds_latents]
        if media:
            raise UserError(
                f"autoencoders.{modality} is given by its latents alone, and cannot encode {media[0].name}: name "
                "another"
            )
        return FittedAutoencoder(config, None, config.identity, {})
    path = fitted_path(modality, config, data, exclude, data_dir)
    latents = [built for built in data.values() if built.settings.holds_latents]
    if latents and not uses_pretrained(config):
        made = latents[0].metadata["latents"][modality]["autoencoder"]
        raise UserError(
            f"autoencoders.{modality} is {config.kind}, which is fitted to media, and {latents[0].name} has latents "
            f"alone, made by {made!r}: name that one, or --autoencoder.{modality} "
            f"precomputed={latents[0].settings.source}"
        )
    notes = path.with_suffix(".json")
    fetch(path.parent, notes.name, only=path.stem)
    if uses_pretrained(config):
        copy_weights(modality, config, path, notes)
    elif not notes.exists():
        with Progress(f"fit the {modality} autoencoder", 1, unit="fit") as shown:
            per_set = _RECORDS // len(data)
            records, fitted_on = [], {}
            for built in data.values():
                found = sample_records(
                    built, "train", modality, per_set, config.temporal_stride, exclude, _BYTES / len(data)
                )
                fitted_on[f"{built.name} {built.fingerprint}"] = len(found)
                records += [record[modality] for record in found]
            if not records:
                names = ", ".join(b.name for b in data.values())
                raise UserError(
                    f"autoencoders.{modality}: no record of the training split of {names} has {modality}, or none that "
                    "fills a latent frame"
                )
            autoencoder = LinearAutoencoder.fit(config, _batches(records))
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as partial:
                autoencoder.save(partial)
            weights_metadata(notes, {"identity": autoencoder.identity, "fitted_on": fitted_on})
            shown.advance()
    publish(path.parent, notes.name, only=path.stem)
    known = json.loads(notes.read_text())
    return FittedAutoencoder(config, path, known["identity"], known["fitted_on"])


def keep_copy(source: Path, target: Path) -> None:
    """Copies the file of an autoencoder; a large one gets a second name instead, where the disk allows it."""
    with atomic_write(target) as partial:
        if source.stat().st_size > _LINKED:
            with suppress(OSError):  # another disk, or one without hard links
                os.link(source, partial)
        if not partial.exists():
            shutil.copyfile(source, partial)


def sample_records(
    built: BuiltDataset,
    split: str,
    modality: str,
    count: int,
    temporal_stride: int,
    exclude: Collection[str] = (),
    largest: float = float("inf"),
) -> list[dict[str, Any]]:
    """Up to `count` records that have a modality, from all over a split, of at most `largest` bytes of it together.

    Of each record the modality and its material, if it has one. At least `_CHUNK` are taken, however large; records
    that cannot be read, and sounds of less than `temporal_stride` samples, are passed over.
    """
    records, found, size = built.records(split), [], 0
    for i in np.random.default_rng(0).permutation(len(records)):
        try:
            record = records[int(i)]
        except BadRecord:
            continue  # encoding counts and names it
        if modality not in record or not record["present"][modality] or record["id"] in exclude:
            continue
        if not medium_of(modality).is_visual and len(record[modality]) < temporal_stride:
            continue  # nor can it be encoded
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
