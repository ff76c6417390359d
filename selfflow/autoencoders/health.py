"""What is to be known of latents before a model is trained on them."""

import numpy as np
from jaxtyping import Float


def channel_statistics(latents: Float[np.ndarray, "N C"]) -> dict[str, Float[np.ndarray, "C"]]:
    """Mean, standard deviation, largest magnitude and excess kurtosis of each channel.

    Flow matching takes data for about as wide as its noise: a deviation far from 1 wastes its levels, a channel without
    any is none, and heavy tails (a Gaussian's excess kurtosis is 0) are what a velocity is worst at.
    """
    x = np.asarray(latents, np.float64)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    centred = (x - mean) / np.where(deviation > 1e-12, deviation, 1)
    fourth = np.mean(centred**4, axis=0)
    return {
        "mean": mean,
        "std": deviation,
        "largest": np.abs(x).max(axis=0),
        "kurtosis": np.where(deviation > 1e-12, fourth - 3, np.nan),
    }


def difference(original: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """What is lost: of uint8 pictures half of the difference around grey, of int16 sound all of it."""
    lost = decoded.astype(np.int64) - original
    if original.dtype == np.uint8:
        return np.clip(127 + lost // 2, 0, 255).astype(np.uint8)
    return np.clip(lost, -32768, 32767).astype(np.int16)
