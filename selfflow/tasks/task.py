"""Base class of the training tasks of `selfflow train`."""

from abc import ABC, abstractmethod
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selfflow.config.setup import Setup
from selfflow.input.batches import BatchSource
from selfflow.input.media_batches import MediaBatchSource
from selfflow.run.init_state import initial_state
from selfflow.storage.paths import url_of_copy
from selfflow.training.distributed import check_agreed, run_on_all
from selfflow.training.sharding import local_rows, shard_batch
from selfflow.training.state import State
from selfflow.training.step import key_of


class TrainingTask(ABC):
    """Base class of tasks for the training loop, see `training.task.Task`.

    Args:
      setup: setup of the experiment.
      source: source of the batches.
      mesh: devices of the run.
      folder: the run folder.
      data_hash: hash of all training data.
      datasets: provenance of each data set, as JSON data.
      autoencoders: weights file of each modality's autoencoder, which is copied to the run folder.

    Raises:
      UserError: if processes read different data, or a component has no record.
    """

    def __init__(
        self,
        setup: Setup,
        source: BatchSource | MediaBatchSource,
        mesh: Mesh,
        folder: Path,
        data_hash: str,
        datasets: dict[str, Any],
        autoencoders: dict[str, Path],
    ):
        self.setup, self.source, self.mesh, self.folder = setup, source, mesh, folder
        self.data_hash, self.datasets, self.autoencoders = data_hash, datasets, autoencoders
        check_agreed(data_hash, "the data that they read")
        rows = partial(local_rows, mesh)
        # The plan reads the data, so that errors in the data appear before the run folder is written.
        self._plan = run_on_all(lambda: source.batches(0, setup.experiment.steps, rows))
        run_on_all(self._plan.check_shared_memory)
        # The key is an argument of the compiled step, so that runs with other seeds use the same compilation cache.
        self.key = key_of(setup.experiment.seed.noise)
        self.replicated = NamedSharding(mesh, PartitionSpec())
        shardings = setup.shardings(mesh), self.replicated
        self._step = jax.jit(setup.step(), donate_argnums=0, out_shardings=shardings)

    def init(self) -> State:
        """Returns the state at step 0, fresh or from the weights of another run."""
        return initial_state(self.setup, self.mesh)

    def start_message(self, state: State) -> str:
        """Returns the console message at the start of training: model size, steps and data."""
        count = sum(x.size for x in jax.tree.leaves(state.params["model"]))
        start = f", from step {int(state.step)}" if int(state.step) else ""
        where = url_of_copy(self.folder) or self.folder
        return f"{where}: {count / 1e6:.1f} M parameters, {self.setup.experiment.steps} steps{start}"

    def batches(self, start: int) -> Generator[tuple[Any, dict[str, Any]]]:
        experiment = self.setup.experiment
        stream = iter(self.source.batches(start, experiment.steps, partial(local_rows, self.mesh)))
        try:
            for batch, facts in stream:
                size = experiment.mixture[facts["component"]].batch_size
                yield shard_batch(batch, self.mesh, size), facts
        finally:
            stream.close()  # ends the reader processes

    def ids(self, step: int) -> list[str]:
        return self._plan.ids(step)

    def step(self, state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        return self._step(state, batch, self.key)

    @abstractmethod
    def diagnose(self, state: State) -> dict[str, jax.Array]: ...

    def summarise(self, metrics: dict[str, Any]) -> dict[str, float]:
        return {name: float(value) for name, value in metrics.items() if value.ndim == 0}

    @abstractmethod
    def evaluate(self, state: State) -> dict[str, float]: ...

    @abstractmethod
    def final_evaluation(self, state: State) -> dict[str, Any]:
        """Evaluates the last state, writes samples, prints the summary and returns it as JSON data.

        Args:
          state: state on one device, without optimizer state.
        """
