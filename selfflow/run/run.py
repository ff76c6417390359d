"""Access to a run folder: weights, data, metrics, provenance and samples of a trained experiment."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError

from selfflow.autoencoders.config import Autoencoder, can_decode
from selfflow.autoencoders.load import load_autoencoder
from selfflow.config.experiment import Experiment
from selfflow.config.files import read_experiment
from selfflow.config.setup import FlowSetup, setup_of
from selfflow.errors import UserError
from selfflow.run.model import Model, model_of
from selfflow.run.paths import AUTOENCODERS
from selfflow.sampling.generate import Sampler
from selfflow.storage.paths import bucket_url
from selfflow.storage.runs import local_copy, saved_steps
from selfflow.training.checkpoints import Checkpoints
from selfflow.training.metrics import read_metrics
from selfflow.training.state import State

if TYPE_CHECKING:
    from selfflow.input.reader import Reader
    from selfflow.run.data import Clips
    from selfflow.run.prepare_data import RunData
    from selfflow.run.sampler import Samples


class Run:
    """An existing run folder.

    Attributes:
      path: the run folder; for a run in a bucket a local copy without checkpoints.
      source: path or URL that was passed to the constructor.
      setup: setup of the experiment.
      experiment: experiment of the setup.
      objective: objective of the setup.

    Raises:
      UserError: if the folder is not a run.
    """

    def __init__(self, path: str | Path):
        self.path, self.source = local_copy(path), bucket_url(path) or str(path)
        if not (self.path / "experiment.json").is_file():
            raise UserError(f"{self.source} is not a run folder: it has no experiment.json")
        self.setup: FlowSetup = setup_of(read_experiment(self.path / "experiment.json"))
        self.experiment, self.objective = self.setup.experiment, self.setup.objective
        self._models: dict[tuple, Model] = {}
        self._data: dict[str, "RunData"] = {}  # by data folder

    @property
    def name(self) -> str:
        """Name of the run folder, with `.` and links resolved."""
        url = bucket_url(self.source)
        return url.rstrip("/").rsplit("/", 1)[-1] if url else self.path.resolve().name

    def metrics(self) -> list[dict[str, Any]]:
        """Returns all rows of `metrics.jsonl`, oldest first."""
        return read_metrics(self.path)

    def last_step(self) -> int:
        """Returns the step of the newest checkpoint; 0 if there is none."""
        return max(saved_steps(self.path), default=0)

    def provenance(self) -> dict[str, Any]:
        """Returns the content of `provenance.json`: code, data and origin of the run.

        Raises:
          UserError: if the file is missing or damaged.
        """
        provenance = self._json("provenance.json")
        damage, datasets = "", provenance.get("datasets", {})
        if not isinstance(datasets, dict) or not all(isinstance(entry, dict) for entry in datasets.values()):
            damage = "datasets holds no tables"
        elif not all({"dataset", "fingerprint"} <= entry.keys() for entry in datasets.values()):
            damage = "an entry of datasets has no dataset or no fingerprint"
        if damage:
            raise UserError(f"{self.path}/provenance.json is damaged: {damage}: restore it from a copy")
        return provenance

    def summary(self) -> dict[str, Any] | None:
        """Returns the content of `summary.json`, which the final evaluation writes; None if it does not exist yet.

        Raises:
          UserError: if `summary.json` is damaged.
        """
        return self._json("summary.json") if (self.path / "summary.json").exists() else None

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} is missing or damaged ({error}): restore it from a copy of the run") from error
        if not isinstance(content, dict):
            raise UserError(f"{path} holds no JSON object: restore it from a copy of the run")
        return content

    def autoencoder(self, modality: str) -> Autoencoder:
        """Returns the autoencoder of a modality, from the run's copy of its weights.

        Raises:
          UserError: if the run has no such autoencoder, or its file is damaged.
        """
        path = self.path / AUTOENCODERS / f"{modality}.safetensors"
        if not can_decode(self.experiment.autoencoders.get(modality)):
            load_autoencoder(self.experiment.autoencoders[modality], path)  # raises with the reason
        if modality not in self.experiment.autoencoders or not path.is_file():
            raise UserError(
                f"{self.source} has no autoencoder for {modality} ({path}): its weights were imported, or the file was "
                "removed; resume the run with `selfflow train`, which copies it"
            )
        try:
            autoencoder = load_autoencoder(self.experiment.autoencoders[modality], path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is damaged ({error}): restore it from a copy of the run") from error
        datasets = self.provenance()["datasets"].values()
        identities = {entry.get("autoencoders", {}).get(modality) for entry in datasets} - {None}
        if autoencoder.identity not in identities:
            expected = " or ".join(identities)
            raise UserError(f"{path} is {autoencoder.identity}, not {expected}: restore it from a copy of the run")
        return autoencoder

    def restore(self, step: int | None = None, mesh: Mesh | None = None) -> State:
        """Restores the state of a checkpoint.

        Args:
          step: step of the checkpoint; by default the newest.
          mesh: devices to restore to, which may differ from the mesh of the training; by default the first device.

        Raises:
          UserError: if the checkpoint does not exist or is damaged.
        """
        return self._read(Checkpoints.restore, step, mesh)

    def weights(self, step: int | None = None, mesh: Mesh | None = None) -> State:
        """Restores parameters and frozen trees without the optimizer state, which halves the memory.

        Args:
          step: as in `restore`.
          mesh: as in `restore`.

        Raises:
          UserError: as in `restore`.
        """
        return self._read(Checkpoints.restore_weights, step, mesh)

    def model(
        self,
        weights: Literal["ema", "student", "untrained"] = "ema",
        step: int | None = None,
        mesh: Mesh | None = None,
    ) -> Model:
        """Returns the network of the run with its parameters. The last result is cached.

        Args:
          weights: the EMA, the student, or random weights from `seed.init` with the gates of all blocks open, as a
            baseline for trained features.
          step: step of the checkpoint; by default the newest.
          mesh: devices to restore to; by default the first device.

        Raises:
          UserError: as in `restore`, or if `weights` has another value.
        """
        if weights not in ("ema", "student", "untrained"):
            raise UserError(f"weights is {weights!r}, expected ema, student or untrained")
        if weights == "untrained" and step is not None:
            raise UserError(f"weights untrained, step {step}: untrained weights have no step; leave it out")
        newest = self.last_step() if step is None and weights != "untrained" else step
        key = (weights, newest, mesh)
        if key not in self._models:
            self._models.clear()  # frees the memory of the previous model
            state = None if weights == "untrained" else self.weights(step, mesh)
            self._models[key] = model_of(self.setup, state, weights, mesh)
        return self._models[key]

    def open_data(self, data_dir: str | Path | None = None) -> "RunData":
        """Opens the data that the run was trained on. The result is cached.

        Args:
          data_dir: folder for data sets and latents; by default the folder of the run's last session if it still
            exists, otherwise the default data folder.

        Raises:
          UserError: if the run has no data, or the latents differ from those that it was trained on.
        """
        from selfflow.run.data import open_data  # imports TFDS, which many commands do not need

        if str(data_dir) not in self._data:
            own = self.path / AUTOENCODERS
            self._data[str(data_dir)] = open_data(self.setup, self.provenance(), self.source, own, data_dir)
        return self._data[str(data_dir)]

    def data(self, split: str = "test", component: str | None = None, data_dir: str | Path | None = None) -> "Clips":
        """Returns the clips of a component of the mixture in a split of its data set.

        Args:
          split: name of the split.
          component: name of the component; by default the first of the mixture.
          data_dir: as in `open_data`.

        Raises:
          UserError: as in `open_data`, or if the component or the split does not exist.
        """
        from selfflow.run.data import Clips

        return Clips(self.open_data(data_dir), split, component)

    def sample(
        self,
        count: int = 4,
        modalities: tuple[str, ...] = (),
        context: tuple[str, ...] = (),
        seed: int = 0,
        sampler: Sampler | None = None,
        weights: Literal["ema", "student"] = "ema",
        step: int | None = None,
        label: int | None = None,
        caption: str = "",
        batch_size: int = 16,
        mesh: Mesh | None = None,
        data_dir: str | Path | None = None,
    ) -> "Samples":
        """Draws the same samples as `selfflow sample` and returns them.

        Args:
          count: number of samples; sample i depends only on the seed and i.
          modalities: modalities to generate; by default all modalities of the first component of the mixture.
          context: context of the samples, in the syntax of `--context`, such as ("video=clip.mp4",).
          seed: seed of the samples.
          sampler: settings of the solver; by default `experiment.sampler`.
          weights: the EMA or the student.
          step: step of the checkpoint; by default the newest.
          label: class label of the samples, if the model has labels.
          caption: caption of the samples, if the model has captions.
          batch_size: samples in a batch.
          mesh: devices over which samples are sharded; by default only the first device.
          data_dir: as in `open_data`, if the context is taken from the run's data.

        Raises:
          UserError: as in `RunSampler`.
        """
        from selfflow.run.sampler import RunSampler, SampleRequest

        for name, value in (("count", count), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"{name} is {value}: it must be at least 1")
        if weights == "untrained":
            raise UserError("weights untrained: samples are drawn from ema or student")
        request = SampleRequest(tuple(modalities), tuple(context), sampler, label, caption)
        model = self.model(weights, step, mesh)
        run_sampler = RunSampler(self, request, model.params, partial(self.held_out, data_dir=data_dir), mesh)
        batches = list(run_sampler.batches(np.arange(count), seed, batch_size))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)

    def held_out(
        self,
        component: str,
        splits: tuple[str, ...] = ("test", "validation", "train"),
        data_dir: str | Path | None = None,
    ) -> "Reader":
        """Returns a reader of the full-length clips of a component, which samples use as context.

        Args:
          component: name of the component in the mixture.
          splits: splits in order of preference; the first that has a full-length clip is read.
          data_dir: as in `open_data`.

        Raises:
          UserError: as in `open_data`, or if no split has a full-length clip.
        """
        from selfflow.run.data import held_out_reader

        return held_out_reader(self.open_data(data_dir).source, component, splits)

    def _read(self, restore: Callable[[Checkpoints, State, int], State], step: int | None, mesh: Mesh | None) -> State:
        if not saved_steps(self.path):
            raise UserError(f"{self.source} has no checkpoint: train it first, or give another run")
        checkpoints = Checkpoints(self.path)
        try:
            steps = checkpoints.steps()
            if not steps:
                raise UserError(f"{self.path} has no complete checkpoint: train it first")
            step = steps[-1] if step is None else step
            if step not in steps:
                raise UserError(f"{self.source} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
            return restore(checkpoints, self.setup.abstract_state(mesh), step)
        finally:
            checkpoints.close()


def open_run(path: str | Path) -> Run:
    """Opens a run folder, on a disk or in a bucket.

    Raises:
      UserError: if the folder is not a run, or the run trained an autoencoder.
    """
    run = Run(path)
    if not isinstance(run.experiment, Experiment):
        raise UserError(
            f"{run.source} trained an autoencoder, whose metrics are in its summary.json: use it in an experiment by "
            f"--autoencoder.MODALITY convolutional={run.source}"
        )
    return run
