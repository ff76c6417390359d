"""Generates the records of a split. Worker processes import this module, which needs only NumPy and pymunk."""

import numpy as np

from selfflow.data.collisions import Collisions
from selfflow.data.collisions.caption import caption
from selfflow.data.collisions.names import MATERIAL_NAMES, SHAPE_NAMES
from selfflow.data.collisions.render import render
from selfflow.data.collisions.scene import draw_scene
from selfflow.data.collisions.simulate import Motion, simulate
from selfflow.errors import UserError

_ATTEMPTS = 2_000


def draw_motion(settings: Collisions, split: str, index: int) -> Motion:
    """Draws scenes until one shows its material, and returns its motion.

    The first contact must have a momentum of at least `informative_impulse` along the normal and occur at least
    `quiet_end` seconds before the end of the clip. The motion before the first contact is the same for all materials,
    so that this choice is independent of the material.

    Raises:
      UserError: no scene satisfies these conditions.
    """
    # Later contacts do not reveal the material.
    latest = settings.seconds - settings.quiet_end
    for attempt in range(_ATTEMPTS):
        motion = simulate(draw_scene(settings, split, index, attempt))
        if motion.first_momentum >= settings.informative_impulse and motion.first_time <= latest:
            return motion
    raise UserError(
        f"collisions: none of {_ATTEMPTS} scenes has a first contact of informative_impulse = "
        f"{settings.informative_impulse:g} within {latest:g} s; lower informative_impulse or quiet_end, or raise speed"
    )


def record(settings: Collisions, split: str, index: int) -> dict:
    """Returns the record of one clip; the card of the data set lists its features."""
    motion = draw_motion(settings, split, index)
    return as_record(motion, f"{split}-{index:06d}")


def as_record(motion: Motion, name: str) -> dict:
    """Returns the record of any motion, including counterfactual ones, with the id `name`."""
    settings, bodies, contacts = motion.scene.settings, motion.scene.bodies, motion.contacts
    clip = render(motion)
    slots = max(settings.slots, len(bodies))
    materials = [MATERIAL_NAMES.index(body.material) for body in bodies]
    shapes = [SHAPE_NAMES.index(body.shape) for body in bodies]
    return {
        "id": name,
        "video": clip.video,
        "audio": clip.audio,
        "image": clip.image,
        "present": {"video": True, "audio": True, "image": True},
        "quality": np.float32(1.0),
        "material": np.int32(materials[0] if settings.materials == "clip" else -1),
        "materials": _pad(np.array(materials, np.int32), slots, fill=-1),
        "shapes": _pad(np.array(shapes, np.int32), slots, fill=-1),
        "radii": _pad(np.array([body.radius for body in bodies], np.float32), slots),
        "count": np.int32(len(bodies)),
        "caption": caption(motion, name),
        "positions": _pad(motion.positions.astype(np.float32), slots, axis=1),
        "velocities": _pad(motion.velocities.astype(np.float32), slots, axis=1),
        "contacts": {
            "time": np.array([contact.time for contact in contacts], np.float32),
            "bodies": np.array([contact.bodies for contact in contacts], np.int32).reshape(-1, 2),
            "impulse": np.array([contact.impulse for contact in contacts], np.float32),
        },
        "action": motion.action.astype(np.float32),
    }


def _pad(values: np.ndarray, slots: int, fill: float = 0, axis: int = 0) -> np.ndarray:
    """Pads the axis of bodies to a number of slots, so that all records have the same shapes."""
    widths = [(0, 0)] * values.ndim
    widths[axis] = (0, slots - values.shape[axis])
    return np.pad(values, widths, constant_values=fill)


def records(settings: Collisions, split: str, start: int, stop: int) -> list[dict]:
    """Returns the records of the clips `start` to `stop - 1` of a split."""
    return [record(settings, split, index) for index in range(start, stop)]
