"""How well an autoencoder gives back what it was given."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from selfflow.autoencoders.config import Autoencoder
from selfflow.encoders.audio import log_mel


def psnr(original: Sequence[np.ndarray], decoded: Sequence[np.ndarray]) -> float:
    """Peak signal-to-noise ratio of uint8 pictures or films over all of them together, in dB."""
    error = _squared(original, decoded) / sum(clip.size for clip in original)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def snr(original: Sequence[np.ndarray], decoded: Sequence[np.ndarray]) -> float:
    """Signal-to-noise ratio of int16 sounds over all of them together, in dB; nan if the original is silent."""
    signal, error = _squared(original), _squared(original, decoded)
    return float(10 * np.log10(signal / max(error, 1e-12))) if signal > 0 else float("nan")


def _squared(original: Sequence[np.ndarray], decoded: Sequence[np.ndarray] | None = None) -> float:
    """Sum of the squares of what one is more than the other, clip by clip, which takes the memory of one."""
    pairs = zip(original, np.zeros(len(original), np.int16) if decoded is None else decoded)
    return sum(float(np.sum(np.square(clip.astype(np.float64) - other))) for clip, other in pairs)


def reconstruction_quality(
    autoencoder: Autoencoder, records: list[dict[str, Any]], modality: str, rate: int, materials: list[str]
) -> dict[str, float]:
    """PSNR in dB for pictures; for sound SNR in dB, over all and per material, and the mean log-mel distance.

    Args:
      autoencoder: what to judge.
      records: records of a split that it was not fitted on, where there is one.
      modality: its name; `audio` is int16 sound, all else uint8 pictures.
      rate: samples a second of the sound.
      materials: names of the materials that records are labelled with; none where they are not.
    """
    original = [record[modality] for record in records]
    decoded = [autoencoder.decode(autoencoder.encode(media)) for media in original]
    original = [a[: len(b)] for a, b in zip(original, decoded)]  # without what no whole latent frame holds

    whole = reconstruction_metrics(original, decoded, rate)
    if modality != "audio":
        return whole
    quality = {"snr_db": whole["snr_db"]}
    for label, name in enumerate(materials):
        chosen = [i for i in range(len(records)) if records[i]["material"] == label]
        if chosen:
            quality[f"snr_db/{name}"] = snr(*([side[i] for i in chosen] for side in (original, decoded)))
    return quality | {"log_mel_distance": whole["log_mel_distance"]}


def reconstruction_metrics(
    original: Sequence[np.ndarray], decoded: Sequence[np.ndarray], rate: float
) -> dict[str, float]:
    """What was lost of clips, which may be of several lengths: PSNR in dB of uint8 pictures; of int16 sound of `rate`
    samples a second the mean log-mel distance, and SNR in dB."""
    if original[0].dtype == np.uint8:
        return {"psnr_db": psnr(original, decoded)}
    distances = [np.mean(np.abs(log_mel(a, rate) - log_mel(b, rate))) for a, b in zip(original, decoded)]
    return {"log_mel_distance": float(np.mean(distances)), "snr_db": snr(original, decoded)}
