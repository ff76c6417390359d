"""What is to be known of latents before a model is trained on them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def channel_statistics(latents: Sequence[Float[np.ndarray, "... C"]]) -> dict[str, Float[np.ndarray, "C"]]:
    """Mean, standard deviation, largest magnitude and excess kurtosis of each channel, over all of some latents.

    Flow matching takes data for about as wide as its noise: a deviation far from 1 wastes its levels, a channel without
    any is none, and heavy tails (a Gaussian's excess kurtosis is 0) are what a velocity is worst at.
    """
    rows = lambda x: np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    count = sum(x.size // x.shape[-1] for x in latents)
    over = lambda f: sum(f(rows(x)).sum(axis=0) for x in latents) / count  # one after the other: they may be large
    mean = over(lambda x: x)
    deviation = np.sqrt(over(lambda x: (x - mean) ** 2))
    fourth = over(lambda x: ((x - mean) / np.where(deviation > 1e-12, deviation, 1)) ** 4)
    return {
        "mean": mean,
        "std": deviation,
        "largest": np.max([np.abs(rows(x)).max(axis=0) for x in latents], axis=0),
        "kurtosis": np.where(deviation > 1e-12, fourth - 3, np.nan),
    }


def difference(original: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """What is lost: of uint8 pictures half of the difference around grey, of int16 sound all of it."""
    lost = decoded.astype(np.int64) - original
    if original.dtype == np.uint8:
        return np.clip(127 + lost // 2, 0, 255).astype(np.uint8)
    return np.clip(lost, -32768, 32767).astype(np.int16)
