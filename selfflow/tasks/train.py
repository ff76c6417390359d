"""Training of an experiment: creates or resumes the run, trains, and evaluates the result."""

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from selfflow.config.experiment import Experiment
from selfflow.config.files import AnyExperiment
from selfflow.config.setup import FlowSetup, Setup
from selfflow.errors import UserError
from selfflow.run.folder import check_run, create_or_resume, run_lock
from selfflow.run.run import Run
from selfflow.storage.atomic import atomic_write
from selfflow.storage.paths import bucket_url, url_of_copy
from selfflow.storage.runs import open_for_training, upload_changes
from selfflow.tasks.autoencoder import AutoencoderTask
from selfflow.tasks.check_end import check_sample_files, warn_of_space
from selfflow.tasks.flow import FlowTask
from selfflow.tasks.task import TrainingTask
from selfflow.training.checkpoints import Checkpoints
from selfflow.training.distributed import barrier, check_agreed, is_multiprocess, is_primary, run_on_all
from selfflow.training.loop import train as run_loop
from selfflow.training.metrics import MetricsLog
from selfflow.training.profile import Trace
from selfflow.training.sharding import gather_to_one, sharding_table, shardings_of
from selfflow.training.signals import interruptible
from selfflow.training.state import State


def train(experiment: AnyExperiment, workdir: Path, data_dir: Path) -> dict[str, Any]:
    """Trains an experiment into a run folder, or resumes the run in it.

    Args:
      experiment: the experiment, as loaded from its file.
      workdir: the run folder, on a disk or in a bucket.
      data_dir: folder for data sets and latents.

    Returns:
      The summary, which is also written to `summary.json`; {} in all processes except the primary.

    Raises:
      UserError: if experiment, folder or data set are invalid, or the devices do not fit the experiment.
      Interrupted: if the process was asked to stop.
    """
    started = time.monotonic()
    if not jax.config.jax_compilation_cache_dir:
        # The persistent cache spares resumed runs and later runs of a sweep the compilation.
        jax.config.update("jax_compilation_cache_dir", str(data_dir / "compiled"))
    _check_places(workdir, data_dir)
    with ExitStack() as stack:
        folder = run_on_all(lambda: stack.enter_context(open_for_training(workdir, writes=is_primary())))
        run_on_all(lambda: _check(experiment, folder))  # before the lock creates the folder
        run_on_all(lambda: stack.enter_context(run_lock(folder)) if is_primary() else None)

        setup = check_run(folder, experiment)
        task = _task(setup, data_dir, setup.experiment.devices.mesh(), folder)
        checkpoints, state = _create_or_resume(task, data_dir)
        if is_primary():
            print(task.start_message(state))
            if task.mesh.size > 1:
                print(sharding_table(state, shardings_of(state), setup.objective.logical_axes()))
        state = _run_steps(task, state, checkpoints)

        weights = gather_to_one(state._replace(optimizer=optax.EmptyState()))
        summary = {}
        if is_primary():
            summary = task.final_evaluation(weights)
            summary["minutes"] = round((time.monotonic() - started) / 60, 2)
            with atomic_write(folder / "summary.json") as partial:
                partial.write_text(json.dumps(summary, indent=1), encoding="utf-8")
        barrier()
        return summary


def _check_places(workdir: Path, data_dir: Path) -> None:
    """Raises `UserError` if the run or its data are in unsupported buckets."""
    run, data = bucket_url(workdir) or "", url_of_copy(data_dir) or ""
    if is_multiprocess() and run.startswith("s3://"):
        raise UserError(
            f"--workdir {run}: several processes save checkpoints together on gs:// and on a disk that they share, "
            "and not on s3://"
        )
    if run and f"{data}/".startswith(f"{run}/"):
        raise UserError(f"--data-dir {data} is in --workdir {run}: give one outside of the run")


def _check(experiment: AnyExperiment, folder: Path) -> None:
    """Raises `UserError` if the experiment is invalid or does not fit run or devices, or samples cannot be written."""
    if isinstance(experiment, Experiment):
        experiment.model.execution.check(jax.default_backend())
    setup = check_run(folder, experiment)
    setup.check_devices(experiment.devices.mesh())
    # Samples are written after the last step; a missing encoder must be detected before the first.
    if is_primary():
        check_sample_files(setup)


def _task(setup: Setup, data_dir: Path, mesh: Mesh, folder: Path) -> TrainingTask:
    if isinstance(setup, FlowSetup):
        return FlowTask(setup, data_dir, mesh, folder)
    return AutoencoderTask(setup, data_dir, mesh, folder)


def _create_or_resume(task: TrainingTask, data_dir: Path) -> tuple[Checkpoints, State]:
    """Creates or resumes the run in the folder; returns the state of its newest checkpoint, or of step 0."""
    folder, cadence = task.folder, task.setup.experiment.cadence
    exists = (folder / "experiment.json").exists()
    last = check_agreed(Run(folder).last_step() if exists else 0, "the checkpoints they find")
    # The state is initialised first, so that errors in initial weights appear before the run folder is written.
    state = None if last else task.init()

    def create() -> None:
        data = url_of_copy(data_dir) or str(data_dir.absolute())
        create_or_resume(folder, task.setup.experiment, task.data_hash, task.datasets, task.autoencoders, data)
        upload_changes(folder)  # so that the run is in the bucket even before its first checkpoint

    run_on_all(lambda: create() if is_primary() else None)
    checkpoints = Checkpoints(folder, cadence.keep_last, cadence.keep_every)
    shapes = task.setup.abstract_state(task.mesh) if state is None else state
    if is_primary():
        warn_of_space(folder, shapes, cadence, task.setup.experiment.steps, checkpoints.steps())
    if state is None:
        state = checkpoints.restore_newest(shapes)
    return checkpoints, state


def _run_steps(task: TrainingTask, state: State, checkpoints: Checkpoints) -> State:
    """Trains from a state to the last step."""
    experiment, start = task.setup.experiment, int(state.step)
    with ExitStack() as stack:
        stack.callback(checkpoints.close)
        stack.enter_context(jax.set_mesh(task.mesh))
        interruption = stack.enter_context(interruptible())
        log = MetricsLog(task.folder, start) if is_primary() else None
        if log is not None:
            stack.callback(log.close)
        if start >= experiment.steps:
            return state
        return run_loop(
            state,
            task,
            steps=experiment.steps,
            cadence=experiment.cadence,
            limits=experiment.limits,
            log=log,
            checkpoints=checkpoints,
            interruption=interruption,
            hooks=[Trace(experiment.profile, task.folder, start, experiment.steps)],
        )
