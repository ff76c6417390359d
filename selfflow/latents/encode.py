"""Encoding of built data sets into latents: shards are encoded in parallel and resumed after a kill."""

import multiprocessing
import re
import sys
from collections.abc import Collection, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfflow.autoencoders.config import uses_pretrained
from selfflow.data.built import BuiltDataset
from selfflow.data.workers import cores, start_worker
from selfflow.encoders.config import Encoder
from selfflow.encoders.load import cached_text_encoder
from selfflow.encoders.text.config import Text
from selfflow.errors import UserError, check_at_least
from selfflow.latents.encode_shard import encode_shard
from selfflow.latents.features import check_encoder_ids, encoder_identities
from selfflow.latents.finish import check_skipped, finish_latents
from selfflow.latents.fit_autoencoder import FittedAutoencoder, check_precomputed
from selfflow.latents.shard import EncodeJob, Shard, SkippedRecord, clear_partials, skipped_records
from selfflow.latents.store import MANIFEST, Latents
from selfflow.modality import Modality
from selfflow.progress import Progress
from selfflow.serialization import digest
from selfflow.storage.lock import locked
from selfflow.storage.mirror import fetch_folder, publish_folder
from selfflow.storage.paths import url_of_copy

_FORMAT = 3  # increment when the latents for unchanged settings change
_SHARD_BYTES = 32e6
_FEW_RECORDS = 20_000  # with fewer, one process finishes before others have started
_SHOWN_WARNINGS = 3  # for each shard


@dataclass(frozen=True)
class EncodeShare:
    """The part of the encoding for this host: number `host` of `hosts`, with `processes` workers."""

    processes: int | None = None
    """Worker processes; by default one for each core if there are many records."""
    host: int = 0
    """Number of this host, from 0."""
    hosts: int = 1
    """Number of hosts that encode into the same folder."""

    def __post_init__(self):
        if not 0 <= self.host < self.hosts:
            raise UserError(f"host is {self.host} of {self.hosts} hosts: give a number from 0 to hosts - 1")
        check_at_least(self, "", processes=1)


def encode(
    built: BuiltDataset,
    fitted: Mapping[str, FittedAutoencoder],
    modalities: Mapping[str, Modality],
    text: Text | None,
    data_dir: Path,
    *,
    encoders: Mapping[str, Encoder] = {},
    share: EncodeShare = EncodeShare(),
    exclude: Collection[str] = (),
    records_per_shard: int | None = None,
) -> Latents | None:
    """Encodes a data set into `data_dir/latents`, resumes an encoding that was killed, or opens a finished one.

    Args:
      built: the data set.
      fitted: autoencoder of each of its modalities.
      modalities: the expected latents.
      text: config of the caption encoder, or None.
      data_dir: cache folder.
      encoders: frozen encoders, by modality, whose features are stored as well.
      share: the part of the encoding for this process.
      exclude: ids that the returned latents never read; they are encoded nevertheless, as experiments share the folder.
      records_per_shard: records per shard; by default a shard has about 32 MB.

    Returns:
      The latents; None if other hosts have not finished their parts.

    Raises:
      UserError: if too many records cannot be read, a worker process died, or an encoder lacks samples.
    """
    fitted = {m: fitted[m] for m in sorted(fitted)}
    if built.settings.holds_latents:
        check_precomputed(built, fitted, modalities, encoders)
    # The folder is named by a hash of everything that determines the latents, so that later calls find it.
    identities: dict[str, Any] = {m: autoencoder.identity for m, autoencoder in fitted.items()}
    identities["text"] = cached_text_encoder(text).identity if text else None
    if encoders:
        identities["features"] = encoder_identities(encoders)
    key = digest([_FORMAT, built.name, built.fingerprint, built.settings.decoding_options(), identities], 12)
    folder = data_dir / "latents" / f"{folder_name(built.name)}-{key}"
    if share.hosts > 1 and url_of_copy(folder):
        raise UserError(
            f"hosts is {share.hosts}: only one host may encode into a bucket; encode into a shared folder and copy it"
        )
    job = EncodeJob(built, fitted, {m: modalities[m] for m in fitted}, text, dict(encoders), folder)
    fetch_folder(folder, MANIFEST)
    if not (folder / MANIFEST).exists() and not _encode_folder(job, share, records_per_shard):
        return None
    publish_folder(folder, MANIFEST)
    latents = Latents(folder, exclude)
    if latents.manifest["deleted"] != built.deleted:
        raise UserError(
            f"{folder} was encoded before samples were deleted: run `selfflow data delete` again for this data set"
        )
    return latents


def folder_name(dataset: str) -> str:
    """Prefix of the folders of latents of a data set."""
    return re.sub("[^A-Za-z0-9_.]+", "-", dataset)


def _encode_folder(job: EncodeJob, share: EncodeShare, records_per_shard: int | None) -> bool:
    """Encodes the shards of this host; the host that ends last finishes the folder.

    Returns:
      Whether the folder is finished.
    """
    name, manifest = job.built.name, job.folder / MANIFEST
    job.folder.mkdir(parents=True, exist_ok=True)
    with locked(job.folder / f"lock-{share.host}", f"encode {name}"):
        if manifest.exists():  # finished by another process while this one waited for the lock
            return True
        check_encoder_ids(job.built, job.encoders)
        shards = _shards(job, records_per_shard)
        _encode_shards(job, shards, share)
        # Every host tries to finish; only the last one has all shards.
        with locked(job.folder / "lock-finish", f"finish the latents of {name}"):
            if not manifest.exists():
                if not all(shard.done for shard in shards):
                    return False
                finish_latents(job, shards)
            for shard in shards:
                shard.index_path.unlink(missing_ok=True)
    return True


def _shards(job: EncodeJob, records_per_shard: int | None) -> list[Shard]:
    """All shards of all splits; they do not depend on the number of hosts and processes."""
    if records_per_shard is None:
        # Features do not affect the shard size, so that latents have the same shards and hash with and without
        # features.
        size = 2 * sum(np.prod(modality.latent) for modality in job.modalities.values())
        if job.text:
            size += 2 * job.text.tokens * cached_text_encoder(job.text).width
        records_per_shard = int(np.clip(_SHARD_BYTES / max(size, 1), 64, 65536))
    shards = []
    for split, total in job.built.splits.items():
        starts = range(0, total, records_per_shard)
        for number, start in enumerate(starts):
            stop = min(start + records_per_shard, total)
            shards.append(Shard(job, split, number, len(starts), start, stop))
    return shards


def _encode_shards(job: EncodeJob, shards: list[Shard], share: EncodeShare) -> None:
    """Encodes the unfinished shards of this host.

    Raises:
      UserError: if too many records cannot be encoded, or a worker process died.
    """
    clear_partials(job.folder)
    shards_of_host = shards[share.host :: share.hosts]
    waiting = [shard for shard in shards_of_host if _is_unfinished(shard)]
    if not waiting:
        return
    all_records = _count(shards)
    total, left = _count(shards_of_host), _count(waiting)
    processes = min(share.processes or _default_processes(job, left), len(waiting))
    skipped: list[SkippedRecord] = []

    def add(new: list[SkippedRecord]) -> None:
        _warn(new, job.built.name)
        skipped.extend(new)
        check_skipped(skipped, job.built, all_records)

    with Progress(f"encode {job.built.name.split('/')[0]}", total, done=total - left, unit="record") as shown:
        if processes == 1:
            from threadpoolctl import threadpool_limits

            # As in workers: the last bits of a matrix product depend on the number of threads.
            with threadpool_limits(1, "blas"):
                for shard in waiting:
                    add(encode_shard(shard, shown.advance))
            return
        # spawn: JAX may have started threads in this process, which a fork does not copy.
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_start_worker) as pool:
            # Process results in the order of completion; an error cancels the shards that have not started.
            futures = {pool.submit(encode_shard, shard): shard for shard in waiting}
            try:
                for future in as_completed(futures):
                    shown.advance(futures[future].records)
                    add(future.result())
            except BrokenProcessPool as error:
                raise UserError(
                    "a worker process died while latents were encoded (out of memory?); finished shards are kept: "
                    "run the same command again, with fewer --processes"
                ) from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _count(shards: list[Shard]) -> int:
    """Number of records in shards."""
    return sum(shard.records for shard in shards)


def _default_processes(job: EncodeJob, records: int) -> int:
    """One worker per core for many records; one process for pretrained networks, which use all cores or a GPU."""
    pretrained = any(uses_pretrained(fitted.config) for fitted in job.fitted.values())
    return cores() if records > _FEW_RECORDS and not pretrained else 1


def _is_unfinished(shard: Shard) -> bool:
    """Whether a shard is missing, or has skipped records, which a new build of the data set may have repaired."""
    try:
        return bool(skipped_records(shard))
    except FileNotFoundError:
        return True


def _start_worker() -> None:
    from threadpoolctl import threadpool_limits

    start_worker()
    threadpool_limits(1, "blas")  # one process per core


def _warn(skipped: list[SkippedRecord], name: str) -> None:
    more = f" (and {len(skipped) - _SHOWN_WARNINGS} more)" if len(skipped) > _SHOWN_WARNINGS else ""
    for record, shard, reason in skipped[:_SHOWN_WARNINGS]:
        print(f"warning: {name}: record {record} in {shard} was left out: {reason}{more}", file=sys.stderr)
