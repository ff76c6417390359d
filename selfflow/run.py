"""A run: the folder that an experiment leaves behind, and what can be asked of it."""

import dataclasses
import fcntl
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from selfflow.errors import UserError
from selfflow.experiment import Experiment
from selfflow.experiment_file import changes, forbidden, read_experiment, save_experiment
from selfflow.objectives.selfflow import SelfFlowObjective
from selfflow.training.checkpoints import Checkpoints
from selfflow.training.metrics import read_metrics
from selfflow.training.state import State

_LOCK = "lock"


class Run:
    """An existing run folder.

    Attributes:
      path: the folder.
      experiment: the resolved experiment that made it.
      objective: its model, schedule and losses.

    Raises:
      UserError: if the folder is not a run.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not (self.path / "experiment.json").is_file():
            raise UserError(f"{self.path} is not a run folder: it has no experiment.json")
        self.experiment: Experiment = read_experiment(self.path / "experiment.json")
        self.objective: SelfFlowObjective = self.experiment.objective()

    def metrics(self) -> list[dict[str, Any]]:
        """All rows of `metrics.jsonl`, oldest first."""
        return read_metrics(self.path)

    def last_step(self) -> int:
        """The step of the newest checkpoint; 0 if there is none."""
        folder = self.path / "checkpoints"
        return max((int(p.name) for p in folder.glob("*") if p.name.isdigit()), default=0)

    def restore(self, step: int | None = None) -> State:
        """The state at a step, by default the newest checkpoint.

        Raises:
          UserError: if there is no such checkpoint, or it is damaged.
        """
        checkpoints = Checkpoints(self.path)
        try:
            step = checkpoints.latest() if step is None else step
            if step not in checkpoints.steps():
                have = ", ".join(map(str, checkpoints.steps())) or "none"
                raise UserError(f"{self.path} has no checkpoint of step {step}; it has {have}")
            return checkpoints.restore(abstract_state(self.experiment), step)
        finally:
            checkpoints.close()


def open_run(path: str | Path) -> Run:
    """Opens a run folder."""
    return Run(path)


def abstract_state(experiment: Experiment) -> State:
    """Shapes, types and placement of an experiment's state."""
    shapes = jax.eval_shape(experiment.init, jax.random.key(0))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)


def fresh_state(experiment: Experiment) -> State:
    """The state at step 0, from `seed.init`, or from the weights of another run where `init_from` names one."""
    state = jax.jit(experiment.init)(jax.random.key(experiment.seed.init))
    return _start_from(experiment.init_from, state) if experiment.init_from else state


def _start_from(source: str, state: State) -> State:
    """Copies parameters and EMA from RUN[:STEP]; parameters that the run does not have stay fresh and are listed."""
    run, step = _run_and_step(source)
    other = run.restore(step)
    fresh = []

    def take(name, new, old):
        if old is None:
            fresh.append(name)
            return new
        if old.shape != new.shape:
            raise UserError(f"init_from {source}: {name} has shape {old.shape} there and {new.shape} here")
        # A copy: both trees are donated to the step later.
        return jnp.array(old)

    def merged(new_tree, old_tree, prefix):
        old = dict(jax.tree_util.tree_leaves_with_path(old_tree))
        return jax.tree_util.tree_map_with_path(
            lambda at, new: take(prefix + jax.tree_util.keystr(at, simple=True, separator="."), new, old.get(at)),
            new_tree,
        )

    params = merged(state.params, other.params, "")
    frozen = merged(state.frozen, other.frozen, "")
    if fresh:
        print(f"init_from {source}: new parameters, not in that run: {', '.join(sorted(fresh))}")
    return state._replace(params=params, frozen=frozen)


def _run_and_step(source: str) -> tuple[Run, int | None]:
    path, _, step = source.partition(":")
    if step and not step.isdigit():
        raise UserError(f"init_from is {source!r}: write RUN or RUN:STEP")
    return Run(path), int(step) if step else None


def enter_run(folder: Path, experiment: Experiment, data_hash: str) -> None:
    """Makes a run folder, or takes up the one that is there; writes `experiment.json` and `provenance.json`.

    Args:
      folder: the run folder.
      experiment: as `check_run` returned it.
      data_hash: identity of the latents.

    Raises:
      UserError: if the run there was trained on other data.
    """
    path = folder / "experiment.json"
    changed: dict[str, Any] = {}
    provenance: dict[str, Any] = {"started_from": experiment.init_from or None, "data": data_hash, "sessions": []}
    if path.exists():
        changed = changes(read_experiment(path), experiment)
        provenance = json.loads((folder / "provenance.json").read_text())
        if provenance["data"] != data_hash:
            raise UserError(
                f"{folder} was trained on other latents ({provenance['data']}, now {data_hash}): the data set was "
                "rebuilt; use another --workdir, or the --data-dir of that time"
            )
    provenance["sessions"].append(_surroundings() | {"changed": changed})
    partial = folder / "provenance.partial"
    partial.write_text(json.dumps(provenance, indent=1))
    # The experiment comes last: a folder is a run once it is there.
    partial.replace(folder / "provenance.json")
    save_experiment(experiment, path)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Makes a run folder if need be, and holds its lock: two processes must not train into one run.

    Raises:
      UserError: if another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("w")
    except OSError as error:
        raise UserError(f"--workdir {folder} cannot be written ({error.strerror}): choose another") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is training in {folder}: wait for it or use another --workdir") from error
        yield


def check_run(folder: Path, experiment: Experiment) -> Experiment:
    """Resolves an experiment against the run that may already be in a folder; writes nothing.

    Raises:
      UserError: if the run there was made by another experiment, naming the fields that differ; if it already has
        more steps; if the folder holds something else.
    """
    if not (folder / "experiment.json").exists():
        ours = (_LOCK, "provenance.json", "provenance.partial", "experiment.partial")
        foreign = [path.name for path in folder.iterdir() if path.name not in ours] if folder.exists() else []
        if foreign:
            raise UserError(
                f"{folder} is no run folder (no experiment.json) but holds {foreign[0]}: use another --workdir"
            )
        if experiment.init_from:
            run, step = _run_and_step(experiment.init_from)
            step = run.last_step() if step is None else step
            experiment = dataclasses.replace(experiment, init_from=f"{run.path}:{step}")
        return experiment.resolved()
    done = Run(folder).last_step()
    if experiment.steps < done:
        raise UserError(f"steps is {experiment.steps}, but {folder} has done {done}: use another --workdir")
    old = read_experiment(folder / "experiment.json")
    # What followed from the run's first length stays: more steps must not change what is computed.
    experiment = experiment.resolved(like=old)
    differing = [name for name in changes(old, experiment) if forbidden(name)]
    if differing:
        both = changes(old, experiment)
        shown = "; ".join(f"{name} was {both[name][0]!r}, now {both[name][1]!r}" for name in differing[:5])
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            f"{folder} holds a run of another experiment: {shown}{more}. Use another --workdir, or the old values"
        )
    return experiment


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
