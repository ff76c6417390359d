"""Motion -> what is seen and heard: anti-aliased frames and modal sound."""

from dataclasses import dataclass

import numpy as np

from selfflow.data.collisions import Collisions
from selfflow.data.collisions.scene import Body
from selfflow.data.collisions.simulate import WALL, Motion, material_of

BACKGROUND = (0.06, 0.06, 0.08)
_FULL_SCALE = 32767


@dataclass(frozen=True)
class Clip:
    """A motion, seen and heard."""

    video: np.ndarray
    """uint8 [frames, size, size, 3]."""
    audio: np.ndarray
    """int16 [samples], mono."""
    image: np.ndarray
    """uint8 [size, size, 3]: the scene's still, one of the frames."""


def render(motion: Motion) -> Clip:
    """Draws and sounds `motion`; frame i covers samples i * sample_rate / frames_per_second onwards."""
    video = render_video(motion)
    return Clip(video=video, audio=render_audio(motion), image=video[motion.scene.still])


def render_video(motion: Motion) -> np.ndarray:
    """Frames of `motion`, uint8 [frames, size, size, 3]; the box fills the frame, y points down."""
    world = motion.scene.world
    centres = (np.arange(world.size, dtype=np.float32) + 0.5) * (world.box / world.size)
    grid = np.stack(np.meshgrid(centres, centres, indexing="xy")).reshape(2, -1)
    video = np.empty((world.frames, grid.shape[1], 3), np.float32)
    video[:] = BACKGROUND
    for i, body in enumerate(motion.scene.bodies):
        distance = _signed_distance(body, grid, motion.positions[:, i], motion.angles[:, i])
        # A pixel is covered in proportion to how deep its centre lies, one pixel wide across the edge.
        cover = np.clip(0.5 - distance * (world.size / world.box), 0.0, 1.0)[..., None]
        video += cover * (np.asarray(body.colour, np.float32) - video)
    return np.rint(video * 255).astype(np.uint8).reshape(world.frames, world.size, world.size, 3)


def _signed_distance(body: Body, grid: np.ndarray, positions: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Distance of every grid point [2, points] to the body's edge, negative inside, float32 [frames, points].

    For corners this is the largest distance to an edge's line, which no 1-pixel ramp can tell from the distance.
    """
    positions = positions.astype(np.float32)
    corners = body.corners()
    if not len(corners):
        offset = grid[None] - positions[:, :, None]
        return np.sqrt((offset**2).sum(axis=1)) - np.float32(body.radius)
    middles = (corners + np.roll(corners, -1, axis=0)) / 2
    apothem = np.linalg.norm(middles[0])
    turns = np.arctan2(middles[:, 1], middles[:, 0])[None, :] + angles[:, None]
    normals = np.stack([np.cos(turns), np.sin(turns)], axis=-1).astype(np.float32)
    reach = np.einsum("tek,tk->te", normals, positions) + np.float32(apothem)
    if (angles == angles[0]).all():
        along = (normals[0] @ grid)[None]
    else:
        along = normals @ grid
    distance = along[:, 0] - reach[:, 0, None]
    for edge in range(1, len(corners)):
        np.maximum(distance, along[:, edge] - reach[:, edge, None], out=distance)
    return distance


def render_audio(motion: Motion) -> np.ndarray:
    """Sound of `motion`, int16 [samples]: each contact rings its bodies from its very time on."""
    world = motion.scene.world
    sound = np.zeros(world.samples)
    for contact in motion.contacts:
        for index in contact.bodies:
            if index != WALL:
                _ring(sound, motion.scene.bodies[index], contact.time, contact.impulse, world)
    return np.rint(np.clip(sound, -1.0, 1.0) * _FULL_SCALE).astype(np.int16)


def _ring(sound: np.ndarray, body: Body, time: float, impulse: float, world: Collisions) -> None:
    """Adds decaying sines, one per mode, in place; they start with phase 0 at `time`, so without a click."""
    material = material_of(body, world)
    gain = impulse / world.full_scale_impulse
    lasting = material.decay * np.log(max(gain * _FULL_SCALE * 2, 1.0))
    # The rounding keeps a contact that falls on a sample from starting one sample late.
    first = int(np.ceil(round(time * world.sample_rate, 6)))
    last = min(len(sound), first + int(lasting * world.sample_rate) + 1)
    if last <= first:
        return
    t = np.arange(first, last) / world.sample_rate - time
    pitch = material.frequency * np.sqrt(world.reference_radius / body.radius)
    wave = np.zeros_like(t)
    for partial, amplitude in zip(world.partials, world.partial_gains, strict=True):
        if pitch * partial < world.sample_rate / 2:
            wave += amplitude * np.sin(2 * np.pi * pitch * partial * t)
    sound[first:last] += gain / sum(world.partial_gains) * np.exp(-t / material.decay) * wave
