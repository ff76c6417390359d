"""Features of many samples: any layers of a run's network at any noise level, computed once and stored."""

import hashlib
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from selfflow.errors import UserError
from selfflow.input.clips import readable_clips, warn_left_out
from selfflow.modality import Modality, of_latents
from selfflow.progress import Progress
from selfflow.representation.features.feature_files import LayerWriter, Stored, read_layer
from selfflow.representation.features.forward import Forward, Taps, code_hash
from selfflow.representation.protocols import LabelledClips, OpenRun
from selfflow.serialization import digest, to_json

T = TypeVar("T")
_AHEAD = 2  # batches to read ahead


@dataclass(frozen=True)
class Features:
    """Features of n samples.

    Attributes:
      ids: ids of the samples.
      labels: labels of the data, {field: int [n]}.
      layers: {layer: {modality: float32 [n, D], or [n, N, D]}}, memory-mapped and read-only.
      tau: noise level of each modality; 0 for context modalities.
      grids: tokens along each axis of a modality, whose product is N.
    """

    ids: list[str]
    labels: dict[str, np.ndarray]
    layers: dict[int, dict[str, np.ndarray]]
    tau: dict[str, float]
    grids: dict[str, tuple[int, ...]]


def features(
    run: OpenRun,
    data: str | LabelledClips,
    layers: Literal["all"] | int | Iterable[int] = "all",
    tau: float | Mapping[str, float] = 0.1,
    *,
    weights: Literal["ema", "student", "untrained"] = "ema",
    step: int | None = None,
    context: Iterable[str] = (),
    modalities: Iterable[str] | None = None,
    pool: Literal["mean", "tokens"] = "mean",
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    mesh: Mesh | None = None,
    cache: bool = True,
) -> Features:
    """Computes the residual stream after blocks of a run's network, without labels.

    One forward pass computes all layers. Features are written to `RUN/features` batch by batch, so that memory does not
    grow with the number of samples. Stored layers are reused as long as weights, samples, arguments and the code that
    determines the numbers (models, noise, modality, forward) are the same. The noise of a sample depends only on the
    seed and its id.

    Args:
      run: an opened run, `selfflow.run.run.Run`.
      data: a split of the first component's data; or clips from `run.data`, or `Arrays`.
      layers: blocks, counted from 1.
      tau: one noise level for all modalities, or {modality: level}.
      weights, step: as for `Run.model`.
      context: modalities without noise, like context tokens in training.
      modalities: input modalities of the network; by default all modalities of the data.
      pool: the mean over the tokens of each modality, or all tokens; padding tokens are excluded from the mean, and are
        0.
      limit: maximum number of samples, from the first on; by default all.
      seed: seed of the noise.
      batch_size: samples per forward pass; with a mesh, rounded up to a multiple of the number of devices.
      mesh: devices over which weights and samples are sharded; by default the first device only.
      cache: whether to store features in the run folder; otherwise a temporary folder is used and removed.

    Raises:
      UserError: for unknown layers, modalities or splits, naming the known ones; if features are not finite, naming
        layer, modality and sample; if no sample can be read; if files cannot be written.
    """
    clips = run.data(data) if isinstance(data, str) else data
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}: it must be at least 1")
    if pool not in ("mean", "tokens"):
        raise UserError(f"pool is {pool!r}, expected mean or tokens")
    model = run.model(weights, step, mesh)
    blocks = _blocks(layers, model.depth)
    view = _view(model.modalities, clips.shapes, modalities, context, tau)
    count = len(clips) if limit is None else min(int(limit), len(clips))
    key = _key(model, clips, count, view, pool, seed)

    def compute(missing: tuple[int, ...], folder: Path) -> None:
        forward = Forward(
            model.apply, view.streams, missing, view.tau, model.null_label, pool, seed, view.context, mesh
        )
        metadata = {"run": str(run.source), "weights": weights, "step": model.step, "key": key}
        with Progress(f"features of {_title(view, clips)}", count, unit="clip") as shown:
            extract(forward, model.params, clips, count, folder, metadata, batch_size, shown.advance)

    if cache:
        stored = _stored_layers(run.path / "features" / digest(key), blocks, tuple(view.streams), compute)
    else:
        # Memory-mapped arrays remain readable after their files are removed.
        with tempfile.TemporaryDirectory(prefix="features-") as folder:
            stored = _stored_layers(Path(folder), blocks, tuple(view.streams), compute)
    left_out = stored[blocks[0]].left_out
    warn_left_out(clips, left_out)
    rows = np.delete(np.arange(count), left_out)
    return Features(
        ids=stored[blocks[0]].ids,
        labels={field: np.asarray(values)[rows] for field, values in clips.labels.items()},
        layers={layer: stored[layer].arrays for layer in blocks},
        tau=view.tau,
        grids={m: stream.grid for m, stream in view.streams.items()},
    )


def _stored_layers(
    folder: Path,
    blocks: tuple[int, ...],
    modalities: tuple[str, ...],
    compute: Callable[[tuple[int, ...], Path], None],
) -> dict[int, Stored]:
    """Reads features of blocks from a folder, after `compute` has written missing layers."""
    stored = {layer: read_layer(folder, layer, modalities) for layer in blocks}
    missing = tuple(layer for layer in blocks if stored[layer] is None)
    if missing:
        compute(missing, folder)
        for layer in missing:
            stored[layer] = read_layer(folder, layer, modalities)
    # Layers of one folder may come from several extractions, in which different records were readable.
    for layer in blocks[1:]:
        if stored[layer].ids != stored[blocks[0]].ids:
            raise UserError(
                f"{folder}: its layers have different samples, since records became readable or unreadable between "
                "extractions: remove it, and all layers will be computed again"
            )
    return stored


def _key(model: Any, clips: LabelledClips, count: int, view: "_View", pool: str, seed: int) -> dict[str, Any]:
    """Returns everything that determines the features of a layer; equal keys share a folder."""
    return {
        "code": code_hash(),
        "weights": model.identity,
        "data": clips.identity,
        "ids": digest("\n".join(clips.ids[:count])),
        "samples": count,
        "modalities": to_json(view.streams),
        "tau": view.tau,
        "context": list(view.context),
        "pool": pool,
        "seed": int(seed) % 2**32,
    }


def _title(view: "_View", clips: LabelledClips) -> str:
    """Title of an extraction, such as "video+audio, tau 0.1, test"; with two levels if a modality is context."""
    taus = dict.fromkeys(f"{level:g}" for level in view.tau.values())
    return f"{'+'.join(view.streams)}, tau {'/'.join(taus)}, {getattr(clips, 'split', 'arrays')}"


def extract(
    forward: Forward,
    params: Any,
    clips: LabelledClips,
    count: int,
    folder: Path,
    metadata: dict[str, Any],
    batch_size: int,
    advance: Callable[[int], None],
) -> None:
    """Computes the features of the first `count` clips and writes a folder for each layer (`feature_files`).

    A batch is computed while the next ones are read and the previous one is written.

    Args:
      forward: the compiled forward pass.
      params: parameters of the model, on the devices of the mesh.
      clips: as for `features`.
      folder: output folder.
      metadata: JSON data stored beside the features.
      batch_size: samples per forward pass.
      advance: called with the number of samples of every batch.

    Raises:
      UserError: as `features`; unfinished layers are removed.
    """
    left_out: list[int] = []
    writers: dict[int, LayerWriter] = {}
    ids: list[str] = []

    def store(batch: Batch, taps: Taps) -> None:
        batch_ids = [clips.ids[i] for i in batch.rows]
        for layer, tap in jax.device_get(taps).items():
            # Drop the copies of a clip that fill up the last batch.
            tap = {m: x[: len(batch_ids)] for m, x in tap.items()}
            _check_finite(tap, layer, batch_ids)
            writers[layer].add(tap)
        ids.extend(batch_ids)
        advance(len(batch_ids))

    try:
        for layer in forward.layers:
            writers[layer] = LayerWriter(folder, layer)
        previous = None
        for batch in _ahead(batches(clips, count, forward, batch_size, left_out)):
            # Dispatch returns at once: the devices compute this batch while the previous one is written.
            current = batch, forward.start(params, batch.latents, batch.seeds, batch.frames)
            if previous:
                store(*previous)
            previous = current
        if not previous:
            warn_left_out(clips, left_out)
            raise UserError(f"none of {count} clips can be read: there are no features")
        store(*previous)
        for writer in writers.values():
            writer.finish(metadata | {"ids": ids, "left_out": left_out})
    except BaseException:  # remove partial folders after an interrupt, too
        for writer in writers.values():
            writer.drop()
        raise


class Batch(NamedTuple):
    """A batch of clips, filled up with copies of its first clip, so that all batches have one size.

    Attributes:
      rows: numbers of the clips, without copies.
      latents: {modality: [B, ...]}, padded with zeros where a clip is shorter than the others.
      frames: number of latent frames that are data [B], for modalities with padded clips.
      seeds: seeds of the noise of each clip, uint32 [B].
    """

    rows: list[int]
    latents: dict[str, np.ndarray]
    frames: dict[str, np.ndarray]
    seeds: np.ndarray


def batches(
    clips: LabelledClips, count: int, forward: Forward, batch_size: int, left_out: list[int]
) -> Iterator[Batch]:
    """Yields batches of the first `count` clips; appends the numbers of unreadable clips to `left_out`."""
    size = forward.whole(min(batch_size, count))
    readable = readable_clips(clips, range(count), left_out)
    while True:
        group = list(islice(readable, size))
        if not group:
            return
        # Copies of the first clip fill up the last batch, so that one shape is compiled.
        rows, samples = zip(*group, *(group[:1] * (size - len(group))))
        latents, frames = {}, {}
        for m in forward.modalities:
            whole_length = clips.shapes[m][0]
            parts, lengths = [], []
            for sample in samples:
                x = np.asarray(sample[m])
                lengths.append(len(x))
                if len(x) < whole_length:
                    x = np.pad(x, [(0, whole_length - len(x))] + [(0, 0)] * (x.ndim - 1))
                parts.append(x)
            latents[m] = np.stack(parts)
            # Without padding there is no mask of valid tokens, and the program for whole clips is used.
            if min(lengths) < whole_length:
                frames[m] = np.array(lengths, np.int32)
        seeds = [seed_of(clips.ids[row]) for row in rows]
        yield Batch(list(rows[: len(group)]), latents, frames, np.array(seeds, np.uint32))


def seed_of(name: str) -> int:
    """Returns the seed of a sample's noise, a hash of its id."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Yields the same items, computed ahead of their use in a thread."""
    with ThreadPoolExecutor(1) as pool:
        # A generator may not run in two threads at once: the pool has one thread.
        end = object()
        waiting = deque(pool.submit(next, items, end) for _ in range(_AHEAD))
        while True:
            item = waiting.popleft().result()
            if item is end:
                return
            waiting.append(pool.submit(next, items, end))
            yield item


def _check_finite(tap: dict[str, np.ndarray], layer: int, ids: list[str]) -> None:
    for m, x in tap.items():
        bad_B = ~np.isfinite(x.reshape(len(x), -1)).all(axis=1)
        if bad_B.any():
            raise UserError(
                f"layer {layer}, {m}: the features of {ids[int(np.argmax(bad_B))]!r} hold NaN or infinity: look at its "
                "latents and at the metrics of the run, and take an earlier checkpoint"
            )


def _blocks(layers: Literal["all"] | int | Iterable[int], depth: int) -> tuple[int, ...]:
    if isinstance(layers, str):
        if layers != "all":
            raise UserError(f'layers {layers!r}: give "all" or a subset of 1 to {depth}')
        return tuple(range(1, depth + 1))
    blocks = (layers,) if isinstance(layers, int | np.integer) else tuple(layers)
    for layer in blocks:
        if isinstance(layer, bool) or not isinstance(layer, int | np.integer) or not 1 <= layer <= depth:
            raise UserError(f"layers: {layer!r} is not a block; this model has blocks 1 to {depth}")
    if not blocks:
        raise UserError(f"layers is empty: give a subset of 1 to {depth}")
    return tuple(sorted({int(layer) for layer in blocks}))


class _View(NamedTuple):
    """The input of the network.

    Attributes:
      streams: streams of its modalities, in the order of the data.
      context: names of the context modalities.
      tau: noise level of each modality; 0 for context modalities.
    """

    streams: dict[str, Modality]
    context: tuple[str, ...]
    tau: dict[str, float]


def _view(
    known: dict[str, Modality],
    shapes: dict[str, tuple[int, ...]],
    modalities: Iterable[str] | None,
    context: Iterable[str],
    tau: float | Mapping[str, float],
) -> _View:
    """Resolves the input of the network for a call of `features`.

    Args:
      known: streams of the model.
      shapes: shape of one latent of each modality of the data.
      modalities, context, tau: as for `features`.
    """
    available = [m for m in shapes if m in known]
    names = available if modalities is None else _names(modalities)
    context_names = _names(context)
    for argument, values, choices in (("modalities", names, available), ("context", context_names, names)):
        for m in values:
            if m not in choices:
                raise UserError(f"{argument}: {m!r} is unknown; choose from {', '.join(choices) or 'none'}")
    if not names:
        raise UserError(f"modalities is empty: name at least one of {', '.join(available) or ', '.join(known)}")
    # A fixed order, so that equal settings have equal keys.
    names = [m for m in available if m in names]
    # The streams of the model with the lengths of this data, which may differ from the training lengths.
    batch_of_one = {m: jax.ShapeDtypeStruct((1, *shapes[m]), np.float32) for m in names}
    try:
        streams = of_latents(known, batch_of_one)
    except ValueError as error:
        raise UserError(f"data: {error}") from error
    levels = dict(tau) if isinstance(tau, Mapping) else dict.fromkeys(names, tau)
    for m, level in levels.items():
        if m not in names:
            raise UserError(f"tau: {m!r} is not a modality of this data; choose from {', '.join(names)}")
        if not 0 <= level <= 1:
            raise UserError(f"tau is {level}: give a number from 0, data, to 1, noise")
    context_in_order, tau_of = [], {}
    for m in names:
        if m in context_names:
            context_in_order.append(m)
            tau_of[m] = 0.0
        elif m in levels:
            tau_of[m] = float(levels[m])
        else:
            raise UserError(f"tau has no level for {m}: it needs one for each of {', '.join(names)}")
    return _View(streams, tuple(context_in_order), tau_of)


def _names(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(dict.fromkeys(names))
