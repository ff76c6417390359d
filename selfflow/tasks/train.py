"""Training of an experiment: opens or resumes the run, trains, and evaluates the result."""

import json
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import optax
from jax.sharding import Mesh

from selfflow.config.experiment import Experiment
from selfflow.config.files import AnyExperiment
from selfflow.errors import UserError
from selfflow.storage.paths import url, url_of
from selfflow.training.distributed import agreed, first, meet, several, together

if TYPE_CHECKING:
    from selfflow.tasks.task import Task

def train(experiment: AnyExperiment, workdir: Path, data_dir: Path) -> dict[str, Any]:
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
    from selfflow.run.folder import alone, check_run
    from selfflow.storage.runs import at_work

    if not jax.config.jax_compilation_cache_dir:
        # A run that goes on, or the next one of a sweep, need not compile again.
        jax.config.update("jax_compilation_cache_dir", str(data_dir / "compiled"))

    def look() -> None:  # before the folder is made
        if isinstance(experiment, Experiment):
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


def _train_alone(experiment: AnyExperiment, workdir: Path, data_dir: Path) -> dict[str, Any]:
    from selfflow.run.folder import check_run, enter_run
    from selfflow.run.init_state import fresh_state
    from selfflow.run.run import Run, abstract_state
    from selfflow.storage.runs import send_changes
    from selfflow.training.checkpoints import Checkpoints
    from selfflow.training.loop import train as run_loop
    from selfflow.training.metrics import MetricsLog
    from selfflow.training.profile import Trace
    from selfflow.training.sharding import on_one_device, rows_here, sharding_table, shardings_of, spread
    from selfflow.training.signals import interruptible

    began = time.monotonic()
    experiment = check_run(workdir, experiment)
    mesh = experiment.devices.mesh()
    task = _task(experiment, data_dir, mesh, workdir)
    agreed(task.data_hash, "the data that they read")
    rows = partial(rows_here, mesh)
    # All that can be wrong with data or weights comes before the folder becomes a run.
    together(lambda: task.feed.batches(0, experiment.steps, rows))
    last = agreed(
        Run(workdir).last_step() if (workdir / "experiment.json").exists() else 0, "the checkpoints they find"
    )
    state = None if last else fresh_state(experiment, mesh)
    if state is not None and task.begin and not experiment.init_from:
        state = task.begin(state)
    where = url_of(data_dir) or str(data_dir.absolute())

    def enter() -> None:
        enter_run(workdir, experiment, task.data_hash, task.sets, task.autoencoders, where)
        send_changes(workdir)  # from here on a bucket knows of a run, whatever of the rest gets there

    together(lambda: enter() if first() else None)

    checkpoints = Checkpoints(workdir, experiment.cadence.keep_last, experiment.cadence.keep_every)
    if state is None:
        state = checkpoints.restore_newest(abstract_state(experiment, mesh))
    start = int(state.step)
    if first():
        task.say(workdir, start, state)
        if mesh.size > 1:
            print(sharding_table(state, shardings_of(state), experiment.objective().logical_axes()))
    batches = task.feed.batches(start, experiment.steps, rows)
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
                    evaluate=task.evaluate and (lambda state: task.evaluate(state, workdir)),
                    **task.functions(mesh, shardings_of(state)),
                )
    finally:
        stream.close()
        if log is not None:
            log.close()
        checkpoints.close()
    weights = on_one_device(state._replace(optimizer=optax.EmptyState()))
    summary = task.prove(workdir, weights) if first() else {}
    if first():
        summary["minutes"] = round((time.monotonic() - began) / 60, 2)
        unfinished = workdir / "summary.json.partial"
        unfinished.write_text(json.dumps(summary, indent=1))
        unfinished.replace(workdir / "summary.json")
    meet()
    return summary


def _task(experiment: AnyExperiment, data_dir: Path, mesh: Mesh, workdir: Path) -> "Task":
    if isinstance(experiment, Experiment):
        from selfflow.tasks.flow import flow_task

        return flow_task(experiment, data_dir, mesh, workdir)
    from selfflow.tasks.autoencoder import autoencoder_task

    return autoencoder_task(experiment, data_dir)
