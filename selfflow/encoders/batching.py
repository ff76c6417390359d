"""Applies a compiled function to many samples in batches."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Float


def in_batches(
    network: Callable[[np.ndarray], Array], samples: np.ndarray, batch_size: int
) -> Float[np.ndarray, "B ..."]:
    """Outputs of a network for samples [B, ...].

    A smaller last batch is padded to a power of two, so that few shapes are compiled.
    """
    outputs = []
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        size = min(batch_size, 1 << (len(batch) - 1).bit_length())
        padded = np.concatenate([batch, np.broadcast_to(batch[:1], (size - len(batch), *batch.shape[1:]))])
        outputs.append(np.asarray(network(padded), np.float32)[: len(batch)])
    return np.concatenate(outputs)
