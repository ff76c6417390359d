"""A run: the folder that an experiment leaves behind, and what can be asked of it."""

import json
from collections.abc import Callable
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
    from selfflow.data.built import BuiltDataset
    from selfflow.input.batches import BatchSource
    from selfflow.input.reader import Reader
    from selfflow.run.data import Clips
    from selfflow.run.sampler import Samples


class Run:
    """An existing run folder.

    Attributes:
      path: the folder; of a run in a bucket a copy, which lacks the checkpoints.
      source: the path or URL that it was opened by.
      setup: of the experiment that made it.
      experiment, objective: of the setup.

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
        self._feeds: dict[str, tuple["BatchSource", dict[str, "BuiltDataset"]]] = {}

    @property
    def name(self) -> str:
        """Name of the folder."""
        return str(self.source).rstrip("/").rsplit("/", 1)[-1]

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
        provenance = self._json("provenance.json")
        datasets = provenance.get("datasets", {})
        if not isinstance(datasets, dict) or not all(isinstance(one, dict) for one in datasets.values()):
            raise UserError(f"{self.path}/provenance.json is damaged: datasets holds no tables: restore it from a copy")
        return provenance

    def summary(self) -> dict[str, Any] | None:
        """What the run measured of itself at its end; None where it has not ended.

        Raises:
          UserError: if `summary.json` is damaged.
        """
        return self._json("summary.json") if (self.path / "summary.json").exists() else None

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} is missing or damaged ({error}): restore it from a copy of the run") from error
        if not isinstance(content, dict):
            raise UserError(f"{path} holds no JSON object: restore it from a copy of the run")
        return content

    def autoencoder(self, modality: str) -> Autoencoder:
        """What decodes the latents of a modality: the run's copy of the autoencoder that made them.

        Raises:
          UserError: if the run has none, or it is damaged.
        """
        path = self.path / AUTOENCODERS / f"{modality}.safetensors"
        if not can_decode(self.experiment.autoencoders.get(modality)):
            load_autoencoder(self.experiment.autoencoders[modality], path)  # says why not
        if modality not in self.experiment.autoencoders or not path.is_file():
            raise UserError(
                f"{self.source} has no autoencoder for {modality} ({path}): its weights were imported, or another "
                "version made it; take the run up with `selfflow train` once, which copies it"
            )
        try:
            found = load_autoencoder(self.experiment.autoencoders[modality], path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is damaged ({error}): restore it from a copy of the run") from error
        known = {dataset["autoencoders"].get(modality) for dataset in self.provenance()["datasets"].values()} - {None}
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

    def model(
        self,
        weights: Literal["ema", "student", "untrained"] = "ema",
        step: int | None = None,
        mesh: Mesh | None = None,
    ) -> Model:
        """The network of the run; the one that was asked for last is kept.

        Args:
          weights: the EMA, the student, or fresh ones from `seed.init` with the gates of all blocks open, which is what
            trained features are compared with.
          step: a step that was saved; by default the newest.
          mesh: where to; by default the first device.

        Raises:
          UserError: as `restore`, or if there are no such weights.
        """
        if weights not in ("ema", "student", "untrained"):
            raise UserError(f"weights {weights!r}: there are ema, student and untrained")
        if weights == "untrained" and step is not None:
            raise UserError(f"weights untrained, step {step}: untrained weights have no step; leave it out")
        newest = self.last_step() if step is None and weights != "untrained" else step
        asked = (weights, newest, mesh)
        if asked not in self._models:
            self._models.clear()  # whose memory may be needed
            state = None if weights == "untrained" else self.weights(step, mesh)
            self._models[asked] = model_of(self.setup, state, weights, mesh)
        return self._models[asked]

    def feed(self, data_dir: str | Path | None = None) -> tuple["BatchSource", dict[str, "BuiltDataset"]]:
        """What the run was trained on: its latents, and the data sets whose raw data is there; opened once.

        Args:
          data_dir: where the data is; by default where it was when the run was trained, else as for every command.

        Raises:
          UserError: if the run has no data, or the data is another now.
        """
        from selfflow.run.data import batch_source_of  # TFDS and more, which many a command does without

        if str(data_dir) not in self._feeds:
            self._feeds[str(data_dir)] = batch_source_of(
                self.setup, self.provenance, self.source, self.path / AUTOENCODERS, data_dir
            )
        return self._feeds[str(data_dir)]

    def data(self, split: str = "test", component: str | None = None, data_dir: str | Path | None = None) -> "Clips":
        """The clips of a component of the mixture, by default its first, in a split of its data.

        Args:
          split: of the data.
          component: its name in the mixture.
          data_dir: as for `feed`.

        Raises:
          UserError: as `feed`; if there is no such component or split.
        """
        from selfflow.run.data import Clips

        return Clips(*self.feed(data_dir), split, component)

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
        """What `selfflow sample` draws, in memory; the arguments are its flags.

        Args:
          count: number of samples; sample i depends on the seed and i alone.
          modalities: what to generate; by default the first component of the mixture.
          context: what samples are conditioned on, as `--context` takes it, such as ("video=clip.mp4",).
          sampler: how; by default as the run says.
          label, caption: what samples are to be, where the run has such.
          mesh: devices to spread samples over; by default the first alone.
          data_dir: as for `feed`, if something of the run's data is given.

        Raises:
          UserError: as `RunSampler`.
        """
        from selfflow.run.sampler import RunSampler, SampleRequest, Samples

        for name, value in (("count", count), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"{name} is {value}: it must be at least 1")
        if weights == "untrained":
            raise UserError("weights untrained: samples are drawn from ema or student")
        wanted = SampleRequest(tuple(modalities), tuple(context), sampler, label, caption)
        model = self.model(weights, step, mesh)
        draw = RunSampler(self, wanted, model.params, lambda name: self.held_out(name, data_dir=data_dir), mesh)
        parts = list(draw.batches(np.arange(count), seed, batch_size))
        return Samples(*(jax.tree.map(lambda *x: np.concatenate(x), *field) for field in zip(*parts)))

    def held_out(
        self,
        component: str,
        splits: tuple[str, ...] = ("test", "validation", "train"),
        data_dir: str | Path | None = None,
    ) -> "Reader":
        """Reads whole clips of a component, of the first split that has any: what samples are given.

        Raises:
          UserError: as `feed`, or if no split has one.
        """
        from selfflow.run.data import held_out

        return held_out(self.feed(data_dir)[0], component, splits)

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
            return restore(checkpoints, self.setup.abstract_state(mesh), step)
        finally:
            checkpoints.close()


def open_run(path: str | Path) -> Run:
    """Opens a run folder, on a disk or in a bucket.

    Raises:
      UserError: if it is none, or one that trained an autoencoder.
    """
    run = Run(path)
    if not isinstance(run.experiment, Experiment):
        raise UserError(
            f"{run.source} trained an autoencoder, whose numbers are in its summary.json: give it to an experiment, as "
            f"--autoencoder.MODALITY convolutional={run.source}"
        )
    return run
