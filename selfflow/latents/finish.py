"""The last step of encoding: joins the indexes of shards, measures reconstructions and writes the manifest."""

import json
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from selfflow.autoencoders.config import config_without_path
from selfflow.autoencoders.quality import reconstruction_quality
from selfflow.data.built import BuiltDataset
from selfflow.encoders.load import cached_text_encoder
from selfflow.encoders.text.config import Text
from selfflow.errors import UserError
from selfflow.latents.features import encoder_metadata
from selfflow.latents.fit_autoencoder import link_or_copy, sample_records
from selfflow.latents.shard import EncodeJob, Shard, SkippedRecord, skipped_records
from selfflow.latents.store import MANIFEST
from selfflow.media import medium_of
from selfflow.serialization import to_json
from selfflow.storage.atomic import atomic_write

_QUALITY_RECORDS, _QUALITY_BYTES = 128, 200e6
_MAX_SKIPPED_SHARE = 0.01


def check_skipped(skipped: list[SkippedRecord], built: BuiltDataset, total: int) -> None:
    """Raises `UserError` if more than 1 % of all records, and more than one, could not be encoded."""
    if len(skipped) > max(1, _MAX_SKIPPED_SHARE * total):
        last = skipped[-1]
        raise UserError(
            f"{len(skipped)} of {total} records of {built.name} cannot be encoded, the last in {last.shard} "
            f"({last.reason}): `selfflow data verify` lists them; build the data set again"
        )


def finish_latents(job: EncodeJob, shards: list[Shard]) -> None:
    """Joins the indexes of finished shards and writes the manifest, which makes the folder valid.

    Raises:
      UserError: if too many records could not be encoded.
    """
    built = job.built
    by_split: dict[str, list[Shard]] = {split: [] for split in built.splits}
    for shard in shards:
        by_split[shard.split].append(shard)
    manifest: dict[str, Any] = {
        "dataset": built.name,
        "settings": to_json(built.settings),
        "fingerprint": built.fingerprint,
        "deleted": built.deleted,
        "shards": {split: [shard.records for shard in of_split] for split, of_split in by_split.items()},
        "modalities": _modalities(job),
        "text": _text(job.text),
        "features": encoder_metadata(job.encoders),
        "unreadable": {},
    }
    all_skipped: list[SkippedRecord] = []
    for split, of_split in by_split.items():
        index, statistics = _joined_indexes(of_split, list(job.fitted))
        with atomic_write(job.folder / f"{split}.index.safetensors") as partial:
            partial.write_bytes(save(index))
        if split == "train":
            manifest["statistics"] = statistics
        skipped: list[SkippedRecord] = []
        for shard in of_split:
            skipped += skipped_records(shard)
        if skipped:
            manifest["unreadable"][split] = skipped
        all_skipped += skipped
    check_skipped(all_skipped, built, sum(built.splits.values()))
    manifest["quality"] = _quality(job)
    for m, fitted in job.fitted.items():
        if fitted.path:
            link_or_copy(fitted.path, job.folder / f"autoencoder_{m}.safetensors")
    with atomic_write(job.folder / MANIFEST) as partial:
        partial.write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _modalities(job: EncodeJob) -> dict[str, dict[str, Any]]:
    entries = {}
    for m, fitted in job.fitted.items():
        entries[m] = {
            "identity": fitted.identity,
            "autoencoder": config_without_path(fitted.config),
            "fitted_on": fitted.fitted_on,
            "latent": list(job.modalities[m].latent),
            "period": job.modalities[m].period,
        }
    return entries


def _text(text: Text | None) -> dict[str, Any] | None:
    if text is None:
        return None
    encoder = cached_text_encoder(text)
    return {"settings": to_json(text), "identity": encoder.identity, "width": encoder.width}


def _quality(job: EncodeJob) -> dict[str, dict[str, float]]:
    """Computes reconstruction errors of each modality on held-out records; none for precomputed latents."""
    built = job.built
    if built.settings.holds_latents:
        return {}
    split = "validation" if "validation" in built.splits else "train"
    quality = {}
    for m, fitted in job.fitted.items():
        stride = fitted.config.temporal_stride
        records = sample_records(built, split, m, _QUALITY_RECORDS, stride, largest=_QUALITY_BYTES)
        if records:
            has_materials = all("material" in record for record in records)
            materials = list(built.metadata.get("materials", [])) if has_materials else []
            rate = medium_of(m).rate(built.settings)
            quality[m] = reconstruction_quality(fitted.autoencoder(), records, m, rate, materials)
    return quality


def _joined_indexes(shards: list[Shard], modalities: list[str]) -> tuple[dict, dict]:
    """Joins the indexes of a split's shards, and computes mean and standard deviation of each latent channel."""
    parts, statistics = [load_file(shard.index_path) for shard in shards], {}
    for m in modalities:
        total = square = count = 0
        for part in parts:
            total = total + part.pop(f"sum/{m}")
            square = square + part.pop(f"square/{m}")
            count += int(part.pop(f"count/{m}")[0])
        count = max(1, count)
        mean = total / count
        # For a constant channel rounding may make the difference negative.
        std = np.sqrt(np.maximum(square / count - mean**2, 0))
        statistics[m] = {"mean": mean.round(6).tolist(), "std": std.round(6).tolist(), "positions": count}
    # Ids are byte arrays, as wide as the longest id of their shard.
    width = max(part["id"].shape[1] for part in parts)
    dtypes = {}
    for part in parts:
        part["id"] = np.pad(part["id"], ((0, 0), (0, width - part["id"].shape[1])))
        dtypes |= {name: column.dtype for name, column in part.items()}
    # A shard lacks the columns of modalities and labels that none of its records has.
    index = {}
    for name, dtype in dtypes.items():
        missing = -1 if name.startswith("label/") else 0
        columns = [part.get(name, np.full(len(part["id"]), missing, dtype)) for part in parts]
        index[name] = np.concatenate(columns)
    return index, statistics
