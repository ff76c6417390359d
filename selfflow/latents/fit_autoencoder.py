"""The autoencoders of an experiment on disk: fitted to its data, copied from user-supplied weights, or precomputed."""

import json
import os
import re
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
from selfflow.encoders.config import Encoder
from selfflow.errors import UserError
from selfflow.latents.pretrained_weights import copy_path, copy_weights, write_metadata
from selfflow.media import medium_of
from selfflow.modality import Modality
from selfflow.progress import Progress
from selfflow.serialization import digest, to_json
from selfflow.storage.atomic import atomic_write
from selfflow.storage.mirror import fetch_folder, publish_folder

_FORMAT = 2  # increment when the autoencoder for unchanged settings changes
_RECORDS = 512
_BYTES = 200e6  # bytes of raw media; fewer records are used if clips are long or large
_CHUNK = 64
_LINKED_BYTES = 16e6  # files from this size on are hard-linked rather than copied


@dataclass(frozen=True)
class FittedAutoencoder:
    """An autoencoder on disk.

    Attributes:
      config: config of the autoencoder.
      path: path of its weights; None if this machine has only its latents.
      identity: kind and hash of the weights.
      fitted_on: number of records it was fitted to, by name and fingerprint of the data set.
    """

    config: AnyAutoencoder
    path: Path | None
    identity: str
    fitted_on: dict[str, int]

    def autoencoder(self) -> Autoencoder:
        """Loads the autoencoder."""
        return load_autoencoder(self.config, self.path)


def fitted_path(
    modality: str, config: AnyAutoencoder, data: Mapping[str, BuiltDataset], exclude: Collection[str], data_dir: Path
) -> Path:
    """Returns the path of the autoencoder that `fit_autoencoder` returns for these arguments."""
    if uses_pretrained(config):
        return copy_path(modality, config, data_dir)
    datasets = []
    for built in data.values():
        datasets.append([built.name, built.fingerprint, json.dumps(built.settings.decoding_options())])
    key = digest(json.dumps([_FORMAT, modality, to_json(config), sorted(datasets), sorted(exclude)]), 12)
    return data_dir / "autoencoders" / f"{modality}-{config.kind}-{key}.safetensors"


def fit_autoencoder(
    modality: str, config: AnyAutoencoder, data: Mapping[str, BuiltDataset], exclude: Collection[str], data_dir: Path
) -> FittedAutoencoder:
    """Fits a linear autoencoder to a few hundred training records, in equal parts from all data sets.

    An existing fitted autoencoder is reused. A pretrained autoencoder is copied; its original file is then no longer
    needed.

    Args:
      modality: modality to encode.
      config: config of the autoencoder.
      data: the data sets that have the modality.
      exclude: ids of samples to leave out.
      data_dir: cache folder; the autoencoder is written to `data_dir/autoencoders`.

    Raises:
      UserError: if no training record has the modality, or weights are missing or belong to another model.
    """
    if isinstance(config, Precomputed):
        media = [built for built in data.values() if not built.settings.holds_latents]
        if media:
            raise UserError(
                f"autoencoders.{modality} is precomputed, so it cannot encode {media[0].name}: name an autoencoder "
                "with weights"
            )
        return FittedAutoencoder(config, None, config.identity, {})
    path = fitted_path(modality, config, data, exclude, data_dir)
    latents = [built for built in data.values() if built.settings.holds_latents]
    if latents and not uses_pretrained(config):
        name = latents[0].metadata["latents"][modality]["autoencoder"]
        raise UserError(
            f"autoencoders.{modality} is {config.kind}, which is fitted to media, and {latents[0].name} has only "
            f"latents, made by {name!r}: name that autoencoder, or set --autoencoder.{modality} "
            f"precomputed={latents[0].settings.source}"
        )
    # Weights are written first, then the JSON file, which marks both as complete.
    metadata_path = path.with_suffix(".json")
    fetch_folder(path.parent, metadata_path.name, only=path.stem)
    if uses_pretrained(config):
        copy_weights(modality, config, path, metadata_path)
    elif not metadata_path.exists():
        with Progress(f"fit the {modality} autoencoder", 1, unit="fit") as shown:
            _fit(modality, config, data, exclude, path, metadata_path)
            shown.advance()
    publish_folder(path.parent, metadata_path.name, only=path.stem)
    metadata = json.loads(metadata_path.read_text(encoding="utf-8"))
    return FittedAutoencoder(config, path, metadata["identity"], metadata["fitted_on"])


def _fit(
    modality: str,
    config: AnyAutoencoder,
    data: Mapping[str, BuiltDataset],
    exclude: Collection[str],
    path: Path,
    metadata_path: Path,
) -> None:
    """Fits a linear autoencoder and writes it."""
    media, fitted_on = [], {}
    for built in data.values():
        # Equal parts, independent of the sizes of the data sets.
        count, largest = _RECORDS // len(data), _BYTES / len(data)
        records = sample_records(built, "train", modality, count, config.temporal_stride, exclude, largest)
        fitted_on[f"{built.name} {built.fingerprint}"] = len(records)
        media += [record[modality] for record in records]
    if not media:
        names = ", ".join(built.name for built in data.values())
        raise UserError(
            f"autoencoders.{modality}: no record of the training split of {names} has {modality}, or none that fills a "
            "latent frame"
        )
    autoencoder = LinearAutoencoder.fit(config, _batches(media))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        autoencoder.save(partial)
    write_metadata(metadata_path, {"identity": autoencoder.identity, "fitted_on": fitted_on})


def check_precomputed(
    built: BuiltDataset,
    fitted: Mapping[str, FittedAutoencoder],
    modalities: Mapping[str, Modality],
    encoders: Mapping[str, Encoder],
) -> None:
    """Checks that a data set of latents was encoded by the autoencoders that an experiment names.

    Args:
      built: the data set, whose records are latents.
      fitted: the autoencoder of each modality.
      modalities: the expected latents.
      encoders: frozen encoders whose features are needed.

    Raises:
      UserError: naming the autoencoder, shape or encoder that differs.
    """
    for m, autoencoder in fitted.items():
        entry = built.metadata["latents"][m]
        # latents.json may name autoencoders freely; their weights, if present, must agree.
        who, name = f"autoencoders.{m}", entry["autoencoder"]
        if autoencoder.path and not _is_named(name, autoencoder):
            raise UserError(
                f"{who} is {autoencoder.identity}, but the {m} latents of {built.settings.source} were made by "
                f"{name!r}: name that one, or correct latents.json"
            )
        if not autoencoder.path and autoencoder.config.name != name:
            raise UserError(
                f"{who}.name is {autoencoder.config.name!r}, but the latents were made by {name!r}: use that name"
            )
        if list(modalities[m].latent) != list(entry["shape"]):
            raise UserError(
                f"{who} makes latents of shape {list(modalities[m].latent)}, and those of {built.settings.source} have "
                f"{entry['shape']}: correct the stride and hop in latents.json, or name the autoencoder that made them"
            )
    for m, encoder in encoders.items():
        if encoder.kind != "feature_files":
            raise UserError(
                f"alignment.encoders.{m} is {encoder.kind}, which needs raw {m}, and {built.name} has only latents: "
                "name a file of features"
            )


def _is_named(name: str, autoencoder: FittedAutoencoder) -> bool:
    """Whether `name` in latents.json denotes an autoencoder: its identity, or text that starts with its kind or name.

    A name that has the form of an identity must be the identity.
    """
    if name == autoencoder.identity:
        return True
    if re.fullmatch(r"[A-Za-z0-9_]+-[0-9a-f]{12}(-\w+)?", name):
        return False
    names = (autoencoder.config.kind, getattr(autoencoder.config, "name", ""))
    return _simplified(name).startswith(tuple(_simplified(known) for known in names if known))


def _simplified(text: str) -> str:
    """Reduces a name to lower-case letters and digits, so that `SD-VAE` equals `sd_vae`."""
    return re.sub("[^a-z0-9]", "", text.lower())


def link_or_copy(source: Path, target: Path) -> None:
    """Copies the file of an autoencoder; a large one is hard-linked if the disk allows it."""
    with atomic_write(target) as partial:
        if source.stat().st_size > _LINKED_BYTES:
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
    """Returns up to `count` records of a split with a modality, in a fixed random order.

    Records that cannot be read, and audio of fewer than `temporal_stride` samples, are left out.

    Args:
      built: the data set.
      split: name of the split.
      modality: name of the modality.
      count: maximum number of records.
      temporal_stride: frames or samples per latent frame.
      exclude: ids to leave out.
      largest: bytes of media after which sampling stops, but not before `_CHUNK` records.

    Returns:
      The modality of each record, and its material if it has one.
    """
    records, samples, size = built.records(split), [], 0
    for i in np.random.default_rng(0).permutation(len(records)):
        try:
            record = records[int(i)]
        except BadRecord:
            continue  # encoding counts and lists unreadable records
        if modality not in record or not record["present"][modality] or record["id"] in exclude:
            continue
        if not medium_of(modality).is_visual and len(record[modality]) < temporal_stride:
            continue  # too short to encode
        # Keep only the needed fields, as other media of a record may be large.
        samples.append({name: record[name] for name in (modality, "material") if name in record})
        size += record[modality].nbytes
        if len(samples) == count or (size >= largest and len(samples) >= _CHUNK):
            break
    return samples


def _batches(media: list[np.ndarray]) -> list[np.ndarray]:
    """Stacks media [...] to batches [B, ...] of equal shape."""
    by_shape: dict[tuple, list[np.ndarray]] = {}
    for item in media:
        by_shape.setdefault(item.shape, []).append(item)
    batches = []
    for same in by_shape.values():
        for start in range(0, len(same), _CHUNK):
            batches.append(np.stack(same[start : start + _CHUNK]))
    return batches
