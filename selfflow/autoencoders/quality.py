"""Reconstruction errors: distances of decoded from original media."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from selfflow.autoencoders.config import Autoencoder
from selfflow.encoders.audio import log_mel
from selfflow.media import medium_of

Clips = Sequence[np.ndarray]


def psnr(original: Clips, decoded: Clips, rate: float = 0.0) -> float:
    """Peak signal-to-noise ratio of uint8 images or videos in dB, 10 log10(255^2 / MSE), over all clips together."""
    del rate
    error = _squared_error(original, decoded) / sum(clip.size for clip in original)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def snr(original: Clips, decoded: Clips, rate: float = 0.0) -> float:
    """Signal-to-noise ratio of int16 audio in dB, over all clips together; NaN if the original is silent."""
    del rate
    signal, error = _squared_error(original), _squared_error(original, decoded)
    return float(10 * np.log10(signal / max(error, 1e-12))) if signal > 0 else float("nan")


def log_mel_distance(original: Clips, decoded: Clips, rate: float) -> float:
    """Mean absolute difference of the log-mel spectrograms of int16 audio with `rate` samples per second."""
    distances = [np.mean(np.abs(log_mel(a, rate) - log_mel(b, rate))) for a, b in zip(original, decoded)]
    return float(np.mean(distances))


def rmse(original: Clips, decoded: Clips, rate: float = 0.0) -> float:
    """Root mean squared error, over all clips together."""
    del rate
    return float(np.sqrt(_squared_error(original, decoded) / sum(clip.size for clip in original)))


METRICS: dict[str, Callable[[Clips, Clips, float], float]] = {
    "psnr_db": psnr,
    "snr_db": snr,
    "log_mel_distance": log_mel_distance,
    "rmse": rmse,
}
"""The errors that `Medium.metrics` names, as functions of (original, decoded, rate)."""


def _squared_error(original: Clips, decoded: Clips | None = None) -> float:
    """Sum of squared differences, or of squares without `decoded`. Clip by clip, to hold one in float64 at a time."""
    pairs = zip(original, np.zeros(len(original), np.int16) if decoded is None else decoded)
    return sum(float(np.sum(np.square(clip.astype(np.float64) - other))) for clip, other in pairs)


def reconstruction_quality(
    autoencoder: Autoencoder, records: list[dict[str, Any]], modality: str, rate: float, materials: list[str]
) -> dict[str, float]:
    """Reconstruction errors of a modality; for audio the SNR also per material.

    Args:
      autoencoder: autoencoder to measure.
      records: records of a split that it was not fitted on, if there is one.
      modality: modality to encode.
      rate: steps per second.
      materials: names of the material labels of records; empty if they have none.
    """
    original = [record[modality] for record in records]
    decoded = [autoencoder.decode(autoencoder.encode(media)) for media in original]
    # Frames or samples after the last whole latent frame are not encoded.
    original = [a[: len(b)] for a, b in zip(original, decoded)]
    quality = reconstruction_metrics(modality, original, decoded, rate)
    if medium_of(modality).preview != "spectrogram":
        return quality
    for label, name in enumerate(materials):
        rows = [i for i, record in enumerate(records) if record["material"] == label]
        if rows:
            quality[f"snr_db/{name}"] = snr([original[i] for i in rows], [decoded[i] for i in rows])
    return quality


def reconstruction_metrics(modality: str, original: Clips, decoded: Clips, rate: float) -> dict[str, float]:
    """Returns each error that the medium names, over clips that may differ in length.

    Args:
      modality: modality of the clips.
      original, decoded: clips of equal shapes, pair by pair.
      rate: steps per second.
    """
    return {name: METRICS[name](original, decoded, rate) for name in medium_of(modality).metrics}
