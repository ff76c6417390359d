"""Clips of a split, one after another: what worker processes run. Imports NumPy and pymunk only."""

import numpy as np

from selfflow.data.collisions import Collisions
from selfflow.data.collisions.caption import caption
from selfflow.data.collisions.names import MATERIAL_NAMES, SHAPE_NAMES
from selfflow.data.collisions.render import render
from selfflow.data.collisions.scene import Scene, draw_scene
from selfflow.data.collisions.simulate import Motion, simulate
from selfflow.errors import UserError

_ATTEMPTS = 2_000


def draw_motion(settings: Collisions, split: str, index: int) -> Motion:
    """The motion of a clip: the first drawn scene in which something is to be learnt about the material.

    Its first contact must meet `informative_impulse` of momentum along the normal and leave `quiet_end` seconds
    of clip. What happens up to a first contact is the same for every material, so that the choice tells nothing of it.

    Raises:
      UserError: no drawn scene will do.
    """
    latest = settings.seconds - settings.quiet_end
    for attempt in range(_ATTEMPTS):
        motion = simulate(draw_scene(settings, split, index, attempt))
        if motion.first_momentum >= settings.informative_impulse and motion.first_time <= latest:
            return motion
    raise UserError(
        f"collisions: {_ATTEMPTS} scenes whose first contact meets informative_impulse = "
        f"{settings.informative_impulse:g} within {latest:g} s; lower informative_impulse or quiet_end, or raise speed"
    )


def record(settings: Collisions, split: str, index: int) -> dict:
    """Everything that is stored of one clip; the shapes stand in the card of the data set."""
    motion = draw_motion(settings, split, index)
    return as_record(motion, f"{split}-{index:06d}")


def as_record(motion: Motion, name: str) -> dict:
    """The record of any motion, a counterfactual one too, under the id `name`."""
    scene: Scene = motion.scene
    world, bodies, contacts = scene.world, scene.bodies, motion.contacts
    clip = render(motion)
    labels = [MATERIAL_NAMES.index(body.material) for body in bodies]
    slots = max(world.slots, len(bodies))

    def padded(values, fill, dtype) -> np.ndarray:
        values = np.asarray(values)
        out = np.full((slots, *values.shape[1:]), fill, dtype)
        out[: len(values)] = values
        return out

    def tracked(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(padded(values.swapaxes(0, 1), 0.0, np.float32).swapaxes(0, 1))

    return {
        "id": name,
        "video": clip.video,
        "audio": clip.audio,
        "image": clip.image,
        "present": {"video": True, "audio": True, "image": True},
        "quality": np.float32(1.0),
        "material": np.int32(labels[0] if world.materials == "clip" else -1),
        "materials": padded(labels, -1, np.int32),
        "shapes": padded([SHAPE_NAMES.index(body.shape) for body in bodies], -1, np.int32),
        "radii": padded([body.radius for body in bodies], 0.0, np.float32),
        "count": np.int32(len(bodies)),
        "caption": caption(motion, name),
        "positions": tracked(motion.positions),
        "velocities": tracked(motion.velocities),
        "contacts": {
            "time": np.array([contact.time for contact in contacts], np.float32),
            "bodies": np.array([contact.bodies for contact in contacts], np.int32).reshape(-1, 2),
            "impulse": np.array([contact.impulse for contact in contacts], np.float32),
        },
        "action": motion.action.astype(np.float32),
    }


def records(settings: Collisions, split: str, start: int, stop: int) -> list[dict]:
    """The records of the clips start .. stop - 1 of `split`."""
    return [record(settings, split, index) for index in range(start, stop)]
