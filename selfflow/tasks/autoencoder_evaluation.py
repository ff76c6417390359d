"""Final evaluation of an autoencoder: writes its weights and compares its reconstruction error with that of PCA."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from selfflow.autoencoders.config import AUTOENCODER_FILE, Autoencoder
from selfflow.autoencoders.convolutional import Network, pad_causal
from selfflow.autoencoders.convolutional_file import read_config, write
from selfflow.autoencoders.latent_statistics import difference
from selfflow.autoencoders.linear import LinearAutoencoder, MdctPCA, PatchPCA
from selfflow.autoencoders.load import load_autoencoder
from selfflow.autoencoders.quality import reconstruction_metrics
from selfflow.config.setup import AutoencoderSetup
from selfflow.input.media_batches import MediaBatchSource
from selfflow.media import images_only, medium_of, to_unit_range
from selfflow.progress import Progress
from selfflow.sampling.media_files import write_sheet
from selfflow.storage.paths import url_of_copy
from selfflow.training.state import State, flat_by_name

FITTING_SAMPLES = 512
"""Number of samples of each component for initialisation, normalisation of latents and the linear autoencoder."""
_BATCH_SIZE = 32
_IMAGES_SHOWN, _CLIPS_SHOWN = 16, 4


def evaluate_autoencoder(
    setup: AutoencoderSetup, folder: Path, source: MediaBatchSource, state: State
) -> dict[str, Any]:
    """Writes the EMA as an autoencoder file, and compares its reconstruction of held-out media with that of PCA.

    Args:
      setup: setup of the experiment.
      folder: the run folder, for the weights and a sheet of each component.
      source: source of media.
      state: the last state.

    Returns:
      The printed summary as JSON data.
    """
    experiment, rate = setup.experiment, setup.objective.rate
    fitting = {name: media for name, (_, media) in source.held_out((), FITTING_SAMPLES).items()}
    path = folder / AUTOENCODER_FILE
    _write_normalised(path, setup, fitting, jax.device_get(state.frozen["ema"]))

    sheets = folder / "samples" / f"step_{int(state.step)}"
    sheets.mkdir(parents=True, exist_ok=True)
    rows, files = {}, [str(path)]
    held_out = source.held_out(("test", "validation"), experiment.held_out)
    with Progress("reconstruct", len(held_out), unit="component") as progress:
        for name, (split, media) in held_out.items():
            (modality,) = experiment.mixture[name].modalities
            medium = medium_of(modality)
            original = medium.from_sequence(media)
            # Loaded from its file, to evaluate the autoencoder exactly as experiments will use it.
            trained = load_autoencoder(read_config(path, modality), path)
            decoded = _reconstruct(trained, original)
            row: dict[str, Any] = {"split": split, "samples": len(original)}
            row["numbers"] = int(trained.encode(original[:1]).size)
            row["convolutional"] = reconstruction_metrics(modality, original, decoded, rate)
            linear = _linear_autoencoder(experiment.network, medium.from_sequence(fitting[name]), modality)
            if linear is not None:
                row["linear"] = reconstruction_metrics(modality, original, _reconstruct(linear, original), rate)
                row["linear_numbers"] = int(linear.encode(original[:1]).size)
            rows[name] = row
            files.append(str(sheets / f"{name}.png"))
            title = f"{name}: {split} split, through {row['numbers']} numbers each"
            _write_sheet(Path(files[-1]), modality, original, decoded, rate, title)
            progress.advance()
    summary = {"steps": int(state.step), "reconstruction": rows, "autoencoder": str(path), "files": files}
    _print(summary, folder)
    return summary


def _write_normalised(path: Path, setup: AutoencoderSetup, fitting: dict[str, np.ndarray], params: Any) -> None:
    """Writes the weights with the mean and the standard deviation of each latent channel."""
    network = setup.experiment.network

    @jax.jit
    def encode(media: jax.Array) -> jax.Array:
        return network.encode(params, pad_causal(to_unit_range(media), network.causal_padding))[0]

    moments = np.zeros((2, network.channels))  # means of z and z^2 for each channel
    with Progress("normalise latents", len(fitting), unit="component") as progress:
        for media in fitting.values():
            sums, positions = [], 0
            for part in _parts(media):
                z_NC = np.asarray(encode(part), np.float64).reshape(-1, network.channels)
                sums.append([z_NC.sum(0), np.square(z_NC).sum(0)])
                positions += len(z_NC)
            # Components have equal weights, independent of their number of latent positions.
            moments += np.sum(sums, axis=0) / positions / len(fitting)
            progress.advance()
    std_C = np.sqrt(np.maximum(moments[1] - moments[0] ** 2, 0))
    std_C = np.where(std_C > 1e-6, std_C, 1)  # avoids division by 0 for constant channels
    write(path, network, int(setup.objective.rate), flat_by_name(params), moments[0], std_C)


def _linear_autoencoder(network: Network, media: np.ndarray, modality: str) -> LinearAutoencoder | None:
    """Fits PCA with latents of at least the network's size; returns None if no such PCA exists."""
    medium = medium_of(modality)
    if not medium.is_visual:
        stride = network.downsampling[0]
        if stride % 2 or network.channels > stride:
            return None
        return LinearAutoencoder.fit(MdctPCA(temporal_stride=stride, channels=network.channels), _parts(media))
    stride, frames = network.downsampling[1], media.shape[1] if medium.has_time else 1
    numbers = network.channels * ((frames + network.causal_padding) // network.downsampling[0])
    channels = -(-numbers // frames)
    if channels > 3 * stride**2:
        return None  # more channels than values in a patch
    return LinearAutoencoder.fit(PatchPCA(patch=stride, channels=channels), _parts(media))


def _parts(media: np.ndarray) -> list[np.ndarray]:
    """Splits media [B, ...] into batches."""
    return [media[i : i + _BATCH_SIZE] for i in range(0, len(media), _BATCH_SIZE)]


def _reconstruct(autoencoder: Autoencoder, media: np.ndarray) -> np.ndarray:
    return np.concatenate([autoencoder.decode(autoencoder.encode(part)) for part in _parts(media)])


def _write_sheet(path: Path, modality: str, original: np.ndarray, decoded: np.ndarray, rate: float, title: str) -> None:
    """Writes a sheet of originals, reconstructions and their differences."""
    count = _IMAGES_SHOWN if images_only([modality]) else _CLIPS_SHOWN
    original, decoded = original[:count], decoded[:count]
    groups = {"original": original, "decoded": decoded, "lost": difference(original, decoded)}
    write_sheet(path, {group: {modality: x} for group, x in groups.items()}, {modality: rate}, title)


def _print(summary: dict[str, Any], folder: Path) -> None:
    print(f"\n{folder}: {summary['steps']} steps done\n")
    print("Reconstruction, beside PCA of a latent at least as large")
    print(f"  {'component':<12} {'split':<11} {'measure':<18} {'convolutional':>14} {'linear':>10} {'difference':>11}")
    for name, row in summary["reconstruction"].items():
        for measure, value in row["convolutional"].items():
            linear = row.get("linear", {}).get(measure)
            comparison = f"{'-':>10} {'-':>11}" if linear is None else f"{linear:>10.2f} {value - linear:>+11.2f}"
            print(f"  {name:<12} {row['split']:<11} {measure:<18} {value:>14.2f} {comparison}")
        if row["split"] == "train":
            print(f"    note: {name} has no split test or validation; this is media that it was trained on")
        more = f", the linear one {row['linear_numbers']}" if "linear" in row else ""
        print(f"    of {row['samples']} samples, each through {row['numbers']} numbers{more}")
    autoencoder, *sheets = summary["files"]
    print(f"\nThe autoencoder is {url_of_copy(Path(autoencoder)) or autoencoder}; an experiment takes it by")
    print(f"  --autoencoder.MODALITY convolutional={autoencoder}")
    for file in sheets:
        print(f"  {url_of_copy(Path(file)) or file}")
