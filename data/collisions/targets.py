"""Probe targets of Collisions, computed from the ground truth in its records."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from selfflow.data.collisions import kinematics
from selfflow.data.collisions.names import SHAPE_NAMES
from selfflow.data.dataset import ProbeTargets, TargetKind, TokenTargets
from selfflow.modality import frames_of_tokens


class CollisionsTargets(ProbeTargets):
    """Probe targets: shapes, number and times of contacts, and positions and velocities of bodies.

    Args:
      seconds: duration of a clip.
      box: side of the box, units.
      frames_per_second: frames per second of the video.
    """

    kinds: Mapping[str, TargetKind] = MappingProxyType(
        {"shape": "class", "contacts": "number", "contact": "time_step", "position": "token", "velocity": "token"}
    )
    columns = (
        *((target, source) for target in ("material", "shape", "count") for source in ("video", "audio", "both")),
        ("position", "video"),
        ("contacts", "audio"),
    )
    features = ("material", "count", "shapes", "positions", "velocities", "contacts")

    def __init__(self, seconds: float, box: float, frames_per_second: float):
        self.seconds, self.box, self.frames_per_second = seconds, box, frames_per_second

    def of_clip(self, record: Mapping[str, Any]) -> dict[str, int | float]:
        """Returns the material (0 to 3), the number of bodies, `shape/NAME` (0 or 1) and the number of audible
        contacts."""
        targets: dict[str, int | float] = {"material": int(record["material"]), "count": int(record["count"])}
        for label, name in enumerate(SHAPE_NAMES):
            targets[f"shape/{name}"] = int((np.asarray(record["shapes"]) == label).any())
        return targets | {"contacts": float(len(record["contacts"]["time"]))}

    def of_time_steps(self, record: Mapping[str, Any], bounds: np.ndarray) -> dict[str, np.ndarray]:
        """Returns `contact`, the number of audible contacts in each time step."""
        times = np.asarray(record["contacts"]["time"], np.float64)
        steps = np.searchsorted(bounds, times + 1e-9, side="right") - 1
        count = len(bounds) - 1
        return {"contact": np.bincount(steps[steps < count], minlength=count).astype(np.float32)}

    def of_tokens(self, record: Mapping[str, Any], grid: tuple[int, int, int]) -> TokenTargets:
        """Returns the `position` and the `velocity` of a body for each token that contains the centre of one, [M, 2].

        The position is relative to the centre of the token (right, down) in units, the velocity is in units/s. If a
        token contains several centres, the nearest one is used. A token that spans several frames has the targets of
        its first frame.
        """
        frames, height, width = grid
        count = int(record["count"])
        first = frames_of_tokens(len(record["positions"]), frames)[:-1]
        positions = np.asarray(record["positions"], np.float32)[first, :count]
        velocities = np.asarray(record["velocities"], np.float32)[first, :count]
        rows = (np.arange(height, dtype=np.float32) + 0.5) * self.box / height
        columns = (np.arange(width, dtype=np.float32) + 0.5) * self.box / width
        centres = np.stack(np.meshgrid(columns, rows, indexing="xy"), axis=-1).reshape(-1, 2)
        # Offsets from the centres of tokens to bodies, [frames, tokens, bodies, 2].
        offsets = positions[:, None, :, :] - centres[None, :, None, :]
        nearest = np.argmin(np.square(offsets).sum(-1), axis=-1)[:, :, None, None]

        def of_nearest(values: np.ndarray) -> np.ndarray:
            return np.take_along_axis(values, nearest, axis=2)[:, :, 0].reshape(-1, 2)

        offset = of_nearest(offsets)
        velocity = of_nearest(np.broadcast_to(velocities[:, None], offsets.shape))
        half = np.array([self.box / width, self.box / height]) / 2
        tokens = np.flatnonzero(np.all(np.abs(offset) <= half, axis=-1))
        return TokenTargets(tokens, {"position": offset[tokens], "velocity": velocity[tokens]})

    def oracle_features(self, record: Mapping[str, Any]) -> np.ndarray:
        """Returns the kinematic cues of the material (see `selfflow.data.collisions.kinematics`)."""
        return kinematics.features(record, self.frames_per_second)
