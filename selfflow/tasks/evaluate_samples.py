"""Evaluation of samples of a run in comparison with real clips and noise, for `selfflow evaluate`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from selfflow.errors import UserError
from selfflow.evaluation.accumulate import Accumulator, Statistics, load_reference
from selfflow.evaluation.adm import write_adm
from selfflow.evaluation.compare import SampleMetrics, sample_metrics
from selfflow.evaluation.physics.calibrate import Calibration, Transform, calibrate
from selfflow.evaluation.physics.verifier import fitted_clips, physics_verifier, readable_records
from selfflow.evaluation.real_clips import Batch, RealClips
from selfflow.evaluation.samples import MAX_CLIPS, SampleAccumulator, batch_size, space_name
from selfflow.progress import Progress
from selfflow.run.sampler import RunSampler
from selfflow.sampling.generate import sample_noise
from selfflow.tasks.sample_evaluator import SampleEvaluator

if TYPE_CHECKING:
    from selfflow.data.built import BuiltDataset
    from selfflow.run.run import Run

REAL, DECODED, SAMPLES, NOISE = "real clips", "real, decoded", "samples", "noise"
"""Rows of the result. The row NOISE is decoded Gaussian noise, the sampler's initial state."""


@dataclass(frozen=True)
class SampleReport:
    """Metrics of samples, real clips and noise.

    Attributes:
      rows: metrics by REAL, DECODED, SAMPLES and NOISE; rows of fewer than two clips are omitted.
      reference: description of the reference set of the distances: a file, or number and split of clips.
      real_clips: number and split of the clips of the rows REAL and DECODED, which are not in the reference.
      has_raw: whether real clips are raw media and not decoded latents.
      saved: name of the feature space and number of clips written to `save_reference`; None without it.
    """

    rows: dict[str, SampleMetrics]
    reference: str
    real_clips: tuple[int, str]
    has_raw: bool
    saved: tuple[str, int] | None


def evaluate_samples(
    evaluator: SampleEvaluator,
    sampler: RunSampler,
    *,
    seed: int,
    batch_rows: int,
    reference: Path | None = None,
    save_reference: Path | None = None,
    adm_npz: Path | None = None,
) -> SampleReport:
    """Draws `evaluator.samples` samples and computes metrics of samples, real clips and noise.

    Args:
      evaluator: evaluator of the sampler's component, with the weights of the model.
      sampler: sampler of the run.
      seed: seed of the samples.
      batch_rows: batch size.
      reference: file of real features that replaces the test split, see `load_reference`.
      save_reference: output file for the features of the real clips.
      adm_npz: output file for the samples in the format of ADM's evaluator.

    Raises:
      UserError: if flags contradict each other; raised before samples are drawn.
    """
    n = evaluator.samples
    evaluator.exclude(sampler.fully_conditioned)
    from_file = _load_reference(evaluator, reference, save_reference)
    real = _split_real_clips(evaluator)
    features: Mapping[str, Accumulator | Statistics] = from_file or evaluator.reference(
        real.reference, real.reference_indices, batch_rows
    )
    saved = None
    if save_reference:
        ((space, real_features),) = features.items()  # exactly one, as checked by `_load_reference`
        real_features.save(save_reference)
        saved = space, real_features.count

    # These are generators: the batches of a row are computed when the row is accumulated.
    batches = {
        REAL: real.others.batches(real.other_indices, batch_rows),
        DECODED: real.others.batches(real.other_indices, batch_rows, decoded=True),
        SAMPLES: _samples(sampler, n, seed, batch_rows),
        NOISE: _noise(sampler, n, batch_rows),
    }
    rows = {}
    for row, batches_of_row in batches.items():
        accumulated = evaluator.accumulator()
        _accumulate(batches_of_row, accumulated, row, n, adm_npz if row == SAMPLES else None)
        if accumulated.count > 1:
            rows[row] = sample_metrics(features, accumulated)
    clips = f"{len(real.reference_indices)} clips of the {real.reference.split} split"
    return SampleReport(
        rows=rows,
        reference=str(reference) if from_file else clips,
        real_clips=(len(real.other_indices), real.others.split),
        has_raw=real.reference.built is not None,
        saved=saved,
    )


class _RealSets(NamedTuple):
    """Two disjoint sets of real clips, none of which were used to fit the classifiers of the physics verifier.

    Attributes:
      reference: clips of the split of the reference.
      reference_indices: indices of the reference clips, [m].
      others: clips of the split of the rows REAL and DECODED.
      other_indices: indices of the clips of these rows, at most n.
    """

    reference: RealClips
    reference_indices: np.ndarray
    others: RealClips
    other_indices: np.ndarray


def _split_real_clips(evaluator: SampleEvaluator) -> _RealSets:
    """Returns a reference from the test split and other clips from train; without a test split both from train."""
    n = evaluator.samples
    train, reference = evaluator.clips("train"), evaluator.clips("test")
    others, indices = train.indices(fitted_clips(evaluator.built)), reference.indices()
    if not len(indices):
        half = len(others) // 2
        reference, indices, others = train, others[half:], others[:half]
    # 2n clips for the Frechet distance between two sets of real clips; KID uses more clips.
    return _RealSets(reference, indices[: max(2 * n, MAX_CLIPS)], train, others[:n])


def _accumulate(
    batches: Iterator[Batch], accumulated: SampleAccumulator, row: str, n: int, adm_npz: Path | None
) -> None:
    """Adds all batches of a row to `accumulated`, and writes their images to `adm_npz` unless it is None."""

    def media_of_batches() -> Iterator[Mapping[str, np.ndarray]]:
        with Progress(row, n, unit="clip") as shown:
            for latents, media in batches:
                accumulated.add(latents, media)
                yield media
                shown.advance(batch_size(latents))

    # Both are done in a single pass, because only one batch is in memory at a time.
    if adm_npz is None:
        for _ in media_of_batches():
            pass
    else:
        write_adm(adm_npz, (media["image"] for media in media_of_batches()), n)


def _samples(sampler: RunSampler, n: int, seed: int, batch_rows: int) -> Iterator[Batch]:
    """Yields batches of n samples in total."""
    for samples in sampler.batches(np.arange(n), seed, batch_rows):
        yield samples.latents, samples.media


def _noise(sampler: RunSampler, n: int, batch_rows: int) -> Iterator[Batch]:
    """Yields batches of n samples of Gaussian noise in total, in the shapes of the sampler's latents."""
    for start in range(0, n, batch_rows):
        indices = np.arange(start, min(start + batch_rows, n))
        latents = {}
        for m, modality in sampler.modalities.items():
            tokens = sample_noise(0, indices, m, (modality.tokens, modality.token_size))
            latents[m] = np.asarray(modality.from_tokens(tokens))
        yield latents, sampler.decode(latents)


def _load_reference(
    evaluator: SampleEvaluator, reference: Path | None, save_reference: Path | None
) -> dict[str, Accumulator | Statistics]:
    """Checks the flags of both files; returns the features of `reference` by feature space, {} without a file."""
    spaces = evaluator.setup.feature_spaces
    for flag, path in (("--save-reference", save_reference), ("--reference", reference)):
        if path is not None and len(spaces) != 1:
            raise UserError(
                f"{flag} holds features of one extractor, and {len(spaces)} apply to these samples: name one with "
                "--features, and one modality with --modality"
            )
    if save_reference and not save_reference.absolute().parent.is_dir():
        raise UserError(f"--save-reference {save_reference}: its folder does not exist; create it first")
    if reference is None:
        return {}
    if save_reference:
        raise UserError("--save-reference writes features of real clips: leave out --reference")
    (space,) = spaces
    real = load_reference(reference, space)
    if isinstance(real, Accumulator) and real.samples != evaluator.samples:
        raise UserError(
            f"--reference {reference} was gathered for Frechet distances of {real.samples} samples: give --samples "
            f"{real.samples}, or save it again"
        )
    return {space_name(space): real}


def calibrate_verifier(run: "Run", built: Mapping[str, "BuiltDataset"]) -> dict[str, Calibration]:
    """Calibrates the physics verifier on the test split, with raw clips and with reconstructions of autoencoders.

    Args:
      run: run that provides the autoencoders.
      built: data sets of the run with raw records, by name. The first that has a physics verifier is used.

    Raises:
      UserError: if none of the data sets has a verifier and raw records.
    """
    for data in built.values():
        verifier = physics_verifier(data.settings, ("video", "audio"), data)
        if verifier:
            break
    else:
        raise UserError(f"--calibrate: {run.source} has no raw records of a data set with a physics verifier")
    records = list(readable_records(data.records("test")))
    through: dict[str, Transform | None] = {}
    for m in ("video", "audio"):
        through[m] = _reconstruction(run, m) if m in run.experiment.autoencoders else None
    settings, classifiers = verifier
    return {
        "as they are": calibrate(records, settings, classifiers),
        "through the autoencoders": calibrate(records, settings, classifiers, through["video"], through["audio"]),
    }


def _reconstruction(run: "Run", modality: str) -> Transform:
    """Returns a function that encodes and decodes a single clip with the autoencoder of a modality."""
    autoencoder = run.autoencoder(modality)

    def reconstruct(media: np.ndarray) -> np.ndarray:
        return autoencoder.decode(autoencoder.encode(media[None]))[0]

    return reconstruct
