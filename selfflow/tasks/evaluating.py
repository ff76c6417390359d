"""What `selfflow evaluate` and evaluations during training share: what to look with, and what numbers that gives."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from selfflow.config.experiment import Experiment
from selfflow.config.setup import FlowSetup
from selfflow.data.built import BuiltDataset
from selfflow.data.dataset import Dataset
from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.evaluation.compare import Comparison, compare
from selfflow.evaluation.extractors import Extractor, media_of, open_extractor
from selfflow.evaluation.gather import WATCHED, EvaluationSetup, PhysicsVerifier, SampleAccumulator
from selfflow.evaluation.model_features import OwnLayer
from selfflow.evaluation.physics.calibrate import fit_to
from selfflow.evaluation.real_clips import RealClips
from selfflow.input.batches import BatchSource
from selfflow.progress import Progress

# Clips that the judges of the material are fitted to, at most half of those there are.
_FITTED = 1024


def select_extractors(
    features: tuple[str, ...], setup: FlowSetup, name: str, world: PhysicsVerifier | None, watched: int = WATCHED
) -> EvaluationSetup:
    """What samples of a component are looked at with; the run's own layer is to be given its weights.

    Args:
      features: as `Evaluation.features` names them; those that look at nothing in the component are left out.
      setup: of the run.
      name: of the component.
      world: the verifier, or None.
      watched: how many clips are looked at one by one.

    Raises:
      UserError: for features that there are not or that are named twice, or whose package or file is missing.
    """
    experiment, modalities = setup.experiment, setup.modalities[name]
    rates = {m: media.rate for m, media in setup.media[name].items()}
    extractors: dict[str, Extractor] = {}
    layer = None
    for spec in features:
        kind, _, number = spec.partition("=")
        if kind == "layer":
            if layer is not None:
                raise UserError(f"--features {' '.join(features)}: name one layer")
            block, null = _layer(experiment, number), experiment.model.labels
            apply, tau = setup.objective.apply, experiment.final_evaluation.probe_tau
            layer = OwnLayer(apply, modalities, block, tau, null, experiment.model.width)
            continue
        for m in (m for m in modalities if m in media_of(spec)):
            made = open_extractor(spec, m)
            if (known := f"{made.distance} {m}") in extractors:
                raise UserError(f"--features {' '.join(features)}: two of them give {known}; name one")
            extractors[known] = made
    return EvaluationSetup(rates, tuple(extractors.values()), layer, world if "video" in modalities else None, watched)


def _layer(experiment: Experiment, number: str) -> int:
    block = number or getattr(experiment.alignment, "teacher_layer", max(1, round(0.7 * experiment.model.depth)))
    if not str(block).isdigit() or not 1 <= int(block) <= experiment.model.depth:
        raise UserError(f"--features layer={number}: this model has blocks 1 to {experiment.model.depth}")
    return int(block)


def fitted_clips(built: BuiltDataset | None) -> int:
    """How many training clips, the first ones, the judges of the verifier are fitted to."""
    return 0 if built is None else min(_FITTED, len(built.records("train")) // 2)


def physics_verifier(data: Dataset, modalities: tuple[str, ...], built: BuiltDataset | None) -> PhysicsVerifier | None:
    """The physics verifier, with judges fitted to training clips; None for data without one, or without raw data."""
    if data.verifier != "physics" or built is None or "video" not in modalities:
        return None
    if "audio" not in modalities or data.materials != "clip":
        return PhysicsVerifier(data, None)
    clips = list(readable_records(built.records("train"), fitted_clips(built)))
    if len({int(record["material"]) for record in clips}) < 2:
        return PhysicsVerifier(data, None)
    return PhysicsVerifier(data, fit_to(clips, data))


def readable_records(records: Any, count: int | None = None) -> Iterator[dict[str, Any]]:
    """The first records, by default all, without those that cannot be read."""
    for i in range(len(records) if count is None else min(count, len(records))):
        try:
            yield records[i]
        except BadRecord:
            continue


def real_clips(
    setup: FlowSetup, feed: BatchSource, built: Mapping[str, BuiltDataset], name: str, split: str
) -> RealClips:
    """Real clips of a component in a split of its data."""
    experiment, media = setup.experiment, setup.media[name]
    data = experiment.mixture[name].data
    latents = feed.latents[data]
    lengths = {m: shown.shape[0] if shown.rate else 0 for m, shown in media.items()}
    autoencoders = {m: latents.autoencoder(m, experiment.autoencoders[m]) for m in media}
    return RealClips(feed, built.get(data), name, split, lengths, autoencoders)


def reference_of(clips: RealClips, numbers: np.ndarray, looks: EvaluationSetup, n: int, size: int) -> SampleAccumulator:
    """Features of real clips, in batches of `size`."""
    found = SampleAccumulator(looks._replace(world=None, watched=0), n)
    with Progress(f"real clips of {clips.split}", len(numbers), unit="clip") as shown:
        for latents, media in clips.batches(numbers, size):
            found.add(latents, media)
            shown.advance(len(next(iter(latents.values()))))
    return found


def comparisons(reference: Mapping[str, Any], gathered: SampleAccumulator) -> dict[str, Comparison]:
    """Distances of what was gathered from a reference, by the name of the features."""
    return {name: compare(reference[name], found) for name, found in gathered.features.items() if name in reference}


def evaluation_numbers(gathered: SampleAccumulator, compared: Mapping[str, Comparison]) -> dict[str, float]:
    """All that is known of samples, as numbers with names; those that cannot be told are left out."""
    found: dict[str, float | None] = {}
    for features, c in compared.items():
        name = features.removeprefix("FD-").replace(" ", "/")
        found |= {f"kid/{name}": c.kid, f"kid_error/{name}": c.kid_error}
        found |= {f"frechet/{name}": c.frechet, f"precision/{name}": c.precision, f"recall/{name}": c.recall}
    if verdict := gathered.verdict():
        found |= {f"physics/{check}": row.value for check, row in verdict.rows.items()}
    if swapped := gathered.swapped():
        found["physics/audio_match_auc"] = swapped.auc
    if known := [value for value in gathered.in_step if math.isfinite(value)]:
        found["synchrony"] = float(np.mean(known))
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}
