"""From built data sets to latents: fitted autoencoders, shards encoded side by side, resumed after a kill."""

import fcntl
import hashlib
import json
import multiprocessing
import re
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from selfflow.autoencoders.config import config_without_path, uses_pretrained
from selfflow.autoencoders.quality import reconstruction_quality
from selfflow.data.built import BuiltDataset
from selfflow.data.workers import cores, start_worker
from selfflow.encoders.config import Encoder
from selfflow.encoders.load import cached_text_encoder
from selfflow.errors import UserError
from selfflow.latents.encode_shard import (
    Shard,
    bad_records,
    clear_partials,
    encode_shard,
    joined_indexes,
)
from selfflow.latents.features import check_ids, encoder_metadata, identities_of
from selfflow.latents.fit_autoencoder import FittedAutoencoder, keep_copy, sample_records
from selfflow.latents.precomputed import check_precomputed
from selfflow.latents.store import MANIFEST, Latents
from selfflow.media import medium_of
from selfflow.modality import Modality
from selfflow.progress import Progress
from selfflow.serialization import to_json
from selfflow.storage.atomic import atomic_write
from selfflow.storage.copies import fetch, publish
from selfflow.storage.paths import url_of

_FORMAT = 2  # raised when equal settings come to mean other latents
_SHARD_BYTES = 32e6
_QUALITY_RECORDS, _QUALITY_BYTES = 128, 200e6
_FEW = 20_000  # records that one process encodes before others would have started
_BAD_SHARE = 0.01


@dataclass(frozen=True)
class EncodeShare:
    """Which part of the encoding this process takes: host `host` of `hosts`, with `processes` of its own."""

    processes: int | None = None
    """Worker processes; by default one for each core when there is much to do."""
    host: int = 0
    """Number of this host, from 0."""
    hosts: int = 1
    """Hosts that encode into the same folder at once."""

    def __post_init__(self):
        if not 0 <= self.host < self.hosts:
            raise UserError(f"host is {self.host} of {self.hosts} hosts: give a number from 0 to hosts - 1")
        if self.processes is not None and self.processes < 1:
            raise UserError(f"processes is {self.processes}: it must be at least 1")


def encode(
    built: BuiltDataset,
    fitted: Mapping[str, FittedAutoencoder],
    modalities: Mapping[str, Modality],
    text: Any,
    data_dir: Path,
    *,
    encoders: Mapping[str, Encoder] = {},
    share: EncodeShare = EncodeShare(),
    exclude: Collection[str] = (),
    records_per_shard: int | None = None,
) -> Latents | None:
    """Encodes a data set into `data_dir/latents`, or finds it encoded; goes on where a killed process stopped.

    Args:
      built: the data set.
      fitted: the autoencoder of each modality that it has.
      modalities: the latents that are expected.
      text: settings of the caption encoder, or None.
      data_dir: cache folder.
      encoders: frozen encoders whose features of these modalities are stored, too.
      share: the part of this process.
      exclude: ids that the returned latents never read. They are encoded: the folder serves other experiments too.
      records_per_shard: by default as many as make 32 MB.

    Returns:
      The latents, or None where other hosts have not finished their part yet.

    Raises:
      UserError: if too many records cannot be read, a worker process died, or an encoder lacks samples.
    """
    mine = {m: fitted[m] for m in sorted(fitted)}
    if built.settings.holds_latents:
        check_precomputed(built, mine, modalities, encoders)
    identities = {m: f.identity for m, f in mine.items()} | {"text": text and cached_text_encoder(text).identity}
    identities |= {"features": identities_of(encoders)} if encoders else {}
    key = json.dumps([_FORMAT, built.name, built.fingerprint, built.settings.decoding_options(), identities])
    folder = data_dir / "latents" / f"{folder_name(built.name)}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if share.hosts > 1 and url_of(folder):
        raise UserError(
            f"hosts is {share.hosts}: into a bucket one host encodes; encode into a shared folder and copy it there"
        )
    fetch(folder, MANIFEST)
    if not (folder / MANIFEST).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"lock-{share.host}", f"encode {built.name}"):
            if not (folder / MANIFEST).exists():
                check_ids(built, encoders)
                shards = _shards(built, mine, dict(modalities), text, dict(encoders), folder, records_per_shard)
                _encode_shards(shards, built, share)
                # Whoever ends last finds all shards there, be it on another host, and joins them.
                with locked(folder / "lock-finish", f"finish the latents of {built.name}"):
                    if not (folder / MANIFEST).exists():
                        if not all(shard.done for shard in shards):
                            return None
                        _finish(shards, built, mine, modalities, text, encoders, folder)
                    for shard in shards:
                        shard.index_path.unlink(missing_ok=True)
    publish(folder, MANIFEST)
    latents = Latents(folder, exclude)
    if latents.manifest["forgotten"] != built.forgotten:
        raise UserError(
            f"{folder} was encoded before samples were forgotten: run `selfflow data delete` again for this data set"
        )
    return latents


def folder_name(dataset: str) -> str:
    """What the folders of latents of a data set begin with."""
    return re.sub("[^A-Za-z0-9_.]+", "-", dataset)


def _shards(
    built: BuiltDataset, fitted, modalities, text, encoders, folder: Path, per_shard: int | None
) -> list[Shard]:
    # Whatever features stand beside them: shards of the same records, so that these latents are known for the same.
    size = 2 * sum(np.prod(modalities[m].latent) for m in fitted)
    size += 2 * text.tokens * cached_text_encoder(text).width if text else 0
    per_shard = per_shard or int(np.clip(_SHARD_BYTES / max(size, 1), 64, 65536))
    autoencoders = {m: (f.path, f.config) for m, f in fitted.items()}
    shards = []
    for split, total in built.splits.items():
        count = -(-total // per_shard)
        bounds = [(i * per_shard, min((i + 1) * per_shard, total)) for i in range(count)]
        for number, (start, stop) in enumerate(bounds):
            expected = {m: modalities[m] for m in fitted}
            shards.append(
                Shard(built, split, number, count, start, stop, folder, autoencoders, expected, text, encoders)
            )
    return shards


def _encode_shards(shards: list[Shard], built: BuiltDataset, share: EncodeShare) -> None:
    clear_partials(shards[0].folder)
    mine = shards[share.host :: share.hosts]
    waiting = [shard for shard in mine if _to_do(shard)]
    everything = sum(s.stop - s.start for s in shards)
    total, left = (sum(s.stop - s.start for s in some) for some in (mine, waiting))
    if not waiting:
        return
    from threadpoolctl import threadpool_limits

    # Networks take all cores, or the accelerator, by themselves.
    several = left > _FEW and not any(uses_pretrained(config) for _, config in waiting[0].autoencoders.values())
    processes = min(share.processes or (cores() if several else 1), len(waiting))
    bad: list[tuple[int, str, str]] = []
    with Progress(f"encode {built.name.split('/')[0]}", total, done=total - left, unit="record") as shown:
        if processes == 1:
            with threadpool_limits(
                1, "blas"
            ):  # as in a worker: the last bits of a product tell how many threads shared it
                for shard in waiting:
                    _add_bad(bad, encode_shard(shard, shown.advance), built, everything)
            return
        # spawn: JAX may be running threads in this process, and those do not survive a fork.
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_start_worker) as pool:
            futures = {pool.submit(encode_shard, shard): shard for shard in waiting}
            try:
                for future in as_completed(futures):
                    shown.advance(futures[future].stop - futures[future].start)
                    _add_bad(bad, future.result(), built, everything)
            except BrokenProcessPool as error:
                raise UserError(
                    "a worker process died while latents were encoded (out of memory?); finished shards are kept: "
                    "run the same command again, with fewer --processes"
                ) from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _to_do(shard: Shard) -> bool:
    """Whether a shard is not finished, or holds records that could not be read: the data may have been mended since."""
    try:
        return bool(bad_records(shard))
    except FileNotFoundError:
        return True


def _start_worker() -> None:
    from threadpoolctl import threadpool_limits

    start_worker()
    threadpool_limits(1, "blas")  # there is a process for each core


def _add_bad(bad: list[tuple[int, str, str]], new: list[tuple[int, str, str]], built: BuiltDataset, total: int) -> None:
    for record, shard, reason in new[:3]:
        more = f" (and {len(new) - 3} more)" if len(new) > 3 else ""
        print(f"warning: {built.name}: record {record} in {shard} was left out: {reason}{more}", file=sys.stderr)
    bad += new
    _check_bad(bad, built, total)


def _check_bad(bad: list[tuple[int, str, str]], built: BuiltDataset, total: int) -> None:
    if len(bad) > max(1, _BAD_SHARE * total):
        _, shard, reason = bad[-1]
        raise UserError(
            f"{len(bad)} of {total} records of {built.name} cannot be encoded, the last in {shard} ({reason}): "
            f"`selfflow data verify` lists them; build the data set again"
        )


def _finish(shards: list[Shard], built: BuiltDataset, fitted, modalities, text, encoders, folder: Path) -> None:
    """Joins the shards' indexes, measures the reconstruction and writes the manifest, which makes the folder valid."""
    manifest: dict[str, Any] = {
        "dataset": built.name,
        "settings": to_json(built.settings),
        "fingerprint": built.fingerprint,
        "forgotten": built.forgotten,
        "shards": {split: [s.stop - s.start for s in shards if s.split == split] for split in built.splits},
        "modalities": {
            m: {
                "identity": f.identity,
                "autoencoder": config_without_path(f.config),
                "fitted_on": f.fitted_on,
                "latent": list(modalities[m].latent),
                "period": modalities[m].period,
            }
            for m, f in fitted.items()
        },
        "text": None if text is None else _text(text),
        "features": encoder_metadata(encoders),
        "unreadable": {},
    }
    for split in built.splits:
        parts = [s for s in shards if s.split == split]
        index, statistics = joined_indexes(parts, list(fitted))
        with atomic_write(folder / f"{split}.index.safetensors") as partial:
            partial.write_bytes(save(index))
        if split == "train":
            manifest["statistics"] = statistics
        if bad := [each for shard in parts for each in bad_records(shard)]:
            manifest["unreadable"][split] = bad
    unreadable = [each for bad in manifest["unreadable"].values() for each in bad]
    _check_bad(unreadable, built, sum(built.splits.values()))
    manifest["quality"] = _quality(built, fitted)
    for m, f in fitted.items():
        if f.path:
            keep_copy(f.path, folder / f"autoencoder_{m}.safetensors")
    with atomic_write(folder / MANIFEST) as partial:
        partial.write_text(json.dumps(manifest, indent=1))


def _text(text: Any) -> dict[str, Any]:
    encoder = cached_text_encoder(text)
    return {"settings": to_json(text), "identity": encoder.identity, "width": encoder.width}


def _quality(built: BuiltDataset, fitted: Mapping[str, FittedAutoencoder]) -> dict[str, dict[str, float]]:
    split = "validation" if "validation" in built.splits else "train"
    found = {}
    for m, f in () if built.settings.holds_latents else fitted.items():
        records = sample_records(built, split, m, _QUALITY_RECORDS, f.config.temporal_stride, largest=_QUALITY_BYTES)
        if records:
            materials = list(built.metadata.get("materials", []))
            rate = medium_of(m).rate(built.settings)
            found[m] = reconstruction_quality(f.autoencoder(), records, m, rate, materials)
    return found


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds a lock that ends with the process; waits, and says so, while another process holds it."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{what}: another process is at it; waiting for it to end", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def wait_for(path: Path, what: str) -> None:
    """Returns when a file that another host makes is there."""
    said = 0.0
    while not path.exists():
        if time.monotonic() - said > 30:
            print(f"waiting for host 0, which must run, too: {what}", file=sys.stderr, flush=True)
            said = time.monotonic()
        time.sleep(0.5)
