"""Renders a motion as anti-aliased frames and modal audio."""

from dataclasses import dataclass

import numpy as np

from selfflow.data.collisions import Collisions
from selfflow.data.collisions.scene import Body
from selfflow.data.collisions.simulate import WALL, Motion, material_of

BACKGROUND = (0.06, 0.06, 0.08)
_FULL_SCALE = 32767


@dataclass(frozen=True)
class Clip:
    """Rendered media of a motion."""

    video: np.ndarray
    """uint8 [frames, size, size, 3]."""
    audio: np.ndarray
    """int16 [samples], mono."""
    image: np.ndarray
    """uint8 [size, size, 3], one of the frames."""


def render(motion: Motion) -> Clip:
    """Renders the media of a motion; the window of frame i starts at sample i * sample_rate / frames_per_second."""
    video = render_video(motion)
    return Clip(video=video, audio=render_audio(motion), image=video[motion.scene.image_frame])


def render_video(motion: Motion) -> np.ndarray:
    """Renders the frames of a motion, uint8 [frames, size, size, 3]; the box fills the frame and y points down."""
    settings = motion.scene.settings
    centres = (np.arange(settings.size, dtype=np.float32) + 0.5) * (settings.box / settings.size)
    grid = np.stack(np.meshgrid(centres, centres, indexing="xy")).reshape(2, -1)
    video = np.empty((settings.frames, grid.shape[1], 3), np.float32)
    video[:] = BACKGROUND
    # Later bodies are drawn over earlier ones; bodies hardly overlap.
    for i, body in enumerate(motion.scene.bodies):
        distance = _signed_distance(body, grid, motion.positions[:, i], motion.angles[:, i])
        # The coverage of a pixel is linear in the distance of its centre to the edge, over a ramp of one pixel.
        coverage = np.clip(0.5 - distance * (settings.size / settings.box), 0.0, 1.0)[..., None]
        video += coverage * (np.asarray(body.colour, np.float32) - video)
    video = np.rint(video * 255).astype(np.uint8)
    return video.reshape(settings.frames, settings.size, settings.size, 3)


def _signed_distance(body: Body, grid: np.ndarray, positions: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Returns the distance of grid points [2, points] to the edge of a body, negative inside, float32 [frames, points].

    Near the corners of a polygon this is the largest distance to the line through an edge and not the distance to the
    corner; the difference is invisible with a ramp of one pixel.
    """
    positions = positions.astype(np.float32)
    corners = body.corners()
    if not len(corners):
        offset = grid[None] - positions[:, :, None]
        return np.sqrt((offset**2).sum(axis=1)) - np.float32(body.radius)
    middles = (corners + np.roll(corners, -1, axis=0)) / 2
    apothem = np.linalg.norm(middles[0])
    # Angles of the normals of the edges, [frames, edges].
    turns = np.arctan2(middles[:, 1], middles[:, 0])[None, :] + angles[:, None]
    normals = np.stack([np.cos(turns), np.sin(turns)], axis=-1).astype(np.float32)
    reach = np.einsum("tek,tk->te", normals, positions) + np.float32(apothem)
    # Without rotation all frames share one projection.
    if (angles == angles[0]).all():
        along = (normals[0] @ grid)[None]
    else:
        along = normals @ grid
    distance = along[:, 0] - reach[:, 0, None]
    for edge in range(1, len(corners)):
        np.maximum(distance, along[:, edge] - reach[:, edge, None], out=distance)
    return distance


def render_audio(motion: Motion) -> np.ndarray:
    """Renders the audio of a motion, int16 [samples]; each contact excites the modes of its bodies."""
    settings = motion.scene.settings
    wave = np.zeros(settings.samples)
    for contact in motion.contacts:
        for index in contact.bodies:
            if index != WALL:
                _add_ringing(wave, motion.scene.bodies[index], contact.time, contact.impulse, settings)
    return np.rint(np.clip(wave, -1.0, 1.0) * _FULL_SCALE).astype(np.int16)


def _add_ringing(wave: np.ndarray, body: Body, time: float, impulse: float, settings: Collisions) -> None:
    """Adds one decaying sine per mode to `wave` in place, starting at `time` with phase 0, which avoids a click."""
    material = material_of(body, settings)
    gain = impulse / settings.full_scale_impulse
    # After this duration, the sound is below half a step of int16.
    duration = material.decay * np.log(max(gain * _FULL_SCALE * 2, 1.0))
    # Without rounding, the sound of a contact at the time of a sample might start one sample late.
    first = int(np.ceil(round(time * settings.sample_rate, 6)))
    last = min(len(wave), first + int(duration * settings.sample_rate) + 1)
    if last <= first:
        return
    t = np.arange(first, last) / settings.sample_rate - time
    pitch = material.frequency * np.sqrt(settings.reference_radius / body.radius)
    modes = np.zeros_like(t)
    for partial, amplitude in zip(settings.partials, settings.partial_gains, strict=True):
        if pitch * partial < settings.sample_rate / 2:
            modes += amplitude * np.sin(2 * np.pi * pitch * partial * t)
    wave[first:last] += gain / sum(settings.partial_gains) * np.exp(-t / material.decay) * modes
