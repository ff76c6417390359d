"""What a probe is asked of a clip: the truth about it, as numbers."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from selfflow.data.collisions import SHAPE_NAMES
from selfflow.modality import frames_of_tokens


def clip_targets(record: Mapping) -> dict[str, int | float]:
    """The clip's material (0 to 3; dynamic), count and shapes present (0 or 1 each; static), and audible contacts."""
    shapes = np.asarray(record["shapes"])
    targets = {"material": int(record["material"]), "count": int(record["count"])}
    targets |= {f"shape/{name}": int((shapes == i).any()) for i, name in enumerate(SHAPE_NAMES)}
    return targets | {"contacts": float(len(record["contacts"]["time"]))}


class Bodies(NamedTuple):
    """The video tokens of a clip that hold the centre of a body.

    Attributes:
      tokens: which, [M], counted in row-major order.
      position: of that body from the token's centre (right, down) in units, [M, 2].
      velocity: of that body (right, down) in units/s, [M, 2].
    """

    tokens: np.ndarray
    position: np.ndarray
    velocity: np.ndarray


def bodies_in_tokens(record: Mapping, grid: tuple[int, int, int], box: float = 64.0) -> Bodies:
    """The bodies whose centres lie in video tokens; of several in one token the one nearest to its centre.

    Args:
      record: a clip.
      grid: tokens along (frames, height, width). A token that spans several frames looks at its first.
      box: side of the world in units.
    """
    frames, height, width = grid
    first, count = frames_of_tokens(len(record["positions"]), frames)[:-1], int(record["count"])
    positions, velocities = (np.asarray(record[n], np.float32)[first, :count] for n in ("positions", "velocities"))
    rows = (np.arange(height, dtype=np.float32) + 0.5) * box / height
    columns = (np.arange(width, dtype=np.float32) + 0.5) * box / width
    centres = np.stack(np.meshgrid(columns, rows, indexing="xy"), axis=-1).reshape(-1, 2)
    offsets = positions[:, None, :, :] - centres[None, :, None, :]
    nearest = np.argmin(np.square(offsets).sum(-1), axis=-1)[:, :, None, None]
    of_nearest = lambda values: np.take_along_axis(values, nearest, axis=2)[:, :, 0].reshape(-1, 2)
    offset, velocity = of_nearest(offsets), of_nearest(np.broadcast_to(velocities[:, None], offsets.shape))
    holds = np.flatnonzero(np.all(np.abs(offset) <= np.array([box / width, box / height]) / 2, axis=-1))
    return Bodies(holds, offset[holds], velocity[holds])


def contacts_in_windows(record: Mapping, bounds: np.ndarray) -> np.ndarray:
    """How many audible contacts fall into each of some windows, float32 [W], given by their bounds [W + 1] in s."""
    window = np.searchsorted(bounds, np.asarray(record["contacts"]["time"], np.float64) + 1e-9, side="right") - 1
    return np.bincount(window[window < len(bounds) - 1], minlength=len(bounds) - 1).astype(np.float32)
