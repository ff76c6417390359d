"""Statistics of latents that show whether a model can be trained on them."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

_MIN_STD = 1e-12


def channel_statistics(latents: Sequence[Float[np.ndarray, "... C"]]) -> dict[str, Float[np.ndarray, "C"]]:
    """Mean, standard deviation, largest magnitude and excess kurtosis of each channel, over all latents.

    Flow matching assumes data of about the scale of its noise, std 1. A channel with a std far from 1 makes noise
    levels ineffective, one with std 0 is constant, and heavy tails (a Gaussian has excess kurtosis 0) are hard to
    predict.
    """
    count = sum(x.size // x.shape[-1] for x in latents)

    def mean_over_positions(f: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        # One latent after the other: in float64 all of them may not fit in memory.
        return sum(f(_rows(x)).sum(axis=0) for x in latents) / count

    mean = mean_over_positions(lambda x: x)
    std = np.sqrt(mean_over_positions(lambda x: (x - mean) ** 2))
    fourth = mean_over_positions(lambda x: ((x - mean) / np.where(std > _MIN_STD, std, 1)) ** 4)
    return {
        "mean": mean,
        "std": std,
        "largest": np.max([np.abs(_rows(x)).max(axis=0) for x in latents], axis=0),
        "kurtosis": np.where(std > _MIN_STD, fourth - 3, np.nan),
    }


def _rows(x: Float[np.ndarray, "... C"]) -> Float[np.ndarray, "N C"]:
    return np.asarray(x, np.float64).reshape(-1, x.shape[-1])


def difference(original: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """decoded - original in the dtype of the media, to be shown as such media.

    For unsigned pixels it is half the difference around mid-grey, for signed samples the clipped difference.
    """
    if original.dtype.kind == "f":
        return decoded - original
    error, limits = decoded.astype(np.int64) - original, np.iinfo(original.dtype)
    if limits.min == 0:
        error = limits.max // 2 + error // 2
    return np.clip(error, limits.min, limits.max).astype(original.dtype)
