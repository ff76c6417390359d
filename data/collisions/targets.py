"""What a probe is asked of a clip: the truth about it, as numbers."""

from collections.abc import Mapping

import numpy as np

from selfflow.data.collisions import SHAPE_NAMES


def clip_targets(record: Mapping) -> dict[str, int | float]:
    """The clip's material (0 to 3; dynamic), count and shapes present (0 or 1 each; static), and audible contacts."""
    shapes = np.asarray(record["shapes"])
    targets = {"material": int(record["material"]), "count": int(record["count"])}
    targets |= {f"shape/{name}": int((shapes == i).any()) for i, name in enumerate(SHAPE_NAMES)}
    return targets | {"contacts": float(len(record["contacts"]["time"]))}


def body_in_token(record: Mapping, grid: tuple[int, int, int], box: float = 64.0) -> tuple[np.ndarray, np.ndarray]:
    """Where in a video token the centre of a body lies.

    Args:
      record: a clip.
      grid: tokens along (frames, height, width).
      box: side of the world in units.

    Returns:
      Which tokens hold a body's centre, int [M], tokens counted in row-major order, and the offset (right, down) of
      that body from the token's centre in units, float32 [M, 2]; of several bodies the one nearest to the centre.
      A token that spans several frames looks at its first.
    """
    frames, height, width = grid
    positions = np.asarray(record["positions"], np.float32)
    positions = positions[:: len(positions) // frames, : int(record["count"])]
    rows = (np.arange(height, dtype=np.float32) + 0.5) * box / height
    columns = (np.arange(width, dtype=np.float32) + 0.5) * box / width
    centres = np.stack(np.meshgrid(columns, rows, indexing="xy"), axis=-1).reshape(-1, 2)
    offsets = positions[:, None, :, :] - centres[None, :, None, :]
    nearest = np.argmin(np.square(offsets).sum(-1), axis=-1)
    offset = np.take_along_axis(offsets, nearest[:, :, None, None], axis=2)[:, :, 0].reshape(-1, 2)
    holds = np.flatnonzero(np.all(np.abs(offset) <= np.array([box / width, box / height]) / 2, axis=-1))
    return holds, offset[holds]
