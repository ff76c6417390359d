"""Creation, locking and validation of run folders."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from selfflow.config.experiment import Experiment
from selfflow.config.files import AnyExperiment, diff, is_fixed, save_experiment
from selfflow.config.resolve import resolve
from selfflow.config.setup import Setup, setup_of
from selfflow.errors import UserError
from selfflow.latents.fit_autoencoder import link_or_copy
from selfflow.run.init_state import parse_run_step
from selfflow.run.paths import AUTOENCODERS
from selfflow.run.run import Run
from selfflow.storage.atomic import atomic_write
from selfflow.storage.lock import try_lock
from selfflow.training.checkpoints import Checkpoints
from selfflow.training.state import State

_LOCK = "lock"


def create_or_resume(
    folder: Path,
    experiment: AnyExperiment,
    data_hash: str,
    datasets: dict[str, Any],
    autoencoders: dict[str, Path],
    data_dir: str = "",
) -> None:
    """Writes `experiment.json` and `provenance.json` of a new run, or of a new session of an existing run.

    Args:
      folder: the run folder.
      experiment: the resolved experiment, as in the setup of `check_run`.
      data_hash: identity of the latents.
      datasets: provenance of each data set, from `prepare_data.dataset_provenance`.
      autoencoders: weights files by modality; the run keeps copies, so that samples can be decoded without the data.
      data_dir: path or URL of the data, the default of later commands on the run.

    Raises:
      UserError: if the run was trained on other data.
    """
    changed: dict[str, Any] = {}
    if (folder / "experiment.json").exists():
        run = Run(folder)
        changed, provenance = diff(run.experiment, experiment), run.provenance()
        if provenance.get("data") != data_hash:
            raise UserError(
                f"{folder} was trained on other latents ({provenance.get('data')}, now {data_hash}): the data set was "
                "rebuilt or its autoencoder is another; use another --workdir, or the --data-dir of that time"
            )
    else:
        provenance = {"started_from": experiment.init_from or None, "ancestors": _ancestors(experiment.init_from)}
        provenance |= {"data": data_hash, "sessions": []}
    provenance["datasets"] = datasets
    provenance.setdefault("sessions", []).append(_session() | {"changed": changed, "data_dir": data_dir})
    for m, file in autoencoders.items():
        copy = folder / AUTOENCODERS / f"{m}.safetensors"
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            link_or_copy(file, copy)
    _write_records(folder, experiment, provenance)


def import_run(folder: Path, experiment: Experiment, weights: dict[str, Any], origin: dict[str, Any]) -> None:
    """Creates a run at step 0 from weights that were trained elsewhere, without data and optimizer state.

    Args:
      folder: an empty folder.
      experiment: experiment without data.
      weights: the trained parameters; the EMA starts as a copy of them.
      origin: name, size and hash of the weights file.
    """
    frozen = setup_of(experiment).objective.init_frozen(weights, jax.random.key(experiment.seed.init))
    state = State(jnp.zeros((), jnp.int32), weights, frozen, optax.EmptyState())
    checkpoints = Checkpoints(folder)
    try:
        checkpoints.save(state, 0)
        checkpoints.wait()
    finally:
        checkpoints.close()
    provenance = {"started_from": None, "ancestors": [], "imported": origin, "data": None, "datasets": {}}
    _write_records(folder, experiment, provenance | {"sessions": [_session() | {"changed": {}}]})


def _write_records(folder: Path, experiment: Experiment, provenance: dict[str, Any]) -> None:
    with atomic_write(folder / "provenance.json") as partial:
        partial.write_text(json.dumps(provenance, indent=1), encoding="utf-8")
    # The experiment is written last, because a folder with this file is a run.
    save_experiment(experiment, folder / "experiment.json")


def _ancestors(source: str) -> list[dict[str, Any]]:
    """Returns the runs that the weights of RUN:STEP descend from, nearest first, with the data or origin of each."""
    if not source:
        return []
    provenance = parse_run_step(source)[0].provenance()
    parent = {"run": source, "datasets": provenance.get("datasets", {}), "imported": provenance.get("imported")}
    return [parent, *provenance.get("ancestors", [])]


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Holds an exclusive lock on a run folder, so that only one process trains into it; creates the folder if missing.

    Raises:
      UserError: if another process holds the lock, or the folder cannot be written.
    """
    # TensorStore encodes paths in UTF-8, Python in the locale's encoding: the two would create different folders.
    if os.fsencode(folder) != str(folder).encode("utf-8", "replace"):
        encoding = sys.getfilesystemencoding()
        raise UserError(f"--workdir {folder!a} is not ASCII, and the locale's encoding is {encoding}: set PYTHONUTF8=1")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("w")
    except OSError as error:
        raise UserError(f"--workdir {folder} cannot be written ({error.strerror}): choose another") from error
    with lock:
        if not try_lock(lock):
            raise UserError(f"another process is training in {folder}: wait for it or use another --workdir")
        yield


def is_training(folder: Path) -> bool:
    """Returns whether a process trains into a run folder on this disk. The lock is released when the process ends."""
    try:
        with (folder / _LOCK).open() as lock:
            return not try_lock(lock, shared=True)
    except (FileNotFoundError, NotADirectoryError):
        return False


def recorded_datasets(folder: Path) -> dict[str, str]:
    """Returns the name of each data set that the run in a folder was trained on; {} before its first session."""
    if not (folder / "experiment.json").exists():
        return {}
    return {name: entry["dataset"] for name, entry in Run(folder).provenance()["datasets"].items()}


def check_run(folder: Path, experiment: AnyExperiment) -> Setup:
    """Resolves an experiment to be trained in a new folder or in its existing run; writes nothing.

    Raises:
      UserError: if the folder has the run of another experiment (the message names the fields that differ), if the run
        already has more steps, or if the folder has other content.
    """
    if (folder / "experiment.json").exists():
        return _check_resumed(folder, experiment)
    _check_new(folder)
    if experiment.init_from:
        run, step = parse_run_step(experiment.init_from)
        if type(run.experiment) is not type(experiment):
            raise UserError(
                f"init_from {experiment.init_from}: one of the two runs is of an autoencoder, the other is not"
            )
        step = run.last_step() if step is None else step
        experiment = dataclasses.replace(experiment, init_from=f"{run.source}:{step}")
    return resolve(experiment)


def _check_new(folder: Path) -> None:
    """Raises `UserError` if a folder without a run contains other files."""
    # A process that was killed before `experiment.json` was written leaves these, and temporary files.
    expected = (_LOCK, AUTOENCODERS, "provenance.json")
    paths = folder.iterdir() if folder.exists() else ()
    for path in paths:
        if path.name not in expected and ".partial-" not in path.name:
            raise UserError(
                f"{folder} is not a run folder (no experiment.json) but contains {path.name}: use another --workdir"
            )


def _check_resumed(folder: Path, experiment: AnyExperiment) -> Setup:
    """Returns the setup of an experiment that continues the run in a folder; raises as `check_run`."""
    run = Run(folder)
    old, done = run.experiment, run.last_step()
    if type(old) is not type(experiment):
        raise UserError(f"{folder} has a run of another kind of experiment: use another --workdir")
    if not old.data:
        raise UserError(
            f"{folder} has imported weights without data, which are not trained further: use another --workdir, with "
            f"--init-from {folder}"
        )
    if experiment.steps < done:
        raise UserError(f"steps is {experiment.steps}, but {folder} has done {done}: use another --workdir")
    # Fields derived from the number of steps keep their values, so that a longer run computes the same steps.
    setup = resolve(experiment, previous=old)
    fixed = {name: values for name, values in diff(old, setup.experiment).items() if is_fixed(name)}
    if fixed:
        changes = [f"{name} was {was!r}, now {now!r}" for name, (was, now) in fixed.items()]
        more = f"; and {len(changes) - 5} more" if len(changes) > 5 else ""
        raise UserError(
            f"{folder} has a run of another experiment: {'; '.join(changes[:5])}{more}. Use another --workdir, or the "
            "old values"
        )
    return setup


def _session() -> dict[str, Any]:
    """Returns version, packages, devices and command of this process."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    source = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            process = subprocess.run(["git", "-C", str(source), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return process.stdout.strip() if process.returncode == 0 else None

    status = git("status", "--porcelain")
    return {
        "selfflow": importlib.metadata.version("selfflow"),
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "devices": [str(d.device_kind) for d in jax.devices()],
        "command": sys.argv,
    }
