"""`selfflow encode EXPERIMENT --inspect`: are these latents fit to train on, and what do they lose?"""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from selfflow.autoencoders.config import AnyAutoencoder, can_decode
from selfflow.autoencoders.latent_statistics import channel_statistics, difference
from selfflow.autoencoders.quality import reconstruction_metrics
from selfflow.data.built import BuiltDataset
from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.latents.store import Latents
from selfflow.progress import Progress
from selfflow.sampling.media_files import write_sheet

_RECORDS, _BYTES = 128, 200e6  # of a modality, with its raw media
_SHOWN = {"image": 16, "video": 4, "audio": 4}
_WIDE, _HEAVY = (0.5, 2.0), 10.0  # deviations and kurtosis beyond which a line says so


def inspect(
    autoencoders: dict[str, AnyAutoencoder],
    rates: dict[str, int],
    latents: dict[str, Latents],
    built: dict[str, BuiltDataset],
    out: Path,
) -> None:
    """Prints and writes statistics of each latent channel, reconstruction, and figures of the reconstruction error.

    Args:
      autoencoders: their settings, by modality.
      rates: audio samples per second of each data set, 0 without audio.
      latents: by data set.
      built: the data sets whose raw data is there.
      out: folder for `DATA_MODALITY.csv`, `DATA_MODALITY_channels.png` and `DATA_MODALITY.png`.

    Raises:
      UserError: if the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): choose another") from error
    print(f"\n{'latents':<24} {'std of a channel':>18} {'kurtosis, most':>15} {'largest':>8}   reconstruction")
    files, remarks = [], []
    for name, found in latents.items():
        for m in found.manifest["modalities"]:
            if m not in autoencoders:
                continue
            stored, originals = _some(found, built.get(name), m)
            if not stored:
                print(f"{name + ' ' + m:<24} no record that can be read has it")
                continue
            statistics = channel_statistics(stored)
            stem = out / f"{name}_{m}"
            beside = lambda ending, stem=stem: stem.with_name(stem.name + ending)
            files += [_table(beside(".csv"), statistics), _bars(beside("_channels.png"), f"{name}: {m}", statistics)]
            rate = rates[name]
            lost = "no autoencoder to decode by"
            if can_decode(config := autoencoders[m]):
                lost, drawn = _reconstruction(found.autoencoder(m, config), stored, originals, m, rate)
                write_sheet(beside(".png"), drawn, rate, f"{name}: {m}")
                files.append(beside(".png"))
            spread, tails = statistics["std"], statistics["kurtosis"]
            heaviest = f"{np.nanmax(tails):.1f}" if np.isfinite(tails).any() else "-"
            print(
                f"{name + ' ' + m:<24} {f'{spread.min():.2f} to {spread.max():.2f}':>18} {heaviest:>15} "
                f"{statistics['largest'].max():>8.1f}   {lost}"
            )
            remarks += _remarks(f"{name} {m}", statistics)
    for remark in remarks:
        print(f"note: {remark}")
    print(f"\n{len(files)} files in {out}:")
    for file in files:
        print(f"  {file}")


def _some(latents: Latents, built: BuiltDataset | None, m: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Latents of a modality, of the validation split where there is one, and the media that they were made of."""
    split = "validation" if "validation" in latents.records else "train"
    source, records = latents.open_split(split), built.records(split) if built else None
    chosen = source.indices_with((m,))[:_RECORDS]
    stored, originals = [], []
    with Progress(f"look at {m}", len(chosen), unit="record") as shown:
        for i in chosen:
            try:
                latent, record = source[int(i)][m].astype(np.float32), records[int(i)] if records else None
            except BadRecord:
                continue  # encoding counted and named it
            stored.append(latent)
            if record is not None:
                originals.append(record[m])
            shown.advance()
            if sum(x.nbytes for x in stored + originals) > _BYTES and len(stored) >= _SHOWN[m]:
                break
    return stored, originals


def _reconstruction(autoencoder: Any, stored: list, originals: list, m: str, rate: int) -> tuple[str, dict[str, Any]]:
    """What is lost, in words, and what is to be drawn."""
    shown = _SHOWN[m]
    decoded = [autoencoder.decode(x) for x in (stored if originals else stored[:shown])]
    length = min(len(x) for x in decoded[:shown])  # clips may be of several lengths: one sheet has one
    cut = (lambda x: x) if m == "image" else (lambda x: x[:length])
    few = np.stack([cut(x) for x in decoded[:shown]])
    if not originals:
        return "(the raw data is not there)", {"decoded": {m: few}}
    originals = [a[: len(b)] for a, b in zip(originals, decoded)]
    true = np.stack([cut(x) for x in originals[:shown]])
    drawn = {"original": {m: true}, "decoded": {m: few}, "lost": {m: difference(true, few)}}
    lost = reconstruction_metrics(originals, decoded, rate)
    if m != "audio":
        return f"PSNR {lost['psnr_db']:.1f} dB", drawn
    return f"SNR {lost['snr_db']:.1f} dB, log-mel distance {lost['log_mel_distance']:.2f}", drawn


def _table(path: Path, statistics: dict[str, np.ndarray]) -> Path:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["channel", *statistics])
        rows.writerows([i, *(f"{x:.6g}" for x in values)] for i, values in enumerate(zip(*statistics.values())))
    return path


def _bars(path: Path, title: str, statistics: dict[str, np.ndarray]) -> Path:
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
    upper.set_ylabel("mean and deviation")
    lower.bar(channels, statistics["kurtosis"], color="tab:orange")
    lower.set_ylabel("excess kurtosis")
    lower.set_xlabel("channel (grey lines: deviation 1, as that of the noise)")
    figure.savefig(path, dpi=110)
    return path


def _remarks(what: str, statistics: dict[str, np.ndarray]) -> list[str]:
    spread, tails, found = statistics["std"], statistics["kurtosis"], []
    empty = int(np.sum(spread < 1e-6))
    if empty:
        found.append(f"{what}: {empty} of {len(spread)} channels never vary: fewer channels would do")
    odd = int(np.sum((spread >= 1e-6) & ((spread < _WIDE[0]) | (spread > _WIDE[1]))))
    if odd:
        found.append(
            f"{what}: {odd} of {len(spread)} channels have a deviation outside {_WIDE[0]:g} to {_WIDE[1]:g}, where "
            "noise has 1: noise levels mean something else to each"
        )
    heavy = int(np.sum(np.nan_to_num(tails) > _HEAVY))
    if heavy:
        found.append(
            f"{what}: {heavy} of {len(spread)} channels have an excess kurtosis above {_HEAVY:g}: rare large values "
            "among many small ones, which a velocity is bad at"
        )
    return found
