"""`selfflow train`: from an experiment file to a trained model and the proof that it learned."""

import json
import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import jax
import optax
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selfflow.buckets.paths import url, url_of
from selfflow.cli.parse import parse
from selfflow.errors import UserError
from selfflow.experiment import Experiment
from selfflow.training.processes import Processes, agreed, first, in_turn, meet, several, together
from selfflow.training.state import State

if TYPE_CHECKING:
    from selfflow.cli.sample_evaluation import SampleEvaluation
    from selfflow.input.batches import Feed

_EXAMPLE = "selfflow train experiments/quickstart.py --steps 100 --alignment.weight 0.4"


@dataclass(frozen=True)
class Options:
    """Flags of `selfflow train` that are no fields of the experiment."""

    workdir: Path
    """The run folder, on a disk or in a bucket (gs://, s3://)."""
    processes: Annotated[Processes, tyro.conf.arg(name="")] = Processes()


def main(arguments: list[str]) -> None:
    """Parses `EXPERIMENT [--workdir DIR] [--data-dir DIR] [--FIELD VALUE ...]` and trains."""
    parsed = parse("train", arguments, _EXAMPLE, lambda file: Options(Path("runs") / file.stem))
    if parsed is not None:
        experiment, options, data_dir = parsed
        options.processes.join()
        train(experiment, options.workdir, data_dir)


def train(experiment: Experiment, workdir: Path, data_dir: Path) -> dict[str, Any]:
    """Trains an experiment into a run folder, or goes on with the run that is there.

    Args:
      experiment: as loaded from its file.
      workdir: the run folder, on a disk or in a bucket.
      data_dir: folder for data sets and latents.

    Returns:
      The summary, as printed and written to `summary.json`; of several processes only the first has one.

    Raises:
      UserError: for what a user can correct.
    """
    from selfflow.buckets.runs import at_work
    from selfflow.run_folder import alone, check_run

    if not jax.config.jax_compilation_cache_dir:
        # A run that goes on, or the next one of a sweep, need not compile again.
        jax.config.update("jax_compilation_cache_dir", str(data_dir / "compiled"))

    def look() -> None:  # before the folder is made
        experiment.model.execution.check(jax.default_backend())
        check_run(workdir, experiment).check_devices(experiment.devices.mesh())

    where = url(workdir) or ""
    if several() and where.startswith("s3://"):
        raise UserError(
            f"--workdir {where}: several processes save checkpoints together on gs:// and on a disk that they share, "
            "and not on s3://"
        )
    if where and f"{url_of(data_dir)}/".startswith(f"{where}/"):
        raise UserError(f"--data-dir {url_of(data_dir)} lies in --workdir {where}: give one outside of the run")
    with ExitStack() as held:
        workdir = together(lambda: held.enter_context(at_work(workdir, writes=first())))
        together(look)
        together(lambda: held.enter_context(alone(workdir)) if first() else None)
        return _train_alone(experiment, workdir, data_dir)


def _train_alone(experiment: Experiment, workdir: Path, data_dir: Path) -> dict[str, Any]:
    from selfflow.buckets.runs import send_changes
    from selfflow.cli.proof import prove
    from selfflow.first_state import fresh_state
    from selfflow.prepare import autoencoders_of, hash_of_latents, prepare, sets_of
    from selfflow.run import Run, abstract_state
    from selfflow.run_folder import check_run, enter_run
    from selfflow.training.checkpoints import Checkpoints
    from selfflow.training.interrupt import interruptible
    from selfflow.training.loop import train as run_loop
    from selfflow.training.metrics import MetricsLog
    from selfflow.training.profile import Trace
    from selfflow.training.sharding import on_one_device, rows_here, sharding_table, shardings_of, spread

    began = time.monotonic()
    experiment = check_run(workdir, experiment)
    feed, built = in_turn(lambda: prepare(experiment, data_dir))
    agreed(hash_of_latents(feed.latents), "the latents that they read")
    mesh = experiment.devices.mesh()
    rows = partial(rows_here, mesh)
    # All that can be wrong with data or weights comes before the folder becomes a run.
    together(lambda: feed.batches(0, experiment.steps, rows))
    look = together(lambda: _evaluation(experiment, feed, built, mesh))
    last = agreed(
        Run(workdir).last_step() if (workdir / "experiment.json").exists() else 0, "the checkpoints they find"
    )
    state = None if last else fresh_state(experiment, mesh)
    read = hash_of_latents(feed.latents), sets_of(experiment, feed.latents), autoencoders_of(feed.latents)
    where = url_of(data_dir) or str(data_dir.absolute())

    def enter() -> None:
        enter_run(workdir, experiment, *read, where)
        send_changes(workdir)  # from here on a bucket knows of a run, whatever of the rest gets there

    together(lambda: enter() if first() else None)

    checkpoints = Checkpoints(workdir, experiment.cadence.keep_last, experiment.cadence.keep_every)
    if state is None:
        state = checkpoints.restore_newest(abstract_state(experiment, mesh))
    start = int(state.step)
    if first():
        _say_start(experiment, workdir, start, state, feed)
        if mesh.size > 1:
            print(sharding_table(state, shardings_of(state), experiment.objective().logical_axes()))
    batches = feed.batches(start, experiment.steps, rows)
    stream = iter(batches)
    sizes = {name: chosen.batch_size for name, chosen in experiment.mixture.items()}
    log = None
    try:
        with jax.set_mesh(mesh), interruptible() as interruption:
            log = MetricsLog(workdir, start) if first() else None
            if start < experiment.steps:
                state = run_loop(
                    state,
                    batches=((spread(batch, mesh, sizes[facts["set"]]), facts) for batch, facts in stream),
                    ids=batches.ids,
                    start=start,
                    steps=experiment.steps,
                    cadence=experiment.cadence,
                    limits=experiment.limits,
                    log=log,
                    checkpoints=checkpoints,
                    trace=Trace(experiment.profile, workdir, start, experiment.steps),
                    interruption=interruption,
                    evaluate=look and (lambda state: look(state, workdir)),
                    **_functions(experiment, feed, mesh, shardings_of(state)),
                )
    finally:
        stream.close()
        if log is not None:
            log.close()
        checkpoints.close()
    weights = on_one_device(state._replace(optimizer=optax.EmptyState()))
    summary = prove(experiment, workdir, feed, built, weights) if first() else {}
    if first():
        summary["minutes"] = round((time.monotonic() - began) / 60, 2)
        unfinished = workdir / "summary.json.partial"
        unfinished.write_text(json.dumps(summary, indent=1))
        unfinished.replace(workdir / "summary.json")
    meet()
    return summary


def _evaluation(experiment: Experiment, feed: "Feed", built: dict[str, Any], mesh: Mesh) -> "SampleEvaluation | None":
    if not experiment.cadence.evaluate_every:
        return None
    from selfflow.cli.sample_evaluation import SampleEvaluation

    return SampleEvaluation(experiment, feed, built, mesh)


def _functions(experiment: Experiment, feed: "Feed", mesh: Mesh, placed: State) -> dict[str, Any]:
    """What the loop calls: the compiled step and diagnostics, and how to read its metrics."""
    from selfflow.objectives.diagnostics import diagnose
    from selfflow.training.sharding import filled, spread
    from selfflow.training.step import batch_size, key_of, sample_keys

    # An argument of what is compiled: the members of a sweep that differ in their seeds then share their programs.
    objective, key = experiment.objective(), key_of(experiment.seed.noise)
    held_out = feed.held_out(("validation",))
    looked_at = {name: spread(filled(batch, mesh), mesh) for name, (_, batch) in held_out.items()}
    everywhere = NamedSharding(mesh, PartitionSpec())

    @partial(jax.jit, out_shardings=everywhere)
    def look_at(state: State, batch: Any, key: Any) -> dict[str, jax.Array]:
        return diagnose(objective, state.params, state.frozen, batch, sample_keys(key, state.step, batch_size(batch)))

    def look(state: State) -> dict[str, jax.Array]:
        # One batch of every set, always the same: the step's own would show one set, and other samples each time.
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
    row = {name: float(value) for name, value in metrics.items() if value.ndim == 0}
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


def _say_start(experiment: Experiment, workdir: Path, start: int, state: State, feed: "Feed") -> None:
    count = sum(x.size for x in jax.tree.leaves(state.params["model"]))
    print(
        f"{url_of(workdir) or workdir}: {count / 1e6:.1f} M parameters, {experiment.steps} steps"
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
    if unaligned := [m for m, encoder in getattr(experiment.alignment, "encoders", {}).items() if encoder is None]:
        print(f"  {', '.join(unaligned)}: no encoder in alignment.encoders, not aligned")
    forgotten = experiment.steps * (1 - experiment.ema_decay)
    if forgotten < 5:
        print(
            f"warning: ema_decay {experiment.ema_decay} keeps {math.exp(-forgotten):.0%} of the random initialisation "
            f"in the teacher after {experiment.steps} steps; leave ema_decay out to have it fit the run's length"
        )
