"""Files of samples: media and latents of each sample, and a sheet with many of them."""

from pathlib import Path

import numpy as np

from selfflow.media import images_only
from selfflow.progress import Progress
from selfflow.run.sampler import RunSampler
from selfflow.sampling.media_files import write_media, write_sheet
from selfflow.storage.atomic import atomic_write

SHEET = "sheet.png"
_IMAGES_ON_A_SHEET, _CLIPS_ON_A_SHEET = 64, 8


def write_samples(sampler: RunSampler, folder: Path, count: int, seed: int, batch_size: int) -> None:
    """Draws samples 0 to `count` - 1 that a folder lacks, and writes their media, and their latents as npz."""
    missing = [number for number in range(count) if not _latents_path(folder, number).exists()]
    rates = {m: media.rate for m, media in sampler.media.items()}
    with Progress("sample", count, done=count - len(missing), unit="sample") as progress:
        for samples in sampler.batches(np.array(missing, int), seed, batch_size):
            for row, number in enumerate(samples.numbers):
                path = _latents_path(folder, number)
                write_media(path.with_suffix(""), {m: x[row] for m, x in samples.media.items()}, rates)
                # The latents are written last: their file marks the sample as complete.
                with atomic_write(path) as partial, partial.open("wb") as file:
                    np.savez(file, **{m: x[row] for m, x in samples.latents.items()})
                progress.advance()


def write_sample_sheet(sampler: RunSampler, folder: Path, count: int, title: str) -> int:
    """Writes `SHEET` with the first samples of a folder of `count` samples; returns the number of samples shown."""
    shown = min(count, _IMAGES_ON_A_SHEET if images_only(sampler.modalities) else _CLIPS_ON_A_SHEET)
    parts = []
    for number in range(shown):
        with np.load(_latents_path(folder, number)) as latents:
            parts.append(sampler.decode({m: latents[m][None] for m in sampler.modalities}))
    media = {m: np.concatenate([part[m] for part in parts]) for m in sampler.media}
    rates = {m: shape.rate for m, shape in sampler.media.items()}
    write_sheet(folder / SHEET, {"sample": media}, rates, title, sampler.fully_conditioned)
    return shown


def _latents_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npz"
