"""Encoding one shard of a data set: what worker processes run."""

import fcntl
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save

from selfflow.autoencoders.config import AnyAutoencoder, Autoencoder
from selfflow.autoencoders.load import load_autoencoder
from selfflow.data.built import BuiltDataset
from selfflow.data.records import Records
from selfflow.data.shards import BadRecord
from selfflow.encoders.config import Encoder
from selfflow.encoders.load import cached_text_encoder
from selfflow.errors import UserError
from selfflow.latents.features import encoded_features, stored_as
from selfflow.latents.store import CAPTION, ids_to, shard_name
from selfflow.media import medium_of
from selfflow.modality import Modality
from selfflow.storage.atomic import atomic_write

_CAPTIONS_AT_ONCE = 256


@dataclass(frozen=True)
class Shard:
    """Records `start` to `stop` of a split, to be encoded into shard `number` of `count`.

    Attributes:
      autoencoders: file and config of each modality's autoencoder.
      modalities: the latents that are expected of it.
      text: settings of the caption encoder, or None.
      encoders: whose features of a modality are stored, too.
    """

    built: BuiltDataset
    split: str
    number: int
    count: int
    start: int
    stop: int
    folder: Path
    autoencoders: dict[str, tuple[Path | None, AnyAutoencoder]]
    modalities: dict[str, Modality]
    text: Any
    encoders: dict[str, Encoder]

    @property
    def path(self) -> Path:
        return self.folder / shard_name(self.split, self.number, self.count)

    @property
    def index_path(self) -> Path:
        """Written after the records: a shard is finished once it is there."""
        return self.path.with_suffix(".index.safetensors")

    @property
    def done(self) -> bool:
        return self.index_path.exists()


def encode_shard(shard: Shard, advance: Callable[[], None] = lambda: None) -> list[tuple[int, str, str]]:
    """Encodes a shard and its index; both appear under their names only when they are whole.

    Args:
      shard: what to encode.
      advance: called after each record.

    Returns:
      The records that could not be read: (record, shard of the data set, reason). They keep their place, empty.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    records = shard.built.records(shard.split)
    precomputed = shard.built.settings.holds_latents
    autoencoders = {m: None if precomputed else _autoencoder(*where) for m, where in shard.autoencoders.items()}
    rows: list[dict[str, Any]] = []
    moments = {m: [np.zeros(shard.modalities[m].latent[-1]) for _ in range(2)] + [0] for m in autoencoders}
    bad: list[tuple[int, str, str]] = []
    with atomic_write(shard.path) as partial:
        # Locked while it is written, so that `clear_partials` of another process leaves it alone.
        lock = partial.open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
        for start in range(shard.start, shard.stop, _CAPTIONS_AT_ONCE):
            encoded = []
            stop = min(start + _CAPTIONS_AT_ONCE, shard.stop)
            for i, record, coded in _coded(records, range(start, stop), autoencoders):
                try:
                    if isinstance(record, BadRecord):
                        raise record
                    encoded.append(_encoded(record, coded, shard.modalities, shard.encoders))
                except BadRecord as error:
                    bad.append((i, error.shard, error.reason))
                    encoded.append(({}, {"id": "", "quality": 0.0, "caption": ""}))
                except _Unfit as error:
                    bad.append((i, records.shard_of(i), str(error)))
                    encoded.append(({}, {"id": record["id"], "quality": 0.0, "caption": ""}))
                advance()
            captions = _captions(shard.text, [row["caption"] for _, row in encoded])
            for (latents, row), caption in zip(encoded, captions):
                if caption is not None:
                    latents[CAPTION] = caption
                row["caption"] = 0 if caption is None else len(caption)
                for m, total in moments.items():
                    if m in latents:
                        flat = latents[m].reshape(-1, latents[m].shape[-1]).astype(np.float64)
                        total[0] += flat.sum(0)
                        total[1] += np.square(flat).sum(0)
                        total[2] += len(flat)
                        if shard.modalities[m].period:
                            row[f"frames/{m}"] = len(latents[m])
                    row[f"present/{m}"] = m in latents
                rows.append(row)
                writer.write(save(latents))
        writer.close()
    lock.close()
    index = _table(rows)
    for m, (total, square, count) in moments.items():
        index |= {f"sum/{m}": total, f"square/{m}": square, f"count/{m}": np.array([count])}
    with atomic_write(shard.index_path) as partial:
        # Not save_file, which creates files that other users of a shared disk cannot read.
        partial.write_bytes(save(index, metadata={"bad": json.dumps(bad)}))
    return bad


def clear_partials(folder: Path) -> None:
    """Removes what killed processes left of shards that they were writing."""
    for partial in folder.glob("*.partial-*"):
        try:
            with partial.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                partial.unlink()
        except (BlockingIOError, FileNotFoundError):
            continue  # another process is writing it, or has just finished


def bad_records(shard: Shard) -> list[tuple[int, str, str]]:
    """The records of a finished shard that could not be read, as `encode_shard` returned them."""
    with safe_open(shard.index_path, "numpy") as file:
        return [tuple(each) for each in json.loads(file.metadata()["bad"])]


class _Unfit(Exception):
    """A record whose media are not what the data set promises."""


def _coded(
    records: Records, numbers: range, autoencoders: dict[str, Autoencoder | None]
) -> Iterator[tuple[int, dict[str, Any] | BadRecord, dict[str, Any]]]:
    """(number, record, what each autoencoder makes of it) of some records, as many in one call as it likes."""
    batch_size = max((autoencoder.batch_size for autoencoder in autoencoders.values() if autoencoder), default=1)
    for first in range(numbers.start, numbers.stop, batch_size):
        group: dict[int, Any] = {}
        for i in range(first, min(first + batch_size, numbers.stop)):
            try:
                group[i] = records[i]
            except BadRecord as error:
                group[i] = error
        good = {i: record for i, record in group.items() if not isinstance(record, BadRecord)}
        coded = {
            m: _moments(autoencoder, m, {i: r for i, r in good.items() if m in r and r["present"][m]})
            for m, autoencoder in autoencoders.items()
        }
        for i, record in group.items():
            yield i, record, {m: made[i] for m, made in coded.items() if i in made}


def _moments(autoencoder: Autoencoder | None, m: str, records: dict[int, dict[str, Any]]) -> dict[int, Any]:
    """Mean and deviation of each, or the `_Unfit` that says why there is none; latents that were made elsewhere have
    them already."""
    if autoencoder is None:
        return {i: (r[m], r[f"{m}_std"] if r[f"{m}_std"].any() else None) for i, r in records.items()}
    media = {i: record[m] for i, record in records.items()}
    if autoencoder.batch_size == 1:
        alike = [[i] for i in media]
    else:
        shapes: dict[tuple[int, ...], list[int]] = {}
        for i, x in media.items():
            shapes.setdefault(x.shape, []).append(i)
        alike = list(shapes.values())
    found: dict[int, Any] = {}
    for same in alike:
        try:
            if not medium_of(m).is_visual and len(media[same[0]]) < autoencoder.config.temporal_stride:
                raise UserError(f"it lasts {media[same[0]].shape[0]} samples, less than a latent frame")
            if autoencoder.batch_size == 1:
                found[same[0]] = autoencoder.encode_distribution(media[same[0]])
            else:
                mean, deviation = autoencoder.encode_distribution(np.stack([media[i] for i in same]))
                found |= {i: (mean[at], None if deviation is None else deviation[at]) for at, i in enumerate(same)}
        except UserError as error:
            found |= dict.fromkeys(same, _Unfit(str(error)))
    return found


def _encoded(record: dict[str, Any], coded, modalities, encoders) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    latents: dict[str, np.ndarray] = {}
    for m, made in coded.items():
        if isinstance(made, _Unfit):
            raise made
        mean, deviation = made
        timed = bool(modalities[m].period)
        if mean.shape[timed:] != modalities[m].latent[timed:] or mean.ndim != len(modalities[m].latent):
            raise _Unfit(f"{m} of shape {record[m].shape} gives latents {mean.shape}, not {modalities[m].latent}")
        with np.errstate(over="ignore"):
            # In this order: safetensors write the bytes as they lie in memory.
            stored = {m: mean.astype(np.float16, order="C")}
            if deviation is not None:
                stored[f"{m}.std"] = deviation.astype(np.float16, order="C")
        if not all(np.isfinite(x).all() for x in stored.values()):
            raise _Unfit(f"the latents of its {m} are not finite")
        if m in encoders:
            stored[stored_as(m)] = encoded_features(encoders[m], m, record[m], record["id"], mean.shape, modalities[m])
        latents |= stored
    if not np.isfinite(record["quality"]):
        raise _Unfit(f"its quality is {record['quality']}")
    row = {"id": record["id"], "quality": float(record["quality"]), "caption": record.get("caption", "")}
    for name, value in record.items():
        if np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.integer):
            row[f"label/{name}"] = int(value)
    return latents, row


def _captions(text: Any, captions: list[str]) -> list[np.ndarray | None]:
    if text is None:
        return [None] * len(captions)
    encoded = iter(cached_text_encoder(text).encode([c for c in captions if c]))
    return [next(encoded) if c else None for c in captions]


def _table(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Rows as columns; what a row lacks is -1 for a label, 0 or False for the rest."""
    columns: dict[str, np.ndarray] = {"id": ids_to([row["id"] for row in rows])}
    for name in sorted({name for row in rows for name in row} - {"id"}):
        kind = {"quality": np.float32, "caption": np.int32}.get(name, np.int64 if name[:6] == "label/" else np.int32)
        kind = bool if name.startswith("present/") else kind
        missing = -1 if name.startswith("label/") else 0
        columns[name] = np.array([row.get(name, missing) for row in rows], kind)
    return columns


@lru_cache(maxsize=16)
def _autoencoder(path: Path, config: AnyAutoencoder) -> Autoencoder:
    return load_autoencoder(config, path)


def joined_indexes(shards: list[Shard], modalities: list[str]) -> tuple[dict, dict]:
    """The index of a split from those of its finished shards, and mean and deviation per latent channel."""
    parts, statistics = [load_file(shard.index_path) for shard in shards], {}
    for m in modalities:
        total, square = (sum(p.pop(f"{name}/{m}") for p in parts) for name in ("sum", "square"))
        count = max(1, int(sum(p.pop(f"count/{m}")[0] for p in parts)))
        mean = total / count
        deviation = np.sqrt(np.maximum(square / count - mean**2, 0))
        statistics[m] = {"mean": mean.round(6).tolist(), "std": deviation.round(6).tolist(), "positions": count}
    width = max(p["id"].shape[1] for p in parts)
    for p in parts:
        p["id"] = np.pad(p["id"], ((0, 0), (0, width - p["id"].shape[1])))
    names = {name: p[name].dtype for p in parts for name in p}
    lengths = [len(p["id"]) for p in parts]
    empty = lambda name, n: np.full(n, -1 if name.startswith("label/") else 0, names[name])
    return {
        name: np.concatenate([p[name] if name in p else empty(name, n) for p, n in zip(parts, lengths)])
        for name in names
    }, statistics
