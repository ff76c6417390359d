"""Features of many samples: of any layers of a run's network, at any noise, computed once and kept."""

import hashlib
import json
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from selfflow.errors import UserError
from selfflow.input.batches import readable_clips, warn_left_out
from selfflow.modality import Modality, of_latents
from selfflow.progress import Progress
from selfflow.representation.features.feature_files import LayerWriter, read_layer
from selfflow.representation.features.forward import Forward, Taps, code_hash
from selfflow.serialization import to_json

T = TypeVar("T")
_AHEAD = 2  # batches that are read while one is computed


@dataclass(frozen=True)
class Features:
    """Features of n samples.

    Attributes:
      ids: of the samples.
      labels: {field: int [n]}, as the data has them.
      layers: {layer: {modality: float32 [n, D], or [n, N, D]}}, memory-mapped and read-only.
      tau: the noise level of each modality; 0 of the context.
      grids: tokens along each axis of a modality, whose product is N.
    """

    ids: list[str]
    labels: dict[str, np.ndarray]
    layers: dict[int, dict[str, np.ndarray]]
    tau: dict[str, float]
    grids: dict[str, tuple[int, ...]]


def features(
    run: Any,
    data: Any,
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
    """What blocks of a run's network make of samples without a label: the residual stream behind each block.

    One forward pass serves all layers. They are written to `RUN/features` as they come, so that memory does not grow
    with the number of samples, and are not computed again: of layers that were asked for before, nothing is, as long as
    weights, samples, arguments and the code that decides the numbers (models, noise, modality, forward) are the same.
    The noise of a sample depends on the seed and its id alone.

    Args:
      run: an opened run, `selfflow.run.run.Run`.
      data: a split of its data, whose first component is meant; or clips as `run.data` gives them, or `Arrays`.
      layers: blocks, counted from 1.
      tau: one noise level for all modalities, or {modality: level}.
      weights, step: which, as for `Run.model`.
      context: modalities that are shown without noise, as context tokens are in training.
      modalities: those that the network sees; by default all of the data.
      pool: the mean over the tokens of each modality, or all tokens; those of padding count in no mean, and are 0.
      limit: takes the first so many samples alone.
      seed: of the noise.
      batch_size: samples at once; over a mesh, as many more as make a whole number for each device.
      mesh: devices to spread weights and samples over; by default the first alone.
      cache: whether to keep them in the run folder; else they lie in a temporary folder that goes with the arrays.

    Raises:
      UserError: for layers, modalities, splits and other arguments that do not exist, naming those that do; if features
        are no numbers, naming layer, modality and sample; if no sample can be read; if they cannot be written.
    """
    clips = run.data(data) if isinstance(data, str) else data
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}: it must be at least 1")
    if pool not in ("mean", "tokens"):
        raise UserError(f"pool {pool!r}: there are mean and tokens")
    model = run.model(weights, step, mesh)
    blocks = _blocks(layers, model.depth)
    streams, held, levels = _seen(model.modalities, clips.shapes, modalities, context, tau)
    count = len(clips) if limit is None else min(int(limit), len(clips))
    asked = {
        "code": code_hash(),
        "weights": model.identity,
        "data": clips.identity,
        "ids": hashlib.sha256("\n".join(clips.ids[:count]).encode()).hexdigest()[:16],
        "samples": count,
        "modalities": to_json(streams),
        "tau": levels,
        "context": list(held),
        "pool": pool,
        "seed": int(seed) % 2**32,
    }
    name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    kept = nullcontext(run.path / "features" / name) if cache else tempfile.TemporaryDirectory(prefix="features-")
    with kept as folder:
        stored = lambda layer: read_layer(Path(folder), layer, tuple(streams))
        found = {layer: stored(layer) for layer in blocks}
        if missing := tuple(layer for layer in blocks if found[layer] is None):
            forward = Forward(model.apply, streams, missing, levels, model.null_label, pool, seed, held, mesh)
            told = {"run": str(run.source), "weights": weights, "step": model.step, "asked": asked}
            with Progress(f"features of {_told(streams, levels, clips)}", count, unit="clip") as shown:
                extract(forward, model.params, clips, count, Path(folder), told, batch_size, shown.advance)
            found |= {layer: stored(layer) for layer in missing}
    ids, left_out = found[blocks[0]].ids, found[blocks[0]].left_out
    if any(other.ids != ids for other in found.values()):
        raise UserError(
            f"{folder}: its layers are of different samples, since some could be read at one time alone: remove it, "
            "and all are computed again"
        )
    warn_left_out(clips, left_out)
    rows = np.delete(np.arange(count), left_out)
    labels = {field: np.asarray(values)[rows] for field, values in clips.labels.items()}
    grids = {m: stream.grid for m, stream in streams.items()}
    return Features(ids, labels, {layer: found[layer].arrays for layer in blocks}, levels, grids)


def _told(streams: Mapping[str, Modality], levels: Mapping[str, float], clips: Any) -> str:
    taus = dict.fromkeys(f"{levels[m]:g}" for m in streams)
    return f"{'+'.join(streams)}, tau {'/'.join(taus)}, {getattr(clips, 'split', 'arrays')}"


def extract(
    forward: Forward,
    params: Any,
    clips: Any,
    count: int,
    folder: Path,
    told: dict[str, Any],
    batch_size: int,
    advance: Callable[[int], None],
) -> None:
    """Computes the features of the first `count` clips and writes a folder for each layer (`feature_files`).

    Batches are read ahead and written behind: the devices always have the next one.

    Args:
      forward: which features.
      params: parameters of the model, on the devices of the mesh.
      clips: as for `features`.
      folder: where to.
      told: what is to stand beside them.
      batch_size: samples at once.
      advance: is told of every batch how many samples it had.

    Raises:
      UserError: as `features`; of layers that were not finished nothing is then left.
    """
    left_out: list[int] = []
    writers: dict[int, LayerWriter] = {}
    ids: list[str] = []

    def store(batch: Batch, out: Taps) -> None:
        named = [clips.ids[i] for i in batch.rows]
        for layer, tap in jax.device_get(out).items():
            tap = {m: x[: len(named)] for m, x in tap.items()}
            _check_finite(tap, layer, named)
            writers[layer].add(tap)
        ids.extend(named)
        advance(len(named))

    try:
        for layer in forward.layers:
            writers[layer] = LayerWriter(folder, layer)
        before = None
        for batch in _ahead(batches(clips, count, forward, batch_size, left_out)):
            after = batch, forward.start(params, batch.latents, batch.seeds, batch.frames)
            if before:
                store(*before)
            before = after
        if not before:
            warn_left_out(clips, left_out)
            raise UserError(f"none of {count} clips can be read: there are no features")
        store(*before)
        for writer in writers.values():
            writer.finish(told | {"ids": ids, "left_out": left_out})
    except BaseException:
        for writer in writers.values():
            writer.drop()
        raise


class Batch(NamedTuple):
    """Some clips; after those of `rows` the first is repeated, so that all batches are as large.

    Attributes:
      rows: their numbers.
      latents: {modality: [B, ...]}, filled up with zeros where a clip is shorter than the others.
      frames: of modalities with such clips how many latent frames are data, [B].
      seeds: what the noise of each depends on, uint32 [B].
    """

    rows: list[int]
    latents: dict[str, np.ndarray]
    frames: dict[str, np.ndarray]
    seeds: np.ndarray


def batches(clips: Any, count: int, forward: Forward, batch_size: int, left_out: list[int]) -> Iterator[Batch]:
    """The first `count` clips without those that cannot be read, whose numbers are added to `left_out`."""
    size = forward.whole(min(batch_size, count))
    found = readable_clips(clips, range(count), left_out)
    while some := list(islice(found, size)):
        rows = [row for row, _ in some]
        filled = some + some[:1] * (size - len(some))
        latents, frames = {}, {}
        for m in forward.modalities:
            parts, shape = [np.asarray(sample[m]) for _, sample in filled], clips.shapes[m]
            lengths = np.array([len(x) for x in parts], np.int32)
            if (lengths < shape[0]).any():
                frames[m] = lengths
                parts = [np.pad(x, [(0, shape[0] - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in parts]
            latents[m] = np.stack(parts)
        yield Batch(rows, latents, frames, np.array([seed_of(clips.ids[row]) for row, _ in filled], np.uint32))


def seed_of(name: str) -> int:
    """What the noise of the sample of this id depends on, beside the seed."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same, made in a thread a little before they are asked for."""
    with ThreadPoolExecutor(1) as pool:
        end = object()
        waiting = deque(pool.submit(next, items, end) for _ in range(_AHEAD))
        while (item := waiting.popleft().result()) is not end:
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


def _blocks(layers: Any, depth: int) -> tuple[int, ...]:
    if isinstance(layers, str):
        if layers != "all":
            raise UserError(f'layers {layers!r}: give "all", or some of 1 to {depth}')
        return tuple(range(1, depth + 1))
    chosen = (layers,) if isinstance(layers, int | np.integer) else tuple(layers)
    for layer in chosen:
        if isinstance(layer, bool) or not isinstance(layer, int | np.integer) or not 1 <= layer <= depth:
            raise UserError(f"layers: {layer!r} is none; this model has blocks 1 to {depth}")
    if not chosen:
        raise UserError(f"layers is empty: name some of 1 to {depth}")
    return tuple(sorted({int(layer) for layer in chosen}))


def _seen(
    known: dict[str, Modality],
    shapes: dict[str, tuple[int, ...]],
    modalities: Iterable[str] | None,
    context: Iterable[str],
    tau: float | Mapping[str, float],
) -> tuple[dict[str, Modality], tuple[str, ...], dict[str, float]]:
    """The streams that the network sees, those of them that are context, and the level of each, 0 of the context.

    Args:
      known: streams of the model.
      shapes: of one latent of each modality of the data.
      modalities, context, tau: as for `features`.
    """
    there = [m for m in shapes if m in known]
    names = there if modalities is None else _names(modalities)
    held = _names(context)
    for what, chosen, choices in (("modalities", names, there), ("context", held, names)):
        for m in chosen:
            if m not in choices:
                raise UserError(f"{what}: {m!r} is none; there are {', '.join(choices) or 'none'}")
    if not names:
        raise UserError(f"modalities is empty: name some of {', '.join(there) or ', '.join(known)}")
    # In one order, so that what is the same has one name.
    names = [m for m in there if m in names]
    try:
        streams = of_latents(known, {m: jax.ShapeDtypeStruct((1, *shapes[m]), np.float32) for m in names})
    except ValueError as error:
        raise UserError(f"data: {error}") from error
    levels = dict(tau) if isinstance(tau, Mapping) else dict.fromkeys(names, tau)
    for m, level in levels.items():
        if m not in names:
            raise UserError(f"tau: {m!r} is no modality here; there are {', '.join(names)}")
        if not 0 <= level <= 1:
            raise UserError(f"tau is {level}: give a number from 0, data, to 1, noise")
    for m in names:
        if m not in levels and m not in held:
            raise UserError(f"tau has no level for {m}: it needs one for each of {', '.join(names)}")
    return streams, tuple(m for m in names if m in held), {m: 0.0 if m in held else float(levels[m]) for m in names}


def _names(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(dict.fromkeys(names))
