"""Checks, before the first step, of the requirements of the final evaluation: decoders, media files, probes and disk
space."""

import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np

from selfflow.autoencoders.config import can_decode
from selfflow.config.setup import AutoencoderSetup, FlowSetup, Setup
from selfflow.config.shapes import MediaSpec
from selfflow.data.built import BuiltDataset
from selfflow.errors import UserError, system_error_message
from selfflow.input.batches import BatchSource
from selfflow.media import images_only, medium_of
from selfflow.sampling.media_files import write_media, write_sheet
from selfflow.storage.paths import bucket_url, url_of_copy
from selfflow.training.loop import Cadence
from selfflow.training.state import State

_SHOWN_FRAMES = 2  # video encoders that cannot write a file fail at its first frames


def check_latents(source: BatchSource) -> None:
    """Raises `UserError` if the latents of a component are constant: nothing can be learned or evaluated."""
    for name, component in source.mixture.items():
        statistics = source.latents[component.data].manifest["statistics"]
        for m in component.modalities:
            if not any(statistics[m]["std"]):
                raise UserError(
                    f"mixture.{name}: the {m} latents of data.{component.data} never vary (all of its training records "
                    "are alike): remove the component, or give data that varies"
                )


def check_decoders(setup: FlowSetup, source: BatchSource) -> None:
    """Loads the autoencoders that decode samples, to check that they are available.

    Raises:
      UserError: if a package or weights are missing.
    """
    for component in setup.experiment.mixture.values():
        for m in component.modalities:
            config = setup.experiment.autoencoders[m]
            if can_decode(config):
                source.latents[component.data].autoencoder(m, config)


def check_sample_files(setup: Setup) -> None:
    """Checks that samples of each component can be written, with blank samples in a temporary folder.

    Raises:
      UserError: as `check_files`.
    """
    if isinstance(setup, FlowSetup):
        for name, media in setup.media.items():
            decodable = {m: spec for m, spec in media.items() if can_decode(setup.experiment.autoencoders[m])}
            if decodable:
                check_files(name, decodable)
    elif isinstance(setup, AutoencoderSetup):
        for name, cut in setup.cuts.items():
            (m,) = setup.experiment.mixture[name].modalities
            shape = medium_of(m).from_sequence(np.zeros(cut.shape, np.uint8)).shape
            check_files(name, {m: MediaSpec(shape, setup.objective.rate)}, clips=False)


def check_files(component: str, media: Mapping[str, MediaSpec], clips: bool = True) -> None:
    """Checks that samples can be written, with a sheet and files of one blank clip in a temporary folder.

    Args:
      component: name of the component, for the error.
      media: shape and rate of the clip's media, by modality.
      clips: whether clips are also written as separate files.

    Raises:
      UserError: naming component, size and rate, if writing fails, such as for a missing codec, font or cache folder.
    """
    clip, rates = {}, {}
    for m, spec in media.items():
        medium = medium_of(m)
        shape = spec.shape
        if medium.is_visual and medium.has_time:
            shape = (min(_SHOWN_FRAMES, shape[0]), *shape[1:])
        clip[m], rates[m] = np.zeros(shape, medium.dtype), spec.rate
    try:
        with tempfile.TemporaryDirectory(prefix="selfflow-") as folder:
            write_sheet(Path(folder) / "sheet.png", {"sample": {m: x[None] for m, x in clip.items()}}, rates, component)
            if clips and not images_only(media):
                write_media(Path(folder) / "clip", clip, rates)
    except Exception as error:  # libraries of codecs, fonts and compiled functions raise errors of many kinds
        sizes = ", ".join(f"{m} of {' x '.join(map(str, spec.shape))} at {spec.rate:g} Hz" for m, spec in media.items())
        reason = system_error_message(error) or f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"mixture.{component}: samples cannot be written at the end of the run ({sizes}): {reason}. Install av, "
            "soundfile and matplotlib from PyPI, or make the media smaller"
        ) from error


def check_probes(setup: FlowSetup, source: BatchSource, built: Mapping[str, BuiltDataset]) -> None:
    """Raises `UserError` if a split that the probes of the final evaluation read has no video with audio."""
    probed = probed_dataset(setup, built)
    if not probed:
        return
    latents = source.latents[probed]
    for split in ("train", "validation", "test"):
        if split not in latents.records or not len(latents.open_split(split).indices_with(("video", "audio"))):
            raise UserError(
                f"final_evaluation.probe_clips is {setup.experiment.final_evaluation.probe_clips}, but the split "
                f"{split} of data.{probed} has no video with audio: set it to 0, or give the data set that split"
            )


def probed_dataset(setup: FlowSetup, built: Mapping[str, BuiltDataset]) -> str:
    """Returns the name of the data set for the probes of the final evaluation; empty without probes."""
    # Probes predict the ground truth of a data set from video and audio.
    if not setup.experiment.final_evaluation.probe_clips or not {"video", "audio"} <= set(setup.objective.modalities):
        return ""
    for name, dataset in built.items():
        truth = dataset.settings.ground_truth
        if truth is not None and truth.columns and {"video", "audio"} <= set(dataset.settings.media_shapes()):
            return name
    return ""


def warn_of_space(folder: Path, state: State, cadence: Cadence, steps: int, saved: Iterable[int]) -> None:
    """Prints a warning if the disk has no room for the checkpoints that a run keeps.

    Args:
      folder: the run folder.
      state: state of the run, or its shapes.
      cadence: cadence of the run.
      steps: length of the run.
      saved: steps that already have a checkpoint.
    """
    if url_of_copy(folder) or bucket_url(folder):
        return
    size = sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(state))
    missing = kept_checkpoints(cadence, steps) - len(list(saved))
    needed, free = max(missing, 0) * size, shutil.disk_usage(folder).free
    if free < needed:
        print(
            f"warning: {folder} has {free / 1e9:.3g} GB free, and the {missing} checkpoints that the run keeps need "
            f"{needed / 1e9:.3g} GB: free some space, or change cadence.keep_last or cadence.keep_every",
            file=sys.stderr,
        )


def kept_checkpoints(cadence: Cadence, steps: int) -> int:
    """Returns the peak number of checkpoints on disk: the kept ones, and one that is removed after the last save."""
    saved = -(-steps // cadence.checkpoint_every)
    kept_for_good = steps // cadence.keep_every if cadence.keep_every else 0
    return min(saved, cadence.keep_last + 1 + kept_for_good)
