"""Encoding of one shard of a data set in a worker process."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from selfflow.autoencoders.config import AnyAutoencoder, Autoencoder
from selfflow.autoencoders.load import load_autoencoder
from selfflow.data.records import Records
from selfflow.data.shards import BadRecord
from selfflow.encoders.config import Encoder
from selfflow.encoders.load import cached_text_encoder
from selfflow.encoders.text.config import Text
from selfflow.errors import UserError
from selfflow.latents.features import encode_features, features_key
from selfflow.latents.ids import encode_ids
from selfflow.latents.shard import EncodeJob, Shard, SkippedRecord
from selfflow.latents.store import CAPTION
from selfflow.media import medium_of
from selfflow.modality import Modality
from selfflow.storage.atomic import atomic_write
from selfflow.storage.lock import try_lock

_RECORDS_PER_BATCH = 256  # their captions are encoded together


class _InvalidMedia(Exception):
    """Raised for media that differ from the description of their data set."""


class _Encoded(NamedTuple):
    """A record in stored form: its arrays, and its row of the index."""

    latents: dict[str, np.ndarray]
    row: dict[str, Any]


class _Sums:
    """Sums over all positions of a modality, by channel, for mean and standard deviation."""

    def __init__(self, channels: int):
        self.total, self.square, self.count = np.zeros(channels), np.zeros(channels), 0

    def add(self, latent: np.ndarray) -> None:
        """Adds a latent [..., C]."""
        flat = latent.reshape(-1, latent.shape[-1]).astype(np.float64)
        # Sum in float64, as the variance is a difference of two sums.
        self.total += flat.sum(0)
        self.square += np.square(flat).sum(0)
        self.count += len(flat)


def _no_progress() -> None:
    pass


def encode_shard(shard: Shard, advance: Callable[[], None] = _no_progress) -> list[SkippedRecord]:
    """Encodes a shard and its index; files get their final names once they are complete.

    Args:
      shard: the records to encode.
      advance: called after each record.

    Returns:
      The records that could not be encoded.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    job = shard.job
    records = job.built.records(shard.split)
    autoencoders = _autoencoders(job)
    sums = {m: _Sums(job.modalities[m].latent[-1]) for m in autoencoders}
    rows: list[dict[str, Any]] = []
    skipped: list[SkippedRecord] = []
    with atomic_write(shard.path) as partial:
        # Locked during writing, so that `clear_partials` of another process does not remove it.
        lock = partial.open("w")
        try_lock(lock)
        # One record per group for random access; float16 latents hardly compress.
        writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
        for start in range(shard.start, shard.stop, _RECORDS_PER_BATCH):
            numbers = range(start, min(start + _RECORDS_PER_BATCH, shard.stop))
            batch = list(_encode_records(job, records, numbers, autoencoders, skipped, advance))
            _add_captions(batch, job.text)
            for latents, row in batch:
                for m, total in sums.items():
                    row[f"present/{m}"] = m in latents
                    if m in latents:
                        total.add(latents[m])
                        if job.modalities[m].period:
                            row[f"frames/{m}"] = len(latents[m])
                rows.append(row)
                writer.write(save(latents))
        writer.close()
    lock.close()
    _write_index(shard, rows, sums, skipped)
    return skipped


def _write_index(shard: Shard, rows: list[dict[str, Any]], sums: dict[str, _Sums], skipped: list) -> None:
    index = _columns(rows)
    for m, total in sums.items():
        index |= {f"sum/{m}": total.total, f"square/{m}": total.square, f"count/{m}": np.array([total.count])}
    with atomic_write(shard.index_path) as partial:
        # Not save_file, whose files are not readable by other users of a shared disk.
        partial.write_bytes(save(index, metadata={"skipped": json.dumps(skipped)}))


def _autoencoders(job: EncodeJob) -> dict[str, Autoencoder | None]:
    """Returns the autoencoder of each modality; None if the data set already holds latents."""
    if job.built.settings.holds_latents:
        return dict.fromkeys(job.fitted)
    return {m: _load(fitted.path, fitted.config) for m, fitted in job.fitted.items()}


@lru_cache(maxsize=16)
def _load(path: Path, config: AnyAutoencoder) -> Autoencoder:
    return load_autoencoder(config, path)


def _encode_records(
    job: EncodeJob,
    records: Records,
    numbers: range,
    autoencoders: Mapping[str, Autoencoder | None],
    skipped: list[SkippedRecord],
    advance: Callable[[], None],
) -> Iterator[_Encoded]:
    """Yields one entry per record, with captions as text; appends records that cannot be encoded to `skipped`."""
    for i, record, distributions in _distributions(records, numbers, autoencoders):
        try:
            if isinstance(record, BadRecord):
                raise record
            # Records that cannot be encoded keep their position, with an empty entry.
            encoded = _encode_record(record, distributions, job.modalities, job.encoders)
        except BadRecord as error:
            skipped.append(SkippedRecord(i, error.shard, error.reason))
            encoded = _Encoded({}, {"id": "", "quality": 0.0, "caption": ""})
        except _InvalidMedia as error:
            skipped.append(SkippedRecord(i, records.shard_of(i), str(error)))
            encoded = _Encoded({}, {"id": record["id"], "quality": 0.0, "caption": ""})
        advance()
        yield encoded


def _distributions(
    records: Records, numbers: range, autoencoders: Mapping[str, Autoencoder | None]
) -> Iterator[tuple[int, dict[str, Any] | BadRecord, dict[str, Any]]]:
    """Reads and encodes records in groups of the autoencoders' batch size.

    Yields:
      (number, record or the error of reading it, {modality: (mean, std) or `_InvalidMedia`}).
    """
    batch_size = max((autoencoder.batch_size for autoencoder in autoencoders.values() if autoencoder), default=1)
    for first in range(numbers.start, numbers.stop, batch_size):
        group: dict[int, dict[str, Any] | BadRecord] = {}
        for i in range(first, min(first + batch_size, numbers.stop)):
            try:
                group[i] = records[i]
            except BadRecord as error:
                group[i] = error
        encoded = {}
        for m, autoencoder in autoencoders.items():
            # A record need not have every modality of its data set.
            having = {}
            for i, record in group.items():
                if not isinstance(record, BadRecord) and m in record and record["present"][m]:
                    having[i] = record
            encoded[m] = _encode_media(autoencoder, m, having)
        for i, record in group.items():
            distributions = {m: of_group[i] for m, of_group in encoded.items() if i in of_group}
            yield i, record, distributions


def _encode_media(autoencoder: Autoencoder | None, m: str, records: dict[int, dict[str, Any]]) -> dict[int, Any]:
    """Encodes one modality of records: {number: (mean, std or None), or `_InvalidMedia` on failure}.

    Without an autoencoder the records hold mean and std.
    """
    if autoencoder is None:
        stored = {}
        for i, record in records.items():
            std = record[f"{m}_std"]
            # A deterministic autoencoder has a standard deviation of 0 everywhere.
            stored[i] = record[m], std if std.any() else None
        return stored
    media = {i: record[m] for i, record in records.items()}
    medium = medium_of(m)
    results: dict[int, Any] = {}
    for numbers in _batches(media, autoencoder.batch_size):
        first = media[numbers[0]]  # media of one batch have one shape
        try:
            if not medium.is_visual and first.shape[0] < autoencoder.config.temporal_stride:
                raise UserError(f"it lasts {first.shape[0]} {medium.unit}, less than a latent frame")
            if autoencoder.batch_size == 1:
                results[numbers[0]] = autoencoder.encode_distribution(first)
            else:
                mean, std = autoencoder.encode_distribution(np.stack([media[i] for i in numbers]))
                for row, i in enumerate(numbers):
                    results[i] = mean[row], None if std is None else std[row]
        except UserError as error:
            results |= dict.fromkeys(numbers, _InvalidMedia(str(error)))
    return results


def _batches(media: dict[int, np.ndarray], batch_size: int) -> list[list[int]]:
    """Groups the numbers of media that are encoded in one call: single media, or media of one shape."""
    if batch_size == 1:
        return [[i] for i in media]
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, x in media.items():
        by_shape.setdefault(x.shape, []).append(i)
    return list(by_shape.values())


def _encode_record(
    record: dict[str, Any],
    distributions: dict[str, Any],
    modalities: Mapping[str, Modality],
    encoders: Mapping[str, Encoder],
) -> _Encoded:
    """Converts a record to its stored form, given the latents of its modalities; the caption remains text.

    Raises:
      _InvalidMedia: if latents have another shape than expected or are not finite in float16, or the quality is NaN.
    """
    latents: dict[str, np.ndarray] = {}
    for m, distribution in distributions.items():
        if isinstance(distribution, _InvalidMedia):
            raise distribution
        mean, std = distribution
        modality, timed = modalities[m], bool(modalities[m].period)
        if mean.shape[timed:] != modality.latent[timed:] or mean.ndim != len(modality.latent):
            raise _InvalidMedia(f"{m} of shape {record[m].shape} gives latents {mean.shape}, not {modality.latent}")
        with np.errstate(over="ignore"):  # overflow is infinite, and refused below
            # C order, because safetensors stores the bytes in memory order.
            stored = {m: mean.astype(np.float16, order="C")}
            if std is not None:
                stored[f"{m}.std"] = std.astype(np.float16, order="C")
        if not all(np.isfinite(x).all() for x in stored.values()):
            raise _InvalidMedia(f"the latents of its {m} are not finite")
        if m in encoders:
            stored[features_key(m)] = encode_features(encoders[m], m, record[m], record["id"], mean.shape, modality)
        latents |= stored
    if not np.isfinite(record["quality"]):
        raise _InvalidMedia(f"its quality is {record['quality']}")
    row = {"id": record["id"], "quality": float(record["quality"]), "caption": record.get("caption", "")}
    for name, value in record.items():
        if np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.integer):
            row[f"label/{name}"] = int(value)
    return _Encoded(latents, row)


def _add_captions(batch: list[_Encoded], text: Text | None) -> None:
    """Replaces the captions in rows by their lengths in tokens, and adds their embeddings to the latents."""
    captions = [row["caption"] for _, row in batch if row["caption"]]
    # One call for all captions, as the encoder embeds equal captions once.
    embeddings = iter(cached_text_encoder(text).encode(captions) if text else ())
    for latents, row in batch:
        embedding = next(embeddings) if text and row["caption"] else None
        if embedding is not None:
            latents[CAPTION] = embedding
        row["caption"] = 0 if embedding is None else len(embedding)


def _columns(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Converts rows to columns; a missing entry is -1 for labels, otherwise 0 or False."""
    columns: dict[str, np.ndarray] = {"id": encode_ids([row["id"] for row in rows])}
    names: set[str] = set()
    for row in rows:
        names |= row.keys()
    for name in sorted(names - {"id"}):
        missing = 0
        if name == "quality":
            dtype = np.float32
        elif name.startswith("label/"):
            dtype, missing = np.int64, -1
        elif name.startswith("present/"):
            dtype = bool
        else:
            dtype = np.int32
        columns[name] = np.array([row.get(name, missing) for row in rows], dtype)
    return columns
