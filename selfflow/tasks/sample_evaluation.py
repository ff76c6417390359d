"""Evaluation of samples during training."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from selfflow.config.experiment import Experiment
from selfflow.config.setup import FlowSetup
from selfflow.data.built import BuiltDataset
from selfflow.errors import UserError
from selfflow.evaluation.compare import SampleMetrics, sample_metrics
from selfflow.evaluation.samples import MAX_CLIPS, batch_size
from selfflow.input.batches import BatchSource
from selfflow.media import images_only
from selfflow.progress import Progress
from selfflow.sampling.generate import Condition, Generator
from selfflow.sampling.media_files import write_media, write_sheet
from selfflow.tasks.sample_evaluator import SampleEvaluator
from selfflow.training.distributed import is_primary
from selfflow.training.sharding import Devices, gather_to_one
from selfflow.training.state import State

_IMAGES_SHOWN = 16
_REFERENCE_BATCH = 64


class SampleEvaluation:
    """Computes metrics of samples of the EMA, and writes some samples, every `cadence.evaluate_every` steps.

    Samples depend only on the weights, `seed.noise` and their index: every evaluation uses the same noise, and
    evaluations do not change the noise of the training. All processes draw samples together; the primary process
    evaluates them.

    Args:
      setup: setup of the run's experiment.
      source: batches and latents of the run.
      built: data sets with raw records, by name.
      mesh: devices of the run.

    Raises:
      UserError: if features are unknown, or a package or file is missing.
    """

    def __init__(self, setup: FlowSetup, source: BatchSource, built: dict[str, BuiltDataset], mesh: Mesh):
        self._experiment = experiment = setup.experiment
        settings = experiment.evaluation
        several = mesh if mesh.size > 1 else None
        objective, null = setup.objective, experiment.model.labels
        self._generators: dict[str, Generator] = {}
        self._evaluators: dict[str, SampleEvaluator] = {}
        for name, modalities in source.modalities.items():
            self._generators[name] = Generator(objective.apply, modalities, experiment.sampler, null, mesh=several)
            if is_primary():
                max_clips = min(settings.samples, MAX_CLIPS)
                self._evaluators[name] = SampleEvaluator(
                    setup, source, built, name, settings.features, settings.samples, max_clips
                )

    def __call__(self, state: State, workdir: Path) -> dict[str, float]:
        """Evaluates the EMA of a state; writes files to `evaluations/step_N` in the run folder.

        Returns:
          Metrics by names `samples/COMPONENT/KEY`; empty in all processes except the primary.
        """
        ema, step = state.frozen["ema"], int(state.step)
        features = self._experiment.evaluation.features
        needs_weights = any(name.partition("=")[0] == "layer" for name in features)
        # Copied through the host, because a device array would remain bound to the mesh.
        weights = jax.device_get(gather_to_one(ema)) if needs_weights else None
        numbers: dict[str, float] = {}
        total = len(self._generators) * self._experiment.evaluation.samples
        with Progress("evaluate", total, unit="sample") as shown:
            # All processes draw samples, because the program runs on all devices; only the primary evaluates them.
            for name in self._generators:
                evaluation = None
                if is_primary():
                    evaluation = _ComponentEvaluation(self._experiment, self._evaluators[name], name, weights, step)
                for latents in self._draw(name, ema):
                    if evaluation:
                        evaluation.add(latents)
                    shown.advance(batch_size(latents))
                if evaluation:
                    evaluation.write_files(workdir / "evaluations" / f"step_{step}")
                    metrics = evaluation.metrics()
                    if metrics:
                        for key, value in metrics.numbers().items():
                            numbers[f"samples/{name}/{key}"] = value
                    print(f"step {step}, samples of {name}: {_summary(metrics)}", flush=True)
        return numbers

    def _draw(self, name: str, ema: Any) -> Iterator[dict[str, np.ndarray]]:
        """Yields the latents of samples of a component in batches."""
        experiment = self._experiment
        count, size = experiment.evaluation.samples, experiment.mixture[name].batch_size
        labels = experiment.model.labels
        for start in range(0, count, size):
            # The last batch has the size of the others, so that only one program is compiled.
            indices = np.arange(start, start + size)
            label_B = indices % labels if labels else np.zeros(size, int)
            latents = self._generators[name](ema, Condition(label_B), experiment.seed.noise, indices)
            yield {m: x[: count - start] for m, x in latents.items()}


def _summary(metrics: SampleMetrics | None) -> str:
    """Formats the metrics that have a standard error in one line."""
    parts = []
    if metrics:
        for key, value in metrics.values.items():
            if value.error is not None:
                parts.append(f"{key} {value.value:.3g} +- {value.error:.2g}")
    return ", ".join(parts) or "see the metrics"


class _ComponentEvaluation:
    """Evaluation of one component at one step, in the primary process.

    Args:
      experiment: experiment of the run.
      evaluator: evaluator of the component.
      name: name of the component.
      weights: parameters of the model on the host, for features of the run's own network; None if not needed.
      step: step of the run.
    """

    def __init__(self, experiment: Experiment, evaluator: SampleEvaluator, name: str, weights: Any, step: int):
        self._experiment, self._evaluator, self._name, self._step = experiment, evaluator, name, step
        # Metrics are computed on one local device: a computation over all devices would wait for other processes.
        self._mesh = Devices().mesh(jax.local_devices()[:1])
        with jax.set_mesh(self._mesh):
            if evaluator.setup.model_features:
                evaluator.set_weights(jax.device_put(weights), f"step {step}")
        self._clips = evaluator.clips("test")
        if not len(self._clips.indices()):
            self._clips = evaluator.clips("train")
        self._accumulated = evaluator.accumulator()
        self._shown: list[dict[str, np.ndarray]] = []
        self._error: UserError | None = None

    def add(self, latents: dict[str, np.ndarray]) -> None:
        """Adds a batch of samples."""
        media = {m: self._clips.autoencoders[m].decode(x) for m, x in latents.items()}
        room = max(self._experiment.evaluation.shown, _IMAGES_SHOWN) - sum(map(batch_size, self._shown))
        if room > 0:
            self._shown.append({m: x[:room] for m, x in media.items()})
        if self._error:
            return
        try:
            with jax.set_mesh(self._mesh):
                self._accumulated.add(latents, media)
        except UserError as error:
            # Non-finite latents must not stop the training; `metrics` prints a warning.
            self._error = error

    def metrics(self) -> SampleMetrics | None:
        """Returns the metrics; if they cannot be computed, prints a warning and returns None."""
        try:
            if self._error:
                raise self._error
            with jax.set_mesh(self._mesh):
                indices = self._clips.indices()[: 2 * self._evaluator.samples]
                reference = self._evaluator.reference(self._clips, indices, _REFERENCE_BATCH)
                return sample_metrics(reference, self._accumulated)
        except UserError as error:
            warning = f"samples of {self._name} at step {self._step} could not be evaluated: {error}"
            print(f"warning: {warning}", file=sys.stderr)
            return None

    def write_files(self, folder: Path) -> None:
        """Writes a sheet of some samples, and their video and audio files."""
        count = self._experiment.evaluation.shown
        if not count:
            return
        folder.mkdir(parents=True, exist_ok=True)
        modalities = self._experiment.mixture[self._name].modalities
        media = {m: np.concatenate([batch[m] for batch in self._shown]) for m in modalities}
        rates, on_sheet_alone = self._evaluator.setup.rates, images_only(media)
        sheet = {m: x[: _IMAGES_SHOWN if on_sheet_alone else count] for m, x in media.items()}
        title = f"{self._name}, step {self._step}"
        write_sheet(folder / f"{self._name}.png", {"sample": sheet}, rates, title)
        if not on_sheet_alone:
            for i in range(min(count, batch_size(media))):
                write_media(folder / f"{self._name}_{i:02d}", {m: x[i] for m, x in media.items()}, rates)
