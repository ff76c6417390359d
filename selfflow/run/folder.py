"""Run folders as they are made and taken up: by a training, or of weights that were trained elsewhere."""

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
    """Makes a run folder, or takes up the one that is there; writes `experiment.json` and `provenance.json`.

    Args:
      folder: the run folder.
      experiment: resolved, as `check_run` returns it in a setup.
      data_hash: identity of the latents.
      datasets: provenance of each data set, as `dataset_provenance` returns it.
      autoencoders: file of each modality's, of which the run keeps a copy: samples are decoded without the data.
      data_dir: where the data is, so that it is found again.

    Raises:
      UserError: if the run there was trained on other data.
    """
    path = folder / "experiment.json"
    changed: dict[str, Any] = {}
    if path.exists():
        run = Run(folder)
        changed, provenance = diff(run.experiment, experiment), run.provenance()
        if provenance["data"] != data_hash:
            raise UserError(
                f"{folder} was trained on other latents ({provenance['data']}, now {data_hash}): the data set was "
                "rebuilt or its autoencoder is another; use another --workdir, or the --data-dir of that time"
            )
    else:
        provenance = {"started_from": experiment.init_from or None, "ancestors": _ancestors(experiment.init_from)}
        provenance |= {"data": data_hash, "sessions": []}
    provenance["datasets"] = datasets
    provenance["sessions"].append(_surroundings() | {"changed": changed, "data_dir": data_dir})
    for m, file in autoencoders.items():
        kept = folder / AUTOENCODERS / f"{m}.safetensors"
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            link_or_copy(file, kept)
    _make_run(folder, experiment, provenance)


def import_run(folder: Path, experiment: Experiment, weights: dict[str, Any], origin: dict[str, Any]) -> None:
    """Makes a run folder of weights that were trained elsewhere: step 0, without data and without optimizer.

    Args:
      folder: a folder that is there and empty.
      experiment: one without data.
      weights: the trained parameters; the EMA starts as a copy of them.
      origin: file that the weights came from, and its hash.
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
    _make_run(folder, experiment, provenance | {"sessions": [_surroundings() | {"changed": {}}]})


def _make_run(folder: Path, experiment: Experiment, provenance: dict[str, Any]) -> None:
    with atomic_write(folder / "provenance.json") as partial:
        partial.write_text(json.dumps(provenance, indent=1))
    # The experiment comes last: a folder is a run once it is there.
    save_experiment(experiment, folder / "experiment.json")


def _ancestors(source: str) -> list[dict[str, Any]]:
    """What the weights of RUN:STEP come from, nearest first: runs, what each was trained on or imported from."""
    if not source:
        return []
    provenance = parse_run_step(source)[0].provenance()
    own = {"run": source, "datasets": provenance.get("datasets", {}), "imported": provenance.get("imported")}
    return [own, *provenance.get("ancestors", [])]


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Makes a run folder if need be, and holds its lock: two processes must not train into one run.

    Raises:
      UserError: if another process holds it, or the folder cannot be written.
    """
    # TensorStore writes names in UTF-8, Python in the locale's encoding: one folder would become two.
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
    """Whether a process trains into a run folder on this disk: its lock goes with it, however it ends."""
    try:
        with (folder / _LOCK).open() as lock:
            return not try_lock(lock, shared=True)
    except (FileNotFoundError, NotADirectoryError):
        return False


def check_run(folder: Path, experiment: AnyExperiment) -> Setup:
    """Resolves an experiment against the run that may already be in a folder; writes nothing.

    Raises:
      UserError: if the run there was made by another experiment, naming the fields that differ; if it already has
        more steps; if the folder holds something else.
    """
    if not (folder / "experiment.json").exists():
        # A process that was killed before `experiment.json` was written leaves these, and temporary files.
        expected = (_LOCK, AUTOENCODERS, "provenance.json")
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
        foreign = [name for name in names if name not in expected and ".partial-" not in name]
        if foreign:
            raise UserError(
                f"{folder} is no run folder (no experiment.json) but holds {foreign[0]}: use another --workdir"
            )
        if experiment.init_from:
            run, step = parse_run_step(experiment.init_from)
            if type(run.experiment) is not type(experiment):
                raise UserError(
                    f"init_from {experiment.init_from}: one of the two runs is of an autoencoder, the other is not"
                )
            step = run.last_step() if step is None else step
            experiment = dataclasses.replace(experiment, init_from=f"{run.source}:{step}")
        return resolve(experiment)
    run = Run(folder)
    old, done = run.experiment, run.last_step()
    if type(old) is not type(experiment):
        raise UserError(f"{folder} holds a run of another kind of experiment: use another --workdir")
    if not old.data:
        raise UserError(
            f"{folder} holds imported weights and no data, and is not trained on: use another --workdir, with "
            f"--init-from {folder}"
        )
    if experiment.steps < done:
        raise UserError(f"steps is {experiment.steps}, but {folder} has done {done}: use another --workdir")
    # What followed from the run's first length stays: more steps must not change what is computed.
    setup = resolve(experiment, previous=old)
    experiment = setup.experiment
    differing = [name for name in diff(old, experiment) if is_fixed(name)]
    if differing:
        both = diff(old, experiment)
        shown = "; ".join(f"{name} was {both[name][0]!r}, now {both[name][1]!r}" for name in differing[:5])
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            f"{folder} holds a run of another experiment: {shown}{more}. Use another --workdir, or the old values"
        )
    return setup


def _surroundings() -> dict[str, Any]:
    """Code, packages and devices of this process."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    source = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(source), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

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
