"""Many samples through a compiled function, a few at a time."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Float


def in_batches(network: Callable[[np.ndarray], Array], samples: np.ndarray, most: int) -> Float[np.ndarray, "B ..."]:
    """What a network makes of [B, ...], `most` at a time; fewer are filled up to a power of two, for few shapes."""
    found = []
    for start in range(0, len(samples), most):
        batch = samples[start : start + most]
        size = min(most, 1 << (len(batch) - 1).bit_length())
        filled = np.concatenate([batch, np.broadcast_to(batch[:1], (size - len(batch), *batch.shape[1:]))])
        found.append(np.asarray(network(filled), np.float32)[: len(batch)])
    return np.concatenate(found)
