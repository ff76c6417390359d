"""What an autoencoder brings to `selfflow train`."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selfflow.autoencoders.config import AUTOENCODER_FILE, Autoencoder
from selfflow.autoencoders.convolutional import pad_causal
from selfflow.autoencoders.convolutional_autoencoder import ConvolutionalAutoencoder
from selfflow.autoencoders.convolutional_file import read_config, write
from selfflow.autoencoders.latent_statistics import difference
from selfflow.autoencoders.linear import LinearAutoencoder, MdctPCA, PatchPCA
from selfflow.autoencoders.load import load_autoencoder
from selfflow.autoencoders.pca_init import init_from_pca
from selfflow.autoencoders.quality import reconstruction_metrics
from selfflow.config.autoencoder_experiment import AutoencoderExperiment
from selfflow.data.built import build
from selfflow.input.media_batches import MediaBatchSource
from selfflow.latents.ids import read_ids
from selfflow.latents.store import INDEX_FOLDER
from selfflow.media import images_only, medium_of, to_unit_range
from selfflow.progress import Progress
from selfflow.sampling.media_files import write_sheet
from selfflow.serialization import digest
from selfflow.storage.paths import url_of_copy
from selfflow.tasks.task import Task, scalar_metrics
from selfflow.training.distributed import broadcast, primary_first
from selfflow.training.sharding import pad_batch, shard_batch
from selfflow.training.state import State, flat_by_name
from selfflow.training.step import key_of

# Samples of each component by which layers are initialised, latents normalised and the linear autoencoder fitted.
_FITTED_ON = 512
_TOGETHER = 32
_SHOWN = 4


def autoencoder_task(experiment: AutoencoderExperiment, data_dir: Path) -> Task:
    """Builds the data sets that are not there yet.

    Raises:
      UserError: for what a user can correct in data or experiment.
    """
    used = sorted({component.data for component in experiment.mixture.values()})
    built = primary_first(lambda: {name: build(experiment.data[name], data_dir) for name in used})
    excluded = frozenset(read_ids(experiment.exclude) if experiment.exclude else ())
    feed = MediaBatchSource(
        built,
        experiment.mixture,
        experiment.cuts(),
        experiment.curriculum,
        excluded,
        experiment.seed.data,
        experiment.loader,
        data_dir / INDEX_FOLDER,
    )
    records = {name: [b.name, b.fingerprint, b.settings.decoding_options(), b.deleted] for name, b in built.items()}
    datasets = {
        name: {
            "dataset": b.name,
            "licence": experiment.data[name].licence,
            "fingerprint": b.fingerprint,
            "autoencoders": {},
        }
        for name, b in built.items()
    }
    return Task(
        feed,
        digest(records),
        datasets,
        {},
        None,
        lambda mesh, placed: _functions(experiment, feed, mesh, placed),
        partial(_say, experiment),
        lambda workdir, state: _prove(experiment, workdir, feed, state),
        partial(_begin, experiment, feed),
    )


def _begin(experiment: AutoencoderExperiment, feed: MediaBatchSource, state: State) -> State:
    """A fresh state whose network begins as a linear autoencoder, fitted to training media."""
    key = jax.random.wrap_key_data(key_of(experiment.seed.init))
    fresh = jax.jit(experiment.network.init)(key)
    with Progress("fit the layers", 1, unit="fit") as shown:
        sets = [media for _, media in feed.held_out((), _FITTED_ON).values()]
        # What process 0 found: the last bits may differ between machines, and copies of one array must not.
        made = broadcast(jax.device_get(init_from_pca(experiment.network, fresh, sets, experiment.seed.init)))
        shown.advance()
    put = lambda old, new: jax.device_put(new, old.sharding)
    return state._replace(
        params=jax.tree.map(put, state.params, {"model": made}), frozen=jax.tree.map(put, state.frozen, {"ema": made})
    )


def _say(experiment: AutoencoderExperiment, workdir: Path, start: int, state: State) -> None:
    count, network = sum(x.size for x in jax.tree.leaves(state.params)), experiment.network
    print(
        f"{url_of_copy(workdir) or workdir}: {count / 1e6:.1f} M parameters, {experiment.steps} steps"
        + (f", from step {start}" if start else "")
    )
    names = ("frames", "rows", "columns") if network.is_visual else ("samples",)
    cell = " x ".join(f"{size} {name if size > 1 else name[:-1]}" for size, name in zip(network.downsampling, names))
    first = ", and the first frame alone" if network.causal_padding else ""
    print(f"  a latent position of {network.channels} channels stands for {cell}{first}")


def _functions(experiment: AutoencoderExperiment, feed: MediaBatchSource, mesh: Mesh, placed: State) -> dict[str, Any]:
    network, key = experiment.network, key_of(experiment.seed.noise)
    everywhere = NamedSharding(mesh, PartitionSpec())
    looked_at = {}
    for name, (_, media) in feed.held_out(("validation",), _TOGETHER).items():
        batch = pad_batch({"media": media, "weight": np.ones(len(media), np.float32)}, mesh)
        looked_at[name] = shard_batch(batch, mesh)

    @partial(jax.jit, out_shardings=everywhere)
    def look_at(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        x = to_unit_range(batch["media"])
        mean, log_variance, _ = network.encode(params, pad_causal(x, network.causal_padding))
        made = network.decode(params, mean)[0][:, network.causal_padding :]
        weight = batch["weight"] / batch["weight"].sum()
        error = jnp.sum(weight * jnp.mean(jnp.square(made - x).reshape(len(x), -1), axis=1))
        deviation = mean.reshape(-1, mean.shape[-1]).std(axis=0)
        return {
            "error_db": 10 * jnp.log10(error),
            "latent_std/least": deviation.min(),
            "latent_std/most": deviation.max(),
            "posterior_std": jnp.exp(0.5 * log_variance).mean(),
        }

    def look(state: State) -> dict[str, jax.Array]:
        return {
            f"{what}/{name}": value
            for name, batch in looked_at.items()
            for what, value in look_at(state.frozen["ema"], batch).items()
        }

    step = jax.jit(experiment.step(), donate_argnums=0, out_shardings=(placed, everywhere))
    return {"step": lambda state, batch: step(state, batch, key), "diagnose": look, "summarise": scalar_metrics}


def _prove(experiment: AutoencoderExperiment, workdir: Path, feed: MediaBatchSource, state: State) -> dict[str, Any]:
    """Writes the autoencoder of the EMA, normalised, and shows beside a linear one what it makes of held-out media."""
    network = experiment.network
    params = jax.device_get(state.frozen["ema"])
    fitting = feed.held_out((), _FITTED_ON)
    with Progress("normalise latents", len(fitting), unit="component") as shown:
        moments = np.zeros((2, network.channels))
        encode = jax.jit(lambda x: network.encode(params, pad_causal(to_unit_range(x), network.causal_padding))[0])
        for _, media in fitting.values():  # all components count alike, however many positions they have
            parts = [np.asarray(encode(part), np.float64).reshape(-1, network.channels) for part in _parts(media)]
            positions = sum(map(len, parts))
            moments += np.sum([[z.sum(0), np.square(z).sum(0)] for z in parts], axis=0) / positions / len(fitting)
            shown.advance()
    path, deviation = workdir / AUTOENCODER_FILE, np.sqrt(np.maximum(moments[1] - moments[0] ** 2, 0))
    deviation = np.where(deviation > 1e-6, deviation, 1)
    write(path, network, int(experiment.rate), flat_by_name(params), moments[0], deviation)
    folder = workdir / "samples" / f"step_{int(state.step)}"
    folder.mkdir(parents=True, exist_ok=True)
    rows, files = {}, [str(path)]
    held_out = feed.held_out(("test", "validation"), experiment.held_out)
    with Progress("reconstruct", len(held_out), unit="component") as shown:
        for name, (split, media) in held_out.items():
            (modality,) = experiment.mixture[name].modalities
            own = medium_of(modality).from_sequence(media)
            trained = _loaded(path, modality)
            linear = _linear(network, medium_of(modality).from_sequence(fitting[name][1]), modality)
            row: dict[str, Any] = {"split": split, "samples": len(own), "numbers": int(trained.encode(own[:1]).size)}
            made = _decoded(trained, own)
            row["convolutional"] = reconstruction_metrics(modality, own, made, experiment.rate)
            if linear is not None:
                row["linear"] = reconstruction_metrics(modality, own, _decoded(linear, own), experiment.rate)
                row["linear_numbers"] = int(linear.encode(own[:1]).size)
            rows[name] = row
            files.append(str(folder / f"{name}.png"))
            few = own[: 16 if images_only([modality]) else _SHOWN]
            shown_parts = {"original": few, "decoded": made[: len(few)], "lost": difference(few, made[: len(few)])}
            sheet = {group: {modality: x} for group, x in shown_parts.items()}
            title = f"{name}: {split} split, through {row['numbers']} numbers each"
            write_sheet(Path(files[-1]), sheet, int(experiment.rate), title)
            shown.advance()
    summary = {"steps": int(state.step), "reconstruction": rows, "autoencoder": str(path), "files": files}
    _print(summary, workdir)
    return summary


def _loaded(path: Path, modality: str) -> ConvolutionalAutoencoder:
    return load_autoencoder(read_config(path, modality), path)


def _linear(network: Any, media: np.ndarray, modality: str) -> LinearAutoencoder | None:
    """The linear autoencoder of a latent that is as large, or a little larger; None where there is no such."""
    medium = medium_of(modality)
    if not medium.is_visual:
        hop = network.downsampling[0]
        if hop % 2 or network.channels > hop:
            return None
        return LinearAutoencoder.fit(MdctPCA(temporal_stride=hop, channels=network.channels), _parts(media))
    stride, frames = network.downsampling[1], media.shape[1] if medium.has_time else 1
    numbers = network.channels * ((frames + network.causal_padding) // network.downsampling[0])
    if -(-numbers // frames) > 3 * stride**2:
        return None  # as large as the pictures themselves
    return LinearAutoencoder.fit(PatchPCA(patch=stride, channels=-(-numbers // frames)), _parts(media))


def _parts(media: np.ndarray) -> list[np.ndarray]:
    return [media[i : i + _TOGETHER] for i in range(0, len(media), _TOGETHER)]


def _decoded(autoencoder: Autoencoder, media: np.ndarray) -> np.ndarray:
    return np.concatenate([autoencoder.decode(autoencoder.encode(part)) for part in _parts(media)])


def _print(summary: dict[str, Any], workdir: Path) -> None:
    print(f"\n{workdir}: {summary['steps']} steps done\n")
    print("Reconstruction, beside PCA of a latent at least as large")
    print(f"  {'component':<12} {'split':<11} {'measure':<18} {'convolutional':>14} {'linear':>10} {'difference':>11}")
    for name, row in summary["reconstruction"].items():
        for measure, value in row["convolutional"].items():
            linear = row.get("linear", {}).get(measure)
            beside = f"{linear:>10.2f} {value - linear:>+11.2f}" if linear is not None else f"{'-':>10} {'-':>11}"
            print(f"  {name:<12} {row['split']:<11} {measure:<18} {value:>14.2f} {beside}")
        if row["split"] == "train":
            print(f"    note: {name} has no split test or validation; this is media that it was trained on")
        more = f", the linear one {row['linear_numbers']}" if "linear" in row else ""
        print(f"    of {row['samples']} samples, each through {row['numbers']} numbers{more}")
    where = lambda file: url_of_copy(Path(file)) or file
    print(f"\nThe autoencoder is {where(summary['autoencoder'])}; an experiment takes it by")
    print("  --autoencoder.MODALITY convolutional=" + summary["autoencoder"])
    for file in summary["files"][1:]:
        print(f"  {where(file)}")
