"""Clips that are wrong in a known way, to calibrate the verifier on: each of these it should tell from the real one.

Videos are drawn anew from the motion of a clip (`selfflow.data.collisions.generate.draw_motion`).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from selfflow.data.collisions.render import render_video
from selfflow.data.collisions.simulate import Motion, simulate

_LEAST_JUMP = 12.0
_SMALLEST = 0.6
_GRAVITY = 60.0
_FAR = -1e3


def shift(sound: np.ndarray, samples: int) -> np.ndarray:
    """Sound [S] late by `samples`, or early where negative; silence fills up."""
    out = np.zeros_like(sound)
    samples = int(np.clip(samples, -len(sound), len(sound)))
    if samples >= 0:
        out[samples:] = sound[: len(sound) - samples]
    else:
        out[:samples] = sound[-samples:]
    return out


def random_partners(count: int, seed: int = 0) -> np.ndarray:
    """For each of `count` clips another one, int [count]; -1 where there is no other."""
    if count < 2:
        return np.full(count, -1)
    away = np.random.default_rng(seed).integers(1, count, size=count)
    return (np.arange(count) + away) % count


def hard_partners(materials: Sequence[int], contacts: Sequence[int], seed: int = 0) -> np.ndarray:
    """For each clip another one of the same material and number of audible contacts, int [n]; -1 where none is."""
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
    """From a frame in the middle on one body goes on at the other side of the box; None if none would jump far."""
    return _mirrored(motion, rng, copy=False)


def duplicated(motion: Motion, rng: np.random.Generator) -> np.ndarray | None:
    """From a frame in the middle on there is a second copy of one body, at the other side of the box."""
    return _mirrored(motion, rng, copy=True)


def _mirrored(motion: Motion, rng: np.random.Generator, copy: bool) -> np.ndarray | None:
    # The mirror image moves in lines from wall to wall as the body does, so that only its arrival is wrong.
    frames, number = motion.positions.shape[:2]
    frame, box = int(rng.integers(frames // 4, frames - frames // 4)), motion.scene.world.box
    far = np.abs(box - 2 * motion.positions[frame])  # [bodies, axes]
    # A copy that lies over the body would be no second one.
    least = [2.5 * body.radius if copy else _LEAST_JUMP for body in motion.scene.bodies]
    choices = np.argwhere(far >= np.array(least)[:, None])
    if not len(choices):
        return None
    body, axis = choices[rng.integers(len(choices))]
    mirrored = motion.positions[:, body].copy()
    mirrored[:, axis] = box - mirrored[:, axis]
    positions, angles, scene = motion.positions.copy(), motion.angles, motion.scene
    if copy:
        mirrored[:frame] = _FAR
        positions = np.concatenate([positions, mirrored[:, None]], axis=1)
        angles = np.concatenate([angles, angles[:, body : body + 1]], axis=1)
        scene = replace(scene, bodies=scene.bodies + (scene.bodies[body],))
    else:
        positions[frame:, body] = mirrored[frame:]
    return render_video(replace(motion, scene=scene, positions=positions, angles=angles))


def shrinking(motion: Motion, rng: np.random.Generator) -> np.ndarray:
    """One body's radius falls to 0.6 of what it was over the clip."""
    frames, scene = len(motion.positions), motion.scene
    body = int(rng.integers(len(scene.bodies)))
    world = replace(scene.world, frames=1, quiet_end=0.0, push_seconds=1 / scene.world.physics_rate)
    video = []
    for i, scale in enumerate(np.linspace(1, _SMALLEST, frames)):
        bodies = list(scene.bodies)
        bodies[body] = replace(bodies[body], radius=bodies[body].radius * float(scale))
        still = replace(scene, bodies=tuple(bodies), world=world)
        one = slice(i, i + 1)
        video.append(
            render_video(replace(motion, scene=still, positions=motion.positions[one], angles=motion.angles[one]))
        )
    return np.concatenate(video)


def passing(motion: Motion) -> np.ndarray | None:
    """The bodies pass through each other, each as if it were alone; None if they would hardly overlap."""
    scene = motion.scene
    alone = []
    for i, body in enumerate(scene.bodies):
        push = replace(scene.push, body=0) if scene.push is not None and scene.push.body == i else None
        alone.append(simulate(replace(scene, bodies=(body,), push=push)).positions)
    positions = np.concatenate(alone, axis=1)
    for i in range(len(scene.bodies)):
        for j in range(i):
            # Circles of this size lie within any shape: a square's is 0.7 of its radius, a triangle's half.
            near = 0.5 * (scene.bodies[i].radius + scene.bodies[j].radius)
            if (np.linalg.norm(positions[:, i] - positions[:, j], axis=1) < near).any():
                return render_video(replace(motion, positions=positions))
    return None


def falling(motion: Motion) -> np.ndarray:
    """The same scene in a world with gravity: velocities change with nothing near."""
    world = replace(motion.scene.world, gravity=_GRAVITY)
    return render_video(simulate(replace(motion.scene, world=world)))
