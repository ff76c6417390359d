"""Corruptions of clips that the verifier should detect, for its calibration.

Corrupted videos are rendered from the motion of a clip (`selfflow.data.collisions.generate.draw_motion`).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from selfflow.data.collisions.render import render_video
from selfflow.data.collisions.simulate import Motion, simulate

_MIN_JUMP = 12.0  # units
_SMALLEST = 0.6  # relative to the radius
_GRAVITY = 60.0  # units per second^2
_OUTSIDE = -1e3  # units; not visible there


def shift(audio: np.ndarray, samples: int) -> np.ndarray:
    """Delays audio [S] by `samples`, or advances it if negative; the rest is silent."""
    shifted = np.zeros_like(audio)
    samples = int(np.clip(samples, -len(audio), len(audio)))
    if samples >= 0:
        shifted[samples:] = audio[: len(audio) - samples]
    else:
        shifted[:samples] = audio[-samples:]
    return shifted


def random_partners(count: int, seed: int = 0) -> np.ndarray:
    """Index of another clip for each of `count` clips, int [count]; -1 with a single clip."""
    if count < 2:
        return np.full(count, -1)
    offset = np.random.default_rng(seed).integers(1, count, size=count)
    return (np.arange(count) + offset) % count


def hard_partners(materials: Sequence[int], contacts: Sequence[int], seed: int = 0) -> np.ndarray:
    """Index of another clip of the same material and number of audible contacts for each clip, int [n]; -1 for none."""
    order = np.random.default_rng(seed).permutation(len(materials))
    groups: dict[tuple[int, int], list[int]] = {}
    for i in order:
        groups.setdefault((int(materials[i]), int(contacts[i])), []).append(int(i))
    partners = np.full(len(materials), -1)
    for group in groups.values():
        if len(group) > 1:
            partners[group] = np.roll(group, 1)
    return partners


def teleported(motion: Motion, rng: np.random.Generator) -> np.ndarray | None:
    """Mirrors the path of one body from a frame in the middle on; None if no body would jump far enough."""
    return _mirrored(motion, rng, copy=False)


def duplicated(motion: Motion, rng: np.random.Generator) -> np.ndarray | None:
    """Adds a mirrored copy of one body from a frame in the middle on; None if every copy would overlap the body."""
    return _mirrored(motion, rng, copy=True)


def _mirrored(motion: Motion, rng: np.random.Generator, copy: bool) -> np.ndarray | None:
    """Mirrors the path of one body from a frame on, in place of the path or as a copy next to it."""
    # A mirrored path is as plausible as the path itself, except for the jump in its first frame.
    frames, number = motion.positions.shape[:2]
    frame, box = int(rng.integers(frames // 4, frames - frames // 4)), motion.scene.settings.box
    jump = np.abs(box - 2 * motion.positions[frame])  # [bodies, axes]
    min_jump = [2.5 * body.radius if copy else _MIN_JUMP for body in motion.scene.bodies]
    choices = np.argwhere(jump >= np.array(min_jump)[:, None])
    if not len(choices):
        return None
    body, axis = choices[rng.integers(len(choices))]
    mirrored = motion.positions[:, body].copy()
    mirrored[:, axis] = box - mirrored[:, axis]
    positions, angles, scene = motion.positions.copy(), motion.angles, motion.scene
    if copy:
        mirrored[:frame] = _OUTSIDE
        positions = np.concatenate([positions, mirrored[:, None]], axis=1)
        angles = np.concatenate([angles, angles[:, body : body + 1]], axis=1)
        scene = replace(scene, bodies=scene.bodies + (scene.bodies[body],))
    else:
        positions[frame:, body] = mirrored[frame:]
    return render_video(replace(motion, scene=scene, positions=positions, angles=angles))


def shrinking(motion: Motion, rng: np.random.Generator) -> np.ndarray:
    """Renders a video in which the radius of one body decreases linearly to 0.6 of its value."""
    frames, scene = len(motion.positions), motion.scene
    body = int(rng.integers(len(scene.bodies)))
    # A clip of one frame has no time for a push or a quiet end, which the settings check.
    settings = replace(scene.settings, frames=1, quiet_end=0.0, push_seconds=1 / scene.settings.physics_rate)
    video = []
    for i, scale in enumerate(np.linspace(1, _SMALLEST, frames)):
        bodies = list(scene.bodies)
        bodies[body] = replace(bodies[body], radius=bodies[body].radius * float(scale))
        scene_of_frame = replace(scene, bodies=tuple(bodies), settings=settings)
        one = slice(i, i + 1)
        frame = replace(motion, scene=scene_of_frame, positions=motion.positions[one], angles=motion.angles[one])
        video.append(render_video(frame))
    return np.concatenate(video)


def passing(motion: Motion) -> np.ndarray | None:
    """Renders bodies that pass through each other; None if they would overlap too little."""
    scene = motion.scene
    alone = []
    for i, body in enumerate(scene.bodies):
        # Each body is simulated alone, as body 0.
        push = replace(scene.push, body=0) if scene.push is not None and scene.push.body == i else None
        alone.append(simulate(replace(scene, bodies=(body,), push=push)).positions)
    positions = np.concatenate(alone, axis=1)
    for i in range(len(scene.bodies)):
        for j in range(i):
            # Circles of this size fit into every shape: the inscribed circle of a square has 0.7 of its radius, the
            # inscribed circle of a triangle 0.5.
            near = 0.5 * (scene.bodies[i].radius + scene.bodies[j].radius)
            if (np.linalg.norm(positions[:, i] - positions[:, j], axis=1) < near).any():
                return render_video(replace(motion, positions=positions))
    return None


def falling(motion: Motion) -> np.ndarray:
    """Renders the same scene with gravity: velocities change without contacts."""
    settings = replace(motion.scene.settings, gravity=_GRAVITY)
    return render_video(simulate(replace(motion.scene, settings=settings)))
