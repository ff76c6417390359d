"""Training task of a flow-matching transformer."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from selfflow.autoencoders.config import can_decode
from selfflow.config.setup import FlowSetup
from selfflow.errors import UserError
from selfflow.run.folder import recorded_datasets
from selfflow.run.init_state import frozen_of_runs
from selfflow.run.paths import AUTOENCODERS
from selfflow.run.prepare_data import autoencoder_files, dataset_provenance, latents_hash, prepare_data
from selfflow.run.run import Run
from selfflow.tasks.check_end import check_decoders, check_latents, check_probes
from selfflow.tasks.final_evaluation import evaluate_run
from selfflow.tasks.sample_evaluation import SampleEvaluation
from selfflow.tasks.task import TrainingTask
from selfflow.training.distributed import is_primary, primary_first, run_on_all
from selfflow.training.sharding import pad_batch, shard_batch
from selfflow.training.state import State
from selfflow.training.step import batch_size, sample_keys


class FlowTask(TrainingTask):
    """Trains a flow-matching transformer on latents; first prepares data sets, autoencoders and latents if missing.

    Args:
      setup: setup of the experiment.
      data_dir: folder for data sets and latents.
      mesh: devices of the run.
      folder: the run folder.

    Raises:
      UserError: if data, latents or autoencoders are invalid or missing, or do not fit the experiment.
    """

    setup: FlowSetup

    def __init__(self, setup: FlowSetup, data_dir: Path, mesh: Mesh, folder: Path):
        own = folder / AUTOENCODERS if _has_autoencoders(folder, setup) else None
        recorded = recorded_datasets(folder)
        source, self._built = primary_first(lambda: prepare_data(setup, data_dir, own=own, recorded=recorded))
        latents = source.latents
        super().__init__(
            setup,
            source,
            mesh,
            folder,
            latents_hash(latents),
            dataset_provenance(setup.experiment, latents),
            autoencoder_files(latents),
        )
        self._evaluation = run_on_all(self._sample_evaluation)
        run_on_all(self._check_end)

        # A fixed batch of every component for diagnostics, because training batches differ in component and samples.
        self._held_out = {}
        for name, (_, batch) in source.held_out(("validation",)).items():
            self._held_out[name] = shard_batch(pad_batch(batch, mesh), mesh)

        @partial(jax.jit, out_shardings=self.replicated)
        def diagnostics(state: State, batch: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
            keys_B = sample_keys(key, state.step, batch_size(batch))
            return setup.objective.diagnose(state.params, state.frozen, batch, keys_B)

        self._diagnostics = diagnostics

    def _sample_evaluation(self) -> SampleEvaluation | None:
        """Returns the evaluation of samples during training; None without `cadence.evaluate_every`."""
        experiment = self.setup.experiment
        if not experiment.cadence.evaluate_every:
            return None
        for m, config in experiment.autoencoders.items():
            if not can_decode(config):
                raise UserError(
                    f"cadence.evaluate_every: samples are measured decoded, and autoencoders.{m} has latents alone; "
                    "set it to None"
                )
        return SampleEvaluation(self.setup, self.source, self._built, self.mesh)

    def init(self) -> State:
        """Returns the state at step 0; the objective may take frozen trees from the EMA of other runs."""
        return frozen_of_runs(self.setup.objective.frozen_from(), super().init(), self.mesh)

    def _check_end(self) -> None:
        """Checks the requirements of the final evaluation before the first step."""
        check_latents(self.source)
        check_probes(self.setup, self.source, self._built)
        if is_primary():
            check_decoders(self.setup, self.source)

    def start_message(self, state: State) -> str:
        experiment = self.setup.experiment
        lines = [super().start_message(state)]
        for data, latents in self.source.latents.items():
            for m, quality in latents.manifest["quality"].items():
                numbers = []
                for n, value in quality.items():
                    rounded = f"{value:.1f}" if "_db" in n else f"{value:.3g}"
                    numbers.append(f"{n.replace('_db', ' (dB)').replace('_', '-')} {rounded}")
                identity = latents.manifest["modalities"][m]["identity"]
                lines.append(f"  {data}: {m} autoencoder {identity}: {', '.join(numbers)}")
            for m, identity in latents.features.items():
                lines.append(f"  {data}: {m} features of {identity}")
            left_out = sum(map(len, latents.manifest["unreadable"].values()))
            if left_out:
                lines.append(f"  {data}: {left_out} records could not be encoded and are left out; see {latents.path}")
        if experiment.alignment.unaligned:
            unaligned = ", ".join(experiment.alignment.unaligned)
            lines.append(f"  {unaligned}: no encoder in alignment.encoders, not aligned")
        remainder = experiment.ema_decay**experiment.steps
        # A suitable decay has at least five time constants within the run.
        if remainder > math.exp(-5):
            lines.append(
                f"warning: ema_decay {experiment.ema_decay} keeps {remainder:.0%} of the random initialisation in the "
                f"teacher after {experiment.steps} steps; leave ema_decay out to have it fit the run's length"
            )
        return "\n".join(lines)

    def diagnose(self, state: State) -> dict[str, jax.Array]:
        metrics = {}
        for component, batch in self._held_out.items():
            for name, value in self._diagnostics(state, batch, self.key).items():
                view, m = name.rsplit("/", 1)
                metrics[f"{view}/{component}/{m}"] = value
        return metrics

    def summarise(self, metrics: dict[str, Any]) -> dict[str, float]:
        """Returns all scalar metrics, and the mean flow loss of each non-empty bucket of tau."""
        row = super().summarise(metrics)
        for name, total in metrics.items():
            if name.startswith("flow_sum/"):
                m = name.removeprefix("flow_sum/")
                count, buckets = metrics[f"flow_count/{m}"], len(total)
                for i in range(buckets):
                    if count[i] > 0:
                        bucket = f"tau_{i / buckets:.1f}-{(i + 1) / buckets:.1f}"
                        row[f"flow_loss/{m}/{bucket}"] = float(total[i] / count[i])
        return row

    def evaluate(self, state: State) -> dict[str, float]:
        return self._evaluation(state, self.folder)

    def final_evaluation(self, state: State) -> dict[str, Any]:
        return evaluate_run(self.setup, self.folder, self.source, self._built, state)


def _has_autoencoders(folder: Path, setup: FlowSetup) -> bool:
    """Returns whether a folder has a run with the same autoencoders, whose copies are then used."""
    if not (folder / "experiment.json").exists():
        return False
    return Run(folder).experiment.autoencoders == setup.experiment.autoencoders
