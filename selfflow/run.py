"""A run: the folder that an experiment leaves behind, and what can be asked of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from safetensors import SafetensorError

from selfflow.autoencoders.linear import LinearAutoencoder
from selfflow.buckets.paths import url
from selfflow.buckets.runs import opened, saved_steps
from selfflow.errors import UserError
from selfflow.experiment import Experiment
from selfflow.experiment_file import read_experiment
from selfflow.objectives.selfflow import SelfFlowObjective
from selfflow.training.checkpoints import Checkpoints
from selfflow.training.metrics import read_metrics
from selfflow.training.state import State, dotted

AUTOENCODERS = "autoencoders"


class Run:
    """An existing run folder.

    Attributes:
      path: the folder; of a run in a bucket a copy, which lacks the checkpoints.
      source: the path or URL that it was opened by.
      experiment: the resolved experiment that made it.
      objective: its model, schedule and losses.

    Raises:
      UserError: if the folder is not a run.
    """

    def __init__(self, path: str | Path):
        self.path, self.source = opened(path), url(path) or str(path)
        if not (self.path / "experiment.json").is_file():
            raise UserError(f"{self.source} is not a run folder: it has no experiment.json")
        self.experiment: Experiment = read_experiment(self.path / "experiment.json")
        self.objective: SelfFlowObjective = self.experiment.objective()

    def metrics(self) -> list[dict[str, Any]]:
        """All rows of `metrics.jsonl`, oldest first."""
        return read_metrics(self.path)

    def last_step(self) -> int:
        """The step of the newest checkpoint; 0 if there is none."""
        return max(saved_steps(self.path), default=0)

    def provenance(self) -> dict[str, Any]:
        """What `provenance.json` says of the run's code, data and origin.

        Raises:
          UserError: if it is missing or damaged.
        """
        return self._json("provenance.json")

    def summary(self) -> dict[str, Any] | None:
        """What the run measured of itself at its end; None where it has not ended.

        Raises:
          UserError: if `summary.json` is damaged.
        """
        return self._json("summary.json") if (self.path / "summary.json").exists() else None

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            told = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} is missing or damaged ({error}): restore it from a copy of the run") from error
        if not isinstance(told, dict):
            raise UserError(f"{path} holds no JSON object: restore it from a copy of the run")
        return told

    def autoencoder(self, modality: str) -> LinearAutoencoder:
        """What decodes the latents of a modality: the run's copy of the autoencoder that made them.

        Raises:
          UserError: if the run has none, or it is damaged.
        """
        path = self.path / AUTOENCODERS / f"{modality}.safetensors"
        if modality not in self.experiment.autoencoders or not path.is_file():
            raise UserError(
                f"{self.source} has no autoencoder for {modality} ({path}): its weights were imported, or another "
                "version made it; take the run up with `selfflow train` once, which copies it"
            )
        try:
            found = LinearAutoencoder.load(self.experiment.autoencoders[modality], path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is damaged ({error}): restore it from a copy of the run") from error
        known = {told["autoencoders"].get(modality) for told in self.provenance()["sets"].values()} - {None}
        if found.identity not in known:
            raise UserError(f"{path} is {found.identity}, not {' or '.join(known)}: restore it from a copy of the run")
        return found

    def restore(self, step: int | None = None, mesh: Mesh | None = None) -> State:
        """The state at a step, by default the newest checkpoint.

        Args:
          step: a step that was saved.
          mesh: where to, whatever the mesh was that it was saved from; by default the first device.

        Raises:
          UserError: if there is no such checkpoint, or it is damaged.
        """
        return self._read(Checkpoints.restore, step, mesh)

    def weights(self, step: int | None = None, mesh: Mesh | None = None) -> State:
        """The same without the optimizer's state, which is not read: half the memory.

        Raises:
          UserError: as `restore`.
        """
        return self._read(Checkpoints.restore_weights, step, mesh)

    def _read(self, restore: Callable[[Checkpoints, State, int], State], step: int | None, mesh: Mesh | None) -> State:
        if not saved_steps(self.path):
            raise UserError(f"{self.source} has no checkpoint: train it first, or give another run")
        checkpoints = Checkpoints(self.path)
        try:
            have = checkpoints.steps()
            if not have:
                raise UserError(f"{self.path} has no checkpoint that was saved whole: train it first")
            step = have[-1] if step is None else step
            if step not in have:
                raise UserError(f"{self.source} has no checkpoint of step {step}; it has {', '.join(map(str, have))}")
            return restore(checkpoints, abstract_state(self.experiment, mesh), step)
        finally:
            checkpoints.close()


def open_run(path: str | Path) -> Run:
    """Opens a run folder, on a disk or in a bucket."""
    return Run(path)


def abstract_state(experiment: Experiment, mesh: Mesh | None = None) -> State:
    """Shapes, types and placement of an experiment's state: over a mesh, or on the first device."""
    shapes = jax.eval_shape(experiment.init, jax.random.key(0))
    if mesh is None:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        placed = jax.tree.map(lambda _: here, shapes)
    else:
        placed = experiment.shardings(mesh)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, placed)


def fresh_state(experiment: Experiment, mesh: Mesh | None = None) -> State:
    """The state at step 0, from `seed.init`, or from the weights of another run where `init_from` names one.

    Args:
      experiment: resolved.
      mesh: where to; by default as `experiment.devices` says.
    """
    mesh = mesh or experiment.devices.mesh()
    seed = experiment.seed.init  # inside: a key made here would lie on a device of this process alone
    state = jax.jit(lambda: experiment.init(jax.random.key(seed)), out_shardings=experiment.shardings(mesh))()
    return _start_from(experiment.init_from, state, mesh) if experiment.init_from else state


def _start_from(source: str, state: State, mesh: Mesh) -> State:
    """Copies parameters and EMA from RUN[:STEP]; parameters that the run does not have stay fresh and are listed."""
    run, step = run_and_step(source)
    other = run.weights(step, mesh)
    fresh = []

    def take(name, new, old):
        if old is None:
            fresh.append(name)
            return new
        if old.shape != new.shape:
            raise UserError(f"init_from {source}: {name} has shape {old.shape} there and {new.shape} here")
        return jax.device_put(old, new.sharding)

    def merged(new_tree, old_tree, prefix):
        old = dict(jax.tree_util.tree_leaves_with_path(old_tree))
        return jax.tree_util.tree_map_with_path(
            lambda at, new: take(prefix + dotted(at), new, old.get(at)),
            new_tree,
        )

    params = merged(state.params, other.params, "")
    frozen = merged(state.frozen, other.frozen, "")
    if fresh:
        print(f"init_from {source}: new parameters, not in that run: {', '.join(sorted(fresh))}")
    return state._replace(params=params, frozen=frozen)


def run_and_step(source: str) -> tuple[Run, int | None]:
    """The run, and the step if one is named, that RUN or RUN:STEP means."""
    path, _, step = source.rpartition(":")
    if not path or "/" in step:  # the colon of a URL, or none
        path, step = source, ""
    if step and not step.isdigit():
        raise UserError(f"init_from is {source!r}: write RUN or RUN:STEP")
    return Run(path), int(step) if step else None
