"""Evaluation of samples of a run next to real clips and noise, for `selfflow evaluate`."""

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
"""Rows of the result. Noise is the start of the sampler, decoded."""


@dataclass(frozen=True)
class SampleReport:
    """Metrics of samples, of real clips and of noise.

    Attributes:
      rows: metrics by REAL, DECODED, SAMPLES and NOISE; rows of fewer than two clips are left out.
      reference: name of the real set of the distances, a file or a number of clips.
      real_clips: number and split of the clips of the rows REAL and DECODED, none of which is in the reference.
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
    """Draws `evaluator.samples` samples and computes their metrics, and those of real clips and of noise.

    Args:
      evaluator: evaluator of the sampler's component, with the weights of the model.
      sampler: draws the samples.
      seed: seed of the samples.
      batch_rows: samples in a batch.
      reference: file of real features to use in place of those of the test split, see `load_reference`.
      save_reference: file to write the features of the real clips to.
      adm_npz: file to write the samples to for ADM's evaluator.

    Raises:
      UserError: for flags that do not fit, before anything is drawn.
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
        ((space, real_features),) = features.items()  # `_load_reference` checked that there is one
        real_features.save(save_reference)
        saved = space, real_features.count

    # Batches are computed when they are iterated over, one row after the other.
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
    """Two disjoint sets of real clips, neither of which the material classifiers are fitted to.

    Attributes:
      reference, reference_indices: clips of the reference, [m].
      others, other_indices: clips of the rows REAL and DECODED, at most n.
    """

    reference: RealClips
    reference_indices: np.ndarray
    others: RealClips
    other_indices: np.ndarray


def _split_real_clips(evaluator: SampleEvaluator) -> _RealSets:
    """The reference from the split test and the other clips from train; without test, both from halves of train."""
    n = evaluator.samples
    train, reference = evaluator.clips("train"), evaluator.clips("test")
    others, indices = train.indices(fitted_clips(evaluator.built)), reference.indices()
    if not len(indices):
        half = len(others) // 2
        reference, indices, others = train, others[half:], others[:half]
    # 2 n clips for the Frechet distance of real clips from real ones, and more for KID.
    return _RealSets(reference, indices[: max(2 * n, MAX_CLIPS)], train, others[:n])


def _accumulate(
    batches: Iterator[Batch], accumulated: SampleAccumulator, row: str, n: int, adm_npz: Path | None
) -> None:
    """Adds all batches of a row, and writes their images to `adm_npz` if it is not None."""

    def media_of_batches() -> Iterator[Mapping[str, np.ndarray]]:
        with Progress(row, n, unit="clip") as shown:
            for latents, media in batches:
                accumulated.add(latents, media)
                yield media
                shown.advance(batch_size(latents))

    # One pass for both, because only one batch is in memory at a time.
    if adm_npz is None:
        for _ in media_of_batches():
            pass
    else:
        write_adm(adm_npz, (media["image"] for media in media_of_batches()), n)


def _samples(sampler: RunSampler, n: int, seed: int, batch_rows: int) -> Iterator[Batch]:
    """Batches of n samples."""
    for samples in sampler.batches(np.arange(n), seed, batch_rows):
        yield samples.latents, samples.media


def _noise(sampler: RunSampler, n: int, batch_rows: int) -> Iterator[Batch]:
    """Batches of n samples of noise, in the shapes of the sampler's latents."""
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
    """The features of `reference` by their feature space, {} without it. Checks both files before anything is drawn."""
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
    """Calibrates the physics verifier on the test split: on raw clips, and through the autoencoders of a run.

    Args:
      run: run with the autoencoders.
      built: data sets of the run with raw records, by name. The first with a physics verifier is used.

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
    """Encoding and decoding of single clips by the autoencoder of a modality."""
    autoencoder = run.autoencoder(modality)

    def reconstruct(media: np.ndarray) -> np.ndarray:
        return autoencoder.decode(autoencoder.encode(media[None]))[0]

    return reconstruct
