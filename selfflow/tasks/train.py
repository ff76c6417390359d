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
from selfflow.storage.atomic import atomic_write
from selfflow.storage.paths import bucket_url, url_of_copy
from selfflow.training.distributed import barrier, check_agreed, is_multiprocess, is_primary, run_on_all

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
    from selfflow.run.folder import check_run, run_lock
    from selfflow.storage.runs import open_for_training

    if not jax.config.jax_compilation_cache_dir:
        # A run that goes on, or the next one of a sweep, need not compile again.
        jax.config.update("jax_compilation_cache_dir", str(data_dir / "compiled"))

    def look() -> None:  # before the folder is made
        if isinstance(experiment, Experiment):
            experiment.model.execution.check(jax.default_backend())
        check_run(workdir, experiment).check_devices(experiment.devices.mesh())

    where = bucket_url(workdir) or ""
    if is_multiprocess() and where.startswith("s3://"):
        raise UserError(
            f"--workdir {where}: several processes save checkpoints together on gs:// and on a disk that they share, "
            "and not on s3://"
        )
    if where and f"{url_of_copy(data_dir)}/".startswith(f"{where}/"):
        raise UserError(f"--data-dir {url_of_copy(data_dir)} lies in --workdir {where}: give one outside of the run")
    with ExitStack() as held:
        workdir = run_on_all(lambda: held.enter_context(open_for_training(workdir, writes=is_primary())))
        run_on_all(look)
        run_on_all(lambda: held.enter_context(run_lock(workdir)) if is_primary() else None)
        return _train_alone(experiment, workdir, data_dir)


def _train_alone(experiment: AnyExperiment, workdir: Path, data_dir: Path) -> dict[str, Any]:
    from selfflow.run.folder import check_run, create_or_resume
    from selfflow.run.init_state import initial_state
    from selfflow.run.run import Run, abstract_state
    from selfflow.storage.runs import upload_changes
    from selfflow.training.checkpoints import Checkpoints
    from selfflow.training.loop import train as run_loop
    from selfflow.training.metrics import MetricsLog
    from selfflow.training.profile import Trace
    from selfflow.training.sharding import gather_to_one, local_rows, shard_batch, sharding_table, shardings_of
    from selfflow.training.signals import interruptible

    began = time.monotonic()
    experiment = check_run(workdir, experiment)
    mesh = experiment.devices.mesh()
    task = _task(experiment, data_dir, mesh, workdir)
    check_agreed(task.data_hash, "the data that they read")
    rows = partial(local_rows, mesh)
    # All that can be wrong with data or weights comes before the folder becomes a run.
    run_on_all(lambda: task.feed.batches(0, experiment.steps, rows))
    last = check_agreed(
        Run(workdir).last_step() if (workdir / "experiment.json").exists() else 0, "the checkpoints they find"
    )
    state = None if last else initial_state(experiment, mesh)
    if state is not None and task.begin and not experiment.init_from:
        state = task.begin(state)
    where = url_of_copy(data_dir) or str(data_dir.absolute())

    def enter() -> None:
        create_or_resume(workdir, experiment, task.data_hash, task.datasets, task.autoencoders, where)
        upload_changes(workdir)  # from here on a bucket knows of a run, whatever of the rest gets there

    run_on_all(lambda: enter() if is_primary() else None)

    checkpoints = Checkpoints(workdir, experiment.cadence.keep_last, experiment.cadence.keep_every)
    if state is None:
        state = checkpoints.restore_newest(abstract_state(experiment, mesh))
    start = int(state.step)
    if is_primary():
        task.say(workdir, start, state)
        if mesh.size > 1:
            print(sharding_table(state, shardings_of(state), experiment.objective().logical_axes()))
    batches = task.feed.batches(start, experiment.steps, rows)
    stream = iter(batches)
    sizes = {name: component.batch_size for name, component in experiment.mixture.items()}
    log = None
    try:
        with jax.set_mesh(mesh), interruptible() as interruption:
            log = MetricsLog(workdir, start) if is_primary() else None
            if start < experiment.steps:
                state = run_loop(
                    state,
                    batches=((shard_batch(batch, mesh, sizes[facts["component"]]), facts) for batch, facts in stream),
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
    weights = gather_to_one(state._replace(optimizer=optax.EmptyState()))
    summary = task.prove(workdir, weights) if is_primary() else {}
    if is_primary():
        summary["minutes"] = round((time.monotonic() - began) / 60, 2)
        with atomic_write(workdir / "summary.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=1))
    barrier()
    return summary


def _task(experiment: AnyExperiment, data_dir: Path, mesh: Mesh, workdir: Path) -> "Task":
    if isinstance(experiment, Experiment):
        from selfflow.tasks.flow import flow_task

        return flow_task(experiment, data_dir, mesh, workdir)
    from selfflow.tasks.autoencoder import autoencoder_task

    return autoencoder_task(experiment, data_dir)
