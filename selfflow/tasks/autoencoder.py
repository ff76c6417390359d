"""Training task of an autoencoder."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selfflow.autoencoders.convolutional import Network, pad_causal
from selfflow.autoencoders.pca_init import init_from_pca
from selfflow.config.autoencoder_experiment import AutoencoderExperiment
from selfflow.config.setup import AutoencoderSetup
from selfflow.data.built import BuiltDataset, build
from selfflow.input.media_batches import MediaBatchSource
from selfflow.input.media_index import media_index
from selfflow.latents.ids import check_excluded, read_ids
from selfflow.latents.store import INDEX_FOLDER
from selfflow.media import to_unit_range
from selfflow.progress import Progress
from selfflow.run.folder import recorded_datasets
from selfflow.serialization import digest
from selfflow.tasks.autoencoder_evaluation import FITTING_SAMPLES, evaluate_autoencoder
from selfflow.tasks.task import TrainingTask
from selfflow.training.distributed import broadcast, primary_first
from selfflow.training.sharding import pad_batch, shard_batch
from selfflow.training.state import State
from selfflow.training.step import key_of

_DIAGNOSED = 32  # held-out samples of each component


class AutoencoderTask(TrainingTask):
    """Trains a convolutional autoencoder on media; first builds data sets that do not exist yet.

    Args:
      setup: setup of the experiment.
      data_dir: folder for data sets and indexes.
      mesh: devices of the run.
      folder: the run folder.

    Raises:
      UserError: if data is invalid or missing, or does not fit the experiment.
    """

    setup: AutoencoderSetup

    def __init__(self, setup: AutoencoderSetup, data_dir: Path, mesh: Mesh, folder: Path):
        experiment = setup.experiment
        names = sorted({component.data for component in experiment.mixture.values()})
        recorded = recorded_datasets(folder)
        built = primary_first(
            lambda: {name: build(experiment.data[name], data_dir, recorded.get(name, "")) for name in names}
        )
        excluded = frozenset(read_ids(experiment.exclude) if experiment.exclude else ())
        if excluded:
            present, deletions = set(), []
            for dataset in built.values():
                deletions += dataset.deleted
                for split in dataset.splits:
                    index = media_index(dataset, split, data_dir / INDEX_FOLDER)
                    present.update(id.decode() for id in index["id"])
            check_excluded(experiment.exclude, excluded, present, deletions)
        source = MediaBatchSource(
            built,
            experiment.mixture,
            setup.cuts,
            experiment.curriculum,
            excluded,
            experiment.seed.data,
            experiment.loader,
            data_dir / INDEX_FOLDER,
        )
        super().__init__(setup, source, mesh, folder, _data_hash(built), _provenance(experiment, built), {})

        self._held_out = {}
        for name, (_, media) in source.held_out(("validation",), _DIAGNOSED).items():
            batch = pad_batch({"media": media, "weight": np.ones(len(media), np.float32)}, mesh)
            self._held_out[name] = shard_batch(batch, mesh)
        self._diagnostics = jax.jit(partial(_diagnostics, experiment.network), out_shardings=self.replicated)

    def init(self) -> State:
        """Returns the state at step 0, from `init_from` or a linear autoencoder (PCA) fitted to training media."""
        state, experiment = super().init(), self.setup.experiment
        if experiment.init_from:
            return state
        fresh = jax.jit(experiment.network.init)(jax.random.wrap_key_data(key_of(experiment.seed.init)))
        # A randomly initialised network would need most of the training steps to reach the solution of PCA.
        with Progress("fit the layers", 1, unit="fit") as progress:
            media = [media for _, media in self.source.held_out((), FITTING_SAMPLES).values()]
            fitted = jax.device_get(init_from_pca(experiment.network, fresh, media, experiment.seed.init))
            # The result may differ between hosts by rounding, but all replicas of a parameter must be equal.
            fitted = broadcast(fitted)
            progress.advance()

        def place(old: jax.Array, new: np.ndarray) -> jax.Array:
            return jax.device_put(new, old.sharding)

        # The EMA is a copy of the parameters, because the step donates the memory of the parameters.
        params = jax.tree.map(place, state.params, {"model": fitted})
        return state._replace(params=params, frozen=jax.tree.map(place, state.frozen, {"ema": fitted}))

    def start_message(self, state: State) -> str:
        network = self.setup.experiment.network
        units = ("frames", "rows", "columns") if network.is_visual else ("samples",)
        sizes = [f"{size} {unit if size > 1 else unit[:-1]}" for size, unit in zip(network.downsampling, units)]
        first = ", and the first frame alone" if network.causal_padding else ""
        position = f"a latent position of {network.channels} channels stands for {' x '.join(sizes)}{first}"
        return f"{super().start_message(state)}\n  {position}"

    def diagnose(self, state: State) -> dict[str, jax.Array]:
        metrics = {}
        for component, batch in self._held_out.items():
            for name, value in self._diagnostics(state.frozen["ema"], batch).items():
                metrics[f"{name}/{component}"] = value
        return metrics

    def evaluate(self, state: State) -> dict[str, float]:
        """Returns no metrics: an autoencoder draws no samples, and `cadence.evaluate_every` is not allowed."""
        return {}

    def final_evaluation(self, state: State) -> dict[str, Any]:
        return evaluate_autoencoder(self.setup, self.folder, self.source, state)


def _diagnostics(network: Network, params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Computes the reconstruction error of a batch and standard deviations of its latents.

    Args:
      network: the autoencoder.
      params: parameters of the network.
      batch: `media` [B, T, ...] as stored, and `weight` [B], 0 for padding rows.
    """
    x = to_unit_range(batch["media"])
    mean, log_variance, _ = network.encode(params, pad_causal(x, network.causal_padding))
    decoded = network.decode(params, mean)[0][:, network.causal_padding :]
    weight_B = batch["weight"] / batch["weight"].sum()
    error_B = jnp.mean(jnp.square(decoded - x).reshape(len(x), -1), axis=1)
    std_C = mean.reshape(-1, mean.shape[-1]).std(axis=0)
    return {
        "error_db": 10 * jnp.log10(jnp.sum(weight_B * error_B)),
        "latent_std/least": std_C.min(),
        "latent_std/most": std_C.max(),
        "posterior_std": jnp.exp(0.5 * log_variance).mean(),
    }


def _data_hash(built: Mapping[str, BuiltDataset]) -> str:
    """Returns a hash of the media, which depends on records, decoding options and deletions."""
    records = {}
    for name, dataset in built.items():
        options = dataset.settings.decoding_options()
        records[name] = [dataset.name, dataset.fingerprint, options, dataset.deleted]
    return digest(records)


def _provenance(experiment: AutoencoderExperiment, built: Mapping[str, BuiltDataset]) -> dict[str, Any]:
    """Returns the data sets in the format of `provenance.json`; media have no autoencoders."""
    provenance = {}
    for name, dataset in built.items():
        provenance[name] = {
            "dataset": dataset.name,
            "licence": experiment.data[name].licence,
            "fingerprint": dataset.fingerprint,
            "autoencoders": {},
        }
    return provenance
