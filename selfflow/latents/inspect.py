"""Inspection of latents before training: statistics of each channel, and reconstruction errors."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selfflow.autoencoders.config import AnyAutoencoder, Autoencoder, can_decode
from selfflow.autoencoders.latent_statistics import channel_statistics, difference
from selfflow.autoencoders.quality import reconstruction_metrics
from selfflow.data.built import BuiltDataset
from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.latents.store import Latents
from selfflow.media import medium_of
from selfflow.progress import Progress
from selfflow.sampling.media_files import write_sheet

_MAX_RECORDS, _MAX_BYTES = 128, 200e6  # limits for each modality, raw media included
_IMAGES_SHOWN, _CLIPS_SHOWN = 16, 4
# Standard deviations outside this range, and larger excess kurtosis, produce a note.
_STD_RANGE, _MAX_KURTOSIS = (0.5, 2.0), 10.0


class Inspection(NamedTuple):
    """The latents of one modality of a data set.

    Attributes:
      name: name of the data set.
      modality: modality of the latents.
      statistics: statistics of each channel from `channel_statistics`; None if no record is readable.
      reconstruction: errors by name; None without an autoencoder that decodes, or without raw data.
      can_decode: whether there is an autoencoder that decodes.
      notes: properties that may harm training.
      files: files that were written.
    """

    name: str
    modality: str
    statistics: dict[str, np.ndarray] | None
    reconstruction: dict[str, float] | None = None
    can_decode: bool = False
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def inspect_latents(
    autoencoders: Mapping[str, AnyAutoencoder],
    latents: Mapping[str, Latents],
    built: Mapping[str, BuiltDataset],
    rates: Mapping[str, Mapping[str, float]],
    out: Path,
) -> Iterator[Inspection]:
    """Inspects each modality of each data set.

    Args:
      autoencoders: configs by modality.
      latents: latents by data set.
      built: the data sets whose raw data is available.
      rates: steps per second of each data set by modality.
      out: folder for `DATA_MODALITY.csv`, `DATA_MODALITY_channels.png` and `DATA_MODALITY.png`.

    Raises:
      UserError: if the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): choose another") from error
    for name, source in latents.items():
        for m in source.manifest["modalities"]:
            if m in autoencoders:
                yield _inspect(name, source, built.get(name), m, autoencoders[m], rates[name].get(m, 0), out)


def _inspect(
    name: str,
    latents: Latents,
    built: BuiltDataset | None,
    m: str,
    config: AnyAutoencoder,
    rate: float,
    out: Path,
) -> Inspection:
    stored, originals = _sample_latents(latents, built, m)
    if not stored:
        return Inspection(name, m, None)
    statistics = channel_statistics(stored)
    files = [out / f"{name}_{m}.csv", out / f"{name}_{m}_channels.png"]
    _write_table(files[0], statistics)
    _draw_channels(files[1], f"{name}: {m}", statistics)
    metrics = None
    if can_decode(config):
        files.append(out / f"{name}_{m}.png")
        metrics = _reconstruct(files[-1], f"{name}: {m}", latents.autoencoder(m, config), stored, originals, m, rate)
    return Inspection(name, m, statistics, metrics, can_decode(config), _notes(statistics), tuple(files))


def _sample_latents(latents: Latents, built: BuiltDataset | None, m: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Reads latents of a modality, from the validation split if it exists, and the media they were encoded from."""
    split = "validation" if "validation" in latents.records else "train"
    source, records = latents.open_split(split), built.records(split) if built else None
    # Record i of the latents belongs to record i of the data set.
    indices = source.indices_with((m,))[:_MAX_RECORDS]
    stored, originals, size = [], [], 0
    with Progress(f"inspect {m}", len(indices), unit="record") as progress:
        for i in indices:
            try:
                latent, record = source[int(i)][m].astype(np.float32), records[int(i)] if records else None
            except BadRecord:
                continue  # encoding counts and lists unreadable records
            stored.append(latent)
            size += latent.nbytes
            if record is not None:
                originals.append(record[m])
                size += record[m].nbytes
            progress.advance()
            if size > _MAX_BYTES and len(stored) >= _shown(m):
                break
    return stored, originals


def _shown(m: str) -> int:
    return _CLIPS_SHOWN if medium_of(m).has_time else _IMAGES_SHOWN


def _reconstruct(
    path: Path,
    title: str,
    autoencoder: Autoencoder,
    stored: list[np.ndarray],
    originals: list[np.ndarray],
    m: str,
    rate: float,
) -> dict[str, float] | None:
    """Draws decoded clips, beside the originals if there are any, and returns the errors of all clips."""
    shown = _shown(m)
    decoded = [autoencoder.decode(x) for x in (stored if originals else stored[:shown])]
    if not originals:
        write_sheet(path, {"decoded": {m: _stack(decoded[:shown], m)}}, {m: rate}, title)
        return None
    # Frames or samples after the last whole latent frame are not encoded.
    originals = [a[: len(b)] for a, b in zip(originals, decoded)]
    original, reconstruction = _stack(originals[:shown], m), _stack(decoded[:shown], m)
    groups = {"original": original, "decoded": reconstruction, "difference": difference(original, reconstruction)}
    write_sheet(path, {group: {m: clips} for group, clips in groups.items()}, {m: rate}, title)
    return reconstruction_metrics(m, originals, decoded, rate)


def _stack(clips: list[np.ndarray], m: str) -> np.ndarray:
    """Stacks clips to [B, ...], cut to the length of the shortest, as clips of a data set may differ in length."""
    if medium_of(m).has_time:
        length = min(len(x) for x in clips)
        clips = [x[:length] for x in clips]
    return np.stack(clips)


def _write_table(path: Path, statistics: dict[str, np.ndarray]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["channel", *statistics])
        for channel, values in enumerate(zip(*statistics.values())):
            rows.writerow([channel, *(f"{x:.6g}" for x in values)])


def _draw_channels(path: Path, title: str, statistics: dict[str, np.ndarray]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    figure.suptitle(f"{title}: each latent channel", fontsize=11)
    upper, lower = figure.subplots(2, 1, sharex=True)
    channels = np.arange(len(statistics["std"]))
    upper.errorbar(channels, statistics["mean"], statistics["std"], fmt=".", linewidth=1, color="tab:blue")
    for level in (-1, 1):
        upper.axhline(level, color="0.7", linewidth=0.8)
    upper.set_ylabel("mean and std")
    lower.bar(channels, statistics["kurtosis"], color="tab:orange")
    lower.set_ylabel("excess kurtosis")
    lower.set_xlabel("channel (grey lines: std 1, that of the noise)")
    figure.savefig(path, dpi=110)


def _notes(statistics: dict[str, np.ndarray]) -> tuple[str, ...]:
    """Returns notes on properties that may harm training: constant channels, extreme scales, heavy tails."""
    std, kurtosis, notes = statistics["std"], statistics["kurtosis"], []
    low, high = _STD_RANGE
    constant = int(np.sum(std < 1e-6))
    if constant:
        notes.append(f"{constant} of {len(std)} channels are constant: fewer channels would do")
    outside = int(np.sum((std >= 1e-6) & ((std < low) | (std > high))))
    if outside:
        notes.append(
            f"{outside} of {len(std)} channels have a std outside of {low:g} to {high:g}, where the noise has 1: a "
            "noise level removes less or more of them"
        )
    # The kurtosis of a constant channel is NaN.
    heavy = int(np.sum(np.nan_to_num(kurtosis) > _MAX_KURTOSIS))
    if heavy:
        notes.append(
            f"{heavy} of {len(std)} channels have an excess kurtosis above {_MAX_KURTOSIS:g}: rare large values, which "
            "a velocity predicts badly"
        )
    return tuple(notes)
