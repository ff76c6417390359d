"""Evaluations of samples while a run trains."""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from selfflow.config.experiment import Experiment
from selfflow.data.built import BuiltDataset
from selfflow.errors import UserError
from selfflow.evaluation.gather import WATCHED, EvaluationSetup, SampleAccumulator
from selfflow.input.batches import BatchSource
from selfflow.media import images_only
from selfflow.progress import Progress
from selfflow.sampling.generate import Condition, Generator
from selfflow.sampling.media_files import write_media, write_sheet
from selfflow.tasks.evaluating import (
    comparisons,
    evaluation_numbers,
    physics_verifier,
    real_clips,
    reference_of,
    select_extractors,
)
from selfflow.training.distributed import is_primary
from selfflow.training.sharding import Devices, gather_to_one

_IMAGES_SHOWN = 16


class SampleEvaluation:
    """Samples of the EMA: numbers for the metrics, pictures and sounds for the run folder.

    Samples are numbered, and drawn from `seed.noise` and their numbers: nothing that training draws is touched, and all
    evaluations draw the same noise. All processes draw together, and the first one looks.

    Raises:
      UserError: for features that there are not, or whose package or file is missing.
    """

    def __init__(self, experiment: Experiment, feed: BatchSource, built: dict[str, BuiltDataset], mesh: Any):
        self._experiment, self._feed, self._built = experiment, feed, built
        mesh = mesh if mesh.size > 1 else None
        objective, null = experiment.objective(), experiment.model.labels
        self._generators = {
            name: Generator(objective.apply, modalities, experiment.sampler, null, mesh=mesh)
            for name, modalities in feed.modalities.items()
        }
        settings = experiment.evaluation
        watched = min(settings.samples, WATCHED)
        # Whatever is wrong with the features comes before the run begins; the world takes a minute and comes later.
        self._looks = (
            {name: select_extractors(settings.features, experiment, name, None, watched) for name in self._generators}
            if is_primary()
            else {}
        )
        self._worlds: dict[str, Any] = {}
        self._references: dict[str, dict[str, Any]] = {}

    def __call__(self, state: Any, workdir: Path) -> dict[str, float]:
        """Numbers by "samples/SET/NAME", of which only the first process has any; files go to the run folder."""
        ema, step = state.frozen["ema"], int(state.step)
        own = any(f.partition("=")[0] == "layer" for f in self._experiment.evaluation.features)
        # By way of the host: an array that was spread over a mesh keeps it in mind.
        weights = jax.device_get(gather_to_one(ema)) if own else None
        found: dict[str, float] = {}
        with Progress("evaluate", len(self._generators) * self._experiment.evaluation.samples, unit="sample") as shown:
            for name in self._generators:
                look = _Look(self, name, weights, step) if is_primary() else None
                for latents in self._draw(name, ema):
                    if look:
                        look.add(latents)
                    shown.advance(len(next(iter(latents.values()))))
                if look:
                    numbers = look.finish(workdir)
                    found |= {f"samples/{name}/{k}": v for k, v in numbers.items()}
                    told = [
                        f"{k} {v:.3g} +- {numbers[f'kid_error{k[3:]}']:.2g}"
                        for k, v in numbers.items()
                        if k[:4] == "kid/"
                    ]
                    print(f"step {step}, samples of {name}: {', '.join(told) or 'see the metrics'}", flush=True)
        return found

    def _draw(self, name: str, ema: Any):
        experiment = self._experiment
        count, size = experiment.evaluation.samples, experiment.mixture[name].batch_size
        labels = experiment.model.labels
        for start in range(0, count, size):
            numbers = np.arange(start, start + size)
            label_B = numbers % labels if labels else np.zeros(size, int)
            latents = self._generators[name](ema, Condition(label_B), experiment.seed.noise, numbers)
            yield {m: x[: count - start] for m, x in latents.items()}


class _Look:
    """What the first process sees of one component at one step."""

    def __init__(self, evaluation: SampleEvaluation, name: str, weights: Any, step: int):
        self._of, self._name, self._step = evaluation, name, step
        experiment = evaluation._experiment
        component = experiment.mixture[name]
        built = evaluation._built.get(component.data)
        if name not in evaluation._worlds:
            evaluation._worlds[name] = physics_verifier(experiment.data[component.data], component.modalities, built)
        looks: EvaluationSetup = evaluation._looks[name]._replace(world=evaluation._worlds[name])
        # One process looks, on one device: the others would be waited for in a computation over all.
        self._here = Devices().mesh(jax.local_devices()[:1])
        if looks.layer:
            with jax.set_mesh(self._here):
                looks = looks._replace(layer=looks.layer.of(jax.device_put(weights), f"step {step}"))
        self._clips = real_clips(experiment, evaluation._feed, evaluation._built, name, "test")
        if not len(self._clips.numbers()):
            self._clips = self._clips._replace(split="train")
        self._gathered = SampleAccumulator(looks, experiment.evaluation.samples)
        self._shown: list[dict[str, np.ndarray]] = []
        self._error: UserError | None = None

    def add(self, latents: dict[str, np.ndarray]) -> None:
        media = {m: self._clips.autoencoders[m].decode(x) for m, x in latents.items()}
        room = max(self._of._experiment.evaluation.shown, _IMAGES_SHOWN) - sum(map(_size, self._shown))
        if room > 0:
            self._shown.append({m: x[:room] for m, x in media.items()})
        try:
            if not self._error:
                with jax.set_mesh(self._here):
                    self._gathered.add(latents, media)
        except UserError as error:  # of samples that are no numbers, say: the run goes on
            self._error = error

    def finish(self, workdir: Path) -> dict[str, float]:
        self._show(workdir / "evaluations" / f"step_{self._step}")
        try:
            if self._error:
                raise self._error
            with jax.set_mesh(self._here):
                return evaluation_numbers(self._gathered, comparisons(self._reference(), self._gathered))
        except UserError as error:
            told = f"warning: samples of {self._name} at step {self._step} could not be evaluated: {error}"
            print(told, file=sys.stderr)
            return {}

    def _reference(self) -> dict[str, Any]:
        """Features of real clips; those of the run's own layer are new at every step, for its weights are."""
        n, looks = self._of._experiment.evaluation.samples, self._gathered.looks
        numbers = self._clips.numbers()[: 2 * n]
        known = self._of._references
        if self._name not in known:
            known[self._name] = {}
            if looks.extractors:
                known[self._name] = reference_of(self._clips, numbers, looks._replace(layer=None), n, 64).features
        own = {}
        if looks.layer:
            own = reference_of(self._clips, numbers, looks._replace(extractors=()), n, 64).features
        return known[self._name] | own

    def _show(self, folder: Path) -> None:
        count = self._of._experiment.evaluation.shown
        if not count:
            return
        folder.mkdir(parents=True, exist_ok=True)
        modalities = self._of._experiment.mixture[self._name].modalities
        media = {m: np.concatenate([part[m] for part in self._shown]) for m in modalities}
        rates, images = self._gathered.looks.rates, images_only(media)
        title = f"{self._name}, step {self._step}"
        page = {"sample": {m: x[: _IMAGES_SHOWN if images else count] for m, x in media.items()}}
        write_sheet(folder / f"{self._name}.png", page, rates, title)
        for i in range(0 if images else min(count, _size(media))):
            write_media(folder / f"{self._name}_{i:02d}", {m: x[i] for m, x in media.items()}, rates)


def _size(batch: dict[str, np.ndarray]) -> int:
    return len(next(iter(batch.values())))
