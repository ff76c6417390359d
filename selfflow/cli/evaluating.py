"""What `selfflow evaluate` and evaluations during training share: what to look with, and what numbers that gives."""

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from selfflow.data.catalogue import Dataset
from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.evaluation.collisions.calibrate import fit_to
from selfflow.evaluation.compare import Comparison, compare
from selfflow.evaluation.extractors import media_of, open_extractor
from selfflow.evaluation.gather import Gathered, Looks, World
from selfflow.evaluation.own_layer import OwnLayer
from selfflow.evaluation.real import RealClips
from selfflow.experiment import Experiment
from selfflow.input.batches import Feed
from selfflow.input.built import Built
from selfflow.modality import Modality
from selfflow.progress import Progress
from selfflow.sampling.files import write_media, write_sheet
from selfflow.sampling.generate import Condition, Generator
from selfflow.training.processes import first
from selfflow.training.sharding import Devices, on_one_device

# Clips that the judges of the material are fitted to.
_FITTED = 1024


def looks_of(
    features: tuple[str, ...],
    experiment: Experiment,
    name: str,
    modalities: Mapping[str, Modality],
    weights: Any,
    of: str,
    world: World | None,
    watched: int,
) -> Looks:
    """What samples of a set are looked at with.

    Args:
      features: as `Evaluation.features` names them; those that look at nothing in the set are left out.
      experiment: of the run.
      name: of the set; with `modalities` its streams.
      weights: parameters of the model, for its own layer.
      of: what tells these weights from others.
      world: the verifier, or None.
      watched: how many clips are looked at one by one.

    Raises:
      UserError: for features that there are not, or whose package or file is missing.
    """
    rates = {m: media.rate for m, media in experiment.media(name).items()}
    extractors, layer = [], None
    for spec in features:
        kind, _, number = spec.partition("=")
        if kind == "layer":
            block = _layer(experiment, number)
            layer = OwnLayer(
                experiment.objective().apply,
                weights,
                dict(modalities),
                block,
                experiment.proof.probe_tau,
                experiment.model.labels,
                experiment.model.width,
                of,
            )
            continue
        extractors += [open_extractor(spec, m) for m in modalities if m in media_of(spec)]
    return Looks(rates, tuple(extractors), layer, world if "video" in modalities else None, watched)


def _layer(experiment: Experiment, number: str) -> int:
    block = number or getattr(experiment.alignment, "teacher_layer", round(0.7 * experiment.model.depth))
    if not str(block).isdigit() or not 1 <= int(block) <= experiment.model.depth:
        raise UserError(f"--features layer={number}: this model has blocks 1 to {experiment.model.depth}")
    return int(block)


def world_of(data: Dataset, modalities: tuple[str, ...], built: Built | None) -> World | None:
    """The verifier of Collisions, with judges fitted to training clips; None for other data, or without raw data."""
    if data.kind != "collisions" or data.gravity or built is None or "video" not in modalities:
        return None
    if "audio" not in modalities or data.materials != "clip":
        return World(data, None)
    clips = list(readable(built.records("train"), _FITTED))
    if len({int(record["material"]) for record in clips}) < 2:
        return World(data, None)
    return World(data, fit_to(clips, data))


def readable(records: Any, count: int | None = None) -> Iterator[dict[str, Any]]:
    """The first records, by default all, without those that cannot be read."""
    for i in range(min(len(records), count or len(records))):
        try:
            yield records[i]
        except BadRecord:
            continue


def real_clips(experiment: Experiment, feed: Feed, built: Mapping[str, Built], name: str, split: str) -> RealClips:
    """Real clips of a set in a split of its data."""
    data = experiment.mixture[name].data
    media = experiment.media(name)
    latents = feed.latents[data]
    lengths = {m: shown.shape[0] if shown.rate else 0 for m, shown in media.items()}
    autoencoders = {m: latents.autoencoder(m, experiment.autoencoders[m]) for m in media}
    return RealClips(feed, built.get(data), name, split, lengths, autoencoders)


def reference_of(clips: RealClips, looks: Looks, n: int, count: int, size: int) -> Gathered:
    """Looks at `count` real clips, which nothing else than distances is asked of."""
    found = Gathered(dataclasses.replace(looks, world=None, watched=0), n)
    with Progress(f"real clips of {clips.split}", count, unit="clip") as shown:
        for latents, media in clips.batches(clips.numbers()[:count], size):
            found.add(latents, media)
            shown.advance(len(next(iter(latents.values()))))
    return found


def comparisons(reference: Mapping[str, Any], gathered: Gathered) -> dict[str, Comparison]:
    """Distances of what was gathered from a reference, by the name of the features."""
    return {name: compare(reference[name], found) for name, found in gathered.features.items() if name in reference}


def numbers_of(gathered: Gathered, compared: Mapping[str, Comparison]) -> dict[str, float]:
    """All that is known of samples, as numbers with names; those that cannot be told are left out."""
    found: dict[str, float | None] = {}
    for name, c in compared.items():
        found |= {f"kid/{name}": c.kid, f"kid_error/{name}": c.kid_error}
        found |= {f"frechet/{name}": c.frechet, f"precision/{name}": c.precision, f"recall/{name}": c.recall}
    if verdict := gathered.verdict():
        found |= {f"world/{check}": row.value for check, row in verdict.rows.items()}
    if swapped := gathered.swapped():
        found["world/swapped"] = swapped.auc
    if known := [value for value in gathered.in_step if math.isfinite(value)]:
        found["synchrony"] = float(np.mean(known))
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


class SampleEvaluation:
    """Samples of the EMA while it trains: numbers for the metrics, pictures and sounds for the run folder.

    Samples are numbered, and drawn from `seed.noise` and their numbers: nothing that training draws is touched, and all
    evaluations draw the same noise. All processes draw together, and the first one looks.
    """

    def __init__(self, experiment: Experiment, feed: Feed, built: dict[str, Built], workdir: Path, mesh: Any):
        self._experiment, self._feed, self._built, self._workdir = experiment, feed, built, workdir
        mesh = mesh if mesh.size > 1 else None
        objective, null = experiment.objective(), experiment.model.labels
        self._generators = {
            name: Generator(objective.apply, modalities, experiment.sampler, null, mesh=mesh)
            for name, modalities in feed.modalities.items()
        }
        self._worlds: dict[str, World | None] = {}
        self._references: dict[str, Gathered] = {}

    def __call__(self, state: Any) -> dict[str, float]:
        """Numbers by "samples/SET/NAME"; only the first process has any."""
        ema, step = state.frozen["ema"], int(state.step)
        whole = on_one_device(ema) if any(f.startswith("layer") for f in self._experiment.evaluation.features) else None
        found: dict[str, float] = {}
        with Progress("evaluate", len(self._generators), unit="set") as shown:
            for name in self._generators:
                latents = self._draw(name, ema)
                if first():
                    found |= self._numbers(name, latents, whole, step)
                shown.advance()
        return found

    def _numbers(self, name: str, latents: dict[str, np.ndarray], weights: Any, step: int) -> dict[str, float]:
        # One process looks, on one device: other processes would wait for a computation over all.
        with jax.set_mesh(Devices().mesh(jax.local_devices()[:1])):
            try:
                return {f"samples/{name}/{k}": v for k, v in self._look(name, latents, weights, step).items()}
            except UserError as error:  # of samples that are no numbers, say: the run goes on
                print(f"warning: samples of {name} at step {step} could not be evaluated: {error}", file=sys.stderr)
                return {}

    def _draw(self, name: str, ema: Any) -> dict[str, np.ndarray]:
        experiment = self._experiment
        count, size = experiment.evaluation.samples, experiment.mixture[name].batch_size
        labels, parts = experiment.model.labels, []
        for start in range(0, count, size):
            numbers = np.arange(start, start + size)
            label_B = numbers % labels if labels else np.full(size, 0)
            parts.append(self._generators[name](ema, Condition(label_B), experiment.seed.noise, numbers))
        return {m: np.concatenate([part[m] for part in parts])[:count] for m in parts[0]}

    def _look(self, name: str, latents: dict[str, np.ndarray], weights: Any, step: int) -> dict[str, float]:
        experiment, settings = self._experiment, self._experiment.evaluation
        if name not in self._worlds:
            chosen = experiment.mixture[name]
            data = experiment.data[chosen.data]
            self._worlds[name] = world_of(data, chosen.modalities, self._built.get(chosen.data))
        make = partial(looks_of, settings.features, experiment, name, self._feed.modalities[name], weights)
        looks = make(f"step {step}", self._worlds[name], settings.samples)
        clips = real_clips(experiment, self._feed, self._built, name, "test")
        if not len(clips.numbers()):
            clips = clips._replace(split="train")
        # The run's own features change with its weights: what real clips are in them must be found anew.
        if name not in self._references or looks.layer:
            self._references[name] = reference_of(clips, looks, settings.samples, 2 * settings.samples, 64)
        media = {m: clips.autoencoders[m].decode(x) for m, x in latents.items()}
        gathered = Gathered(looks, settings.samples)
        gathered.add(latents, media)
        self._show(name, media, looks.rates, step)
        return numbers_of(gathered, comparisons(self._references[name].features, gathered))

    def _show(self, name: str, media: dict[str, np.ndarray], rates: dict[str, float], step: int) -> None:
        folder, count = self._workdir / "samples" / f"step_{step}", self._experiment.evaluation.shown
        if not count:
            return
        folder.mkdir(parents=True, exist_ok=True)
        stills = set(media) == {"image"}
        shown = {m: x[: 16 if stills else count] for m, x in media.items()}
        write_sheet(folder / f"{name}.png", {"sample": shown}, int(rates.get("audio", 0)), f"{name}, step {step}")
        for i in range(0 if stills else min(count, len(next(iter(media.values()))))):
            write_media(folder / f"{name}_{i:02d}", {m: x[i] for m, x in media.items()}, rates)
