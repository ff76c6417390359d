"""What flow matching brings to `selfflow train`."""

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selfflow.autoencoders.config import can_decode
from selfflow.config.experiment import Experiment
from selfflow.errors import UserError
from selfflow.input.batches import BatchSource
from selfflow.run.paths import AUTOENCODERS
from selfflow.run.prepare_data import autoencoder_files, dataset_provenance, latents_hash, prepare_data
from selfflow.run.run import Run
from selfflow.storage.paths import url_of_copy
from selfflow.tasks.final_evaluation import evaluate_run
from selfflow.tasks.task import Task, scalar_metrics
from selfflow.training.distributed import primary_first, run_on_all
from selfflow.training.state import State

if TYPE_CHECKING:
    from selfflow.tasks.sample_evaluation import SampleEvaluation


def flow_task(experiment: Experiment, data_dir: Path, mesh: Mesh, workdir: Path) -> Task:
    """Builds, fits and encodes what is not there yet.

    Raises:
      UserError: for what a user can correct in data, latents or experiment.
    """
    begun = (workdir / "experiment.json").exists() and Run(workdir).experiment.autoencoders == experiment.autoencoders
    feed, built = primary_first(
        lambda: prepare_data(experiment, data_dir, own=workdir / AUTOENCODERS if begun else None)
    )
    return Task(
        feed,
        latents_hash(feed.latents),
        dataset_provenance(experiment, feed.latents),
        autoencoder_files(feed.latents),
        run_on_all(lambda: _evaluation(experiment, feed, built, mesh)),
        lambda mesh, placed: _functions(experiment, feed, mesh, placed),
        lambda workdir, start, state: _say_start(experiment, workdir, start, state, feed),
        lambda workdir, state: evaluate_run(experiment, workdir, feed, built, state),
    )


def _evaluation(
    experiment: Experiment, feed: BatchSource, built: dict[str, Any], mesh: Mesh
) -> "SampleEvaluation | None":
    if not experiment.cadence.evaluate_every:
        return None
    from selfflow.tasks.sample_evaluation import SampleEvaluation

    for m, config in experiment.autoencoders.items():
        if not can_decode(config):
            raise UserError(
                f"cadence.evaluate_every: samples are measured decoded, and autoencoders.{m} is given by its latents "
                "alone; set it to 0"
            )
    return SampleEvaluation(experiment, feed, built, mesh)


def _functions(experiment: Experiment, feed: BatchSource, mesh: Mesh, placed: State) -> dict[str, Any]:
    """What the loop calls: the compiled step and diagnostics, and how to read its metrics."""
    from selfflow.objectives.diagnostics import diagnose
    from selfflow.training.sharding import pad_batch, shard_batch
    from selfflow.training.step import batch_size, key_of, sample_keys

    # An argument of what is compiled: the members of a sweep that differ in their seeds then share their programs.
    objective, key = experiment.objective(), key_of(experiment.seed.noise)
    held_out = feed.held_out(("validation",))
    looked_at = {name: shard_batch(pad_batch(batch, mesh), mesh) for name, (_, batch) in held_out.items()}
    everywhere = NamedSharding(mesh, PartitionSpec())

    @partial(jax.jit, out_shardings=everywhere)
    def look_at(state: State, batch: Any, key: Any) -> dict[str, jax.Array]:
        return diagnose(objective, state.params, state.frozen, batch, sample_keys(key, state.step, batch_size(batch)))

    def look(state: State) -> dict[str, jax.Array]:
        # A fixed batch of every component: that of the step would show one component, and other samples each time.
        return {
            f"{view}/{name}/{m}": value
            for name, batch in looked_at.items()
            for (view, m), value in _split_names(look_at(state, batch, key)).items()
        }

    step = jax.jit(experiment.step(), donate_argnums=0, out_shardings=(placed, everywhere))
    return {
        "step": lambda state, batch: step(state, batch, key),
        "diagnose": look,
        "summarise": _numbers,
    }


def _split_names(metrics: dict[str, jax.Array]) -> dict[tuple[str, str], jax.Array]:
    return {tuple(name.rsplit("/", 1)): value for name, value in metrics.items()}


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Fetched metrics as the numbers of a row; sums and counts per bucket of tau become means."""
    row = scalar_metrics(metrics)
    for name, total in metrics.items():
        if name.startswith("flow_sum/"):
            m = name.removeprefix("flow_sum/")
            count = metrics[f"flow_count/{m}"]
            for i in range(len(total)):
                if count[i] > 0:
                    row[f"flow_loss/{m}/tau_{i / len(total):.1f}-{(i + 1) / len(total):.1f}"] = float(
                        total[i] / count[i]
                    )
    return row


def _say_start(experiment: Experiment, workdir: Path, start: int, state: State, feed: BatchSource) -> None:
    count = sum(x.size for x in jax.tree.leaves(state.params["model"]))
    print(
        f"{url_of_copy(workdir) or workdir}: {count / 1e6:.1f} M parameters, {experiment.steps} steps"
        + (f", from step {start}" if start else "")
    )
    for data, latents in feed.latents.items():
        for m, quality in latents.manifest["quality"].items():
            numbers = [f"{n.replace('_db', ' (dB)').replace('_', '-')} {value:.1f}" for n, value in quality.items()]
            identity = latents.manifest["modalities"][m]["identity"]
            print(f"  {data}: {m} autoencoder {identity}: {', '.join(numbers)}")
        for m, identity in latents.features.items():
            print(f"  {data}: {m} features of {identity}")
        if left_out := sum(map(len, latents.manifest["unreadable"].values())):
            print(f"  {data}: {left_out} records could not be encoded and are left out; see {latents.path}")
    if experiment.alignment.unaligned:
        print(f"  {', '.join(experiment.alignment.unaligned)}: no encoder in alignment.encoders, not aligned")
    kept = experiment.ema_decay**experiment.steps
    if kept > math.exp(-5):
        print(
            f"warning: ema_decay {experiment.ema_decay} keeps {kept:.0%} of the random initialisation "
            f"in the teacher after {experiment.steps} steps; leave ema_decay out to have it fit the run's length"
        )
