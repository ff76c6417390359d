"""Scene -> motion: positions, velocities and contacts, by pymunk."""

import math
from dataclasses import dataclass

import numpy as np
import pymunk

from selfflow.data.collisions import Collisions, Material
from selfflow.data.collisions.names import MATERIAL_NAMES
from selfflow.data.collisions.scene import Body, Scene
from selfflow.errors import UserError

WALL = -1
_WALL_THICKNESS = 32.0


@dataclass(frozen=True)
class Contact:
    """A touch of two bodies, or of a body and a wall, at its first step."""

    time: float
    """Seconds; velocities change at this time."""
    bodies: tuple[int, int]
    """The bodies, the lower index first; -1, always second, is the wall."""
    impulse: float
    """Length of the impulse vector, units of mass times units per second."""


@dataclass(frozen=True)
class Motion:
    """What happened in a scene. Row i of an array is the state at time i / frames_per_second.

    A contact at that very time has already changed it.
    """

    scene: Scene
    positions: np.ndarray
    """Centres of mass, units, float64 [frames, bodies, 2]."""
    velocities: np.ndarray
    """Units per second, float64 [frames, bodies, 2]."""
    angles: np.ndarray
    """Radians, float64 [frames, bodies]."""
    contacts: tuple[Contact, ...]
    """The audible contacts, by time."""
    first_time: float
    """Time of the first contact of all, audible or not, seconds; infinite where there is none."""
    first_momentum: float
    """Momentum along the normal that it met, before any material came into play; 0 where there is none."""
    action: np.ndarray
    """Mean force over each frame's window and the pushed body's position at the push's start, float64 [frames, 4]."""


def material_of(body: Body, world: Collisions) -> Material:
    """The material that `body` names.

    Raises:
      UserError: there is none of that name.
    """
    if body.material not in MATERIAL_NAMES:
        raise UserError(f"body.material: {body.material!r} is no material; choose from {', '.join(MATERIAL_NAMES)}")
    return getattr(world, body.material)


def simulate(scene: Scene) -> Motion:
    """Runs the physics of `scene`.

    Each step moves the bodies, finds the contacts and then changes the velocities, so that a contact's time
    is the end of the step that found it. With no gravity nothing but a contact or the push changes a velocity.
    """
    world = scene.world
    step = 1.0 / world.physics_rate
    steps_per_frame = round(world.physics_rate / world.frames_per_second)
    space = pymunk.Space()
    space.gravity = (0.0, world.gravity)
    # Bodies at rest against each other would otherwise stay "in contact" for long and swallow the next hit.
    space.collision_slop = 0.01
    _add_walls(space, world.box)
    bodies = [_add_body(space, i, body, world) for i, body in enumerate(scene.bodies)]

    contacts: list[Contact] = []
    first_momentum: dict[float, float] = {}
    now = 0.0

    def meet(arbiter: pymunk.Arbiter, space: pymunk.Space, data: None) -> None:
        if not first_momentum or now in first_momentum:
            a, b = (shape.body for shape in arbiter.shapes)
            momentum = abs((a.velocity - b.velocity).dot(arbiter.normal)) / (1 / a.mass + 1 / b.mass)
            first_momentum[now] = max(momentum, first_momentum.get(now, 0.0))

    def touch(arbiter: pymunk.Arbiter, space: pymunk.Space, data: None) -> None:
        # post_solve, because begin knows no impulse yet; the first step only, because a contact that lasts
        # (sliding, resting, being pushed against a wall) must not buzz.
        if not arbiter.is_first_contact:
            return
        low, high = sorted(shape.collision_type - 1 for shape in arbiter.shapes)
        pair = (high, WALL) if low == WALL else (low, high)
        contacts.append(Contact(now, pair, arbiter.total_impulse.length))

    space.on_collision(begin=meet, post_solve=touch)

    push_steps = range(0)
    if scene.push is not None:
        start = math.ceil(scene.push.start * world.physics_rate - 1e-6)
        push_steps = range(start, start + round(world.push_seconds * world.physics_rate))
    pushed_at = None
    states = []
    for i in range(world.frames * steps_per_frame):
        if i % steps_per_frame == 0:
            states.append([(*body.position, *body.velocity, body.angle) for body in bodies])
        if i in push_steps:
            body = bodies[scene.push.body]
            if pushed_at is None:
                pushed_at = tuple(body.position)
            body.force = scene.push.force
        now = (i + 1) / world.physics_rate
        space.step(step)

    state = np.array(states)
    action = np.zeros((world.frames, 4))
    for i in push_steps:
        if i < world.frames * steps_per_frame:
            action[i // steps_per_frame, :2] += np.array(scene.push.force) / steps_per_frame
            action[i // steps_per_frame, 2:] = pushed_at
    return Motion(
        scene=scene,
        positions=state[..., 0:2],
        velocities=state[..., 2:4],
        angles=state[..., 4],
        contacts=tuple(contact for contact in contacts if contact.impulse >= world.audible_impulse),
        first_time=min(first_momentum, default=math.inf),
        first_momentum=max(first_momentum.values(), default=0.0),
        action=action,
    )


def _add_walls(space: pymunk.Space, box: float) -> None:
    # Thick, so that nothing tunnels, and with their inner faces on the box.
    low, high = -_WALL_THICKNESS, box + _WALL_THICKNESS
    corners = (low, low), (high, low), (high, high), (low, high)
    for a, b in zip(corners, corners[1:] + corners[:1], strict=True):
        wall = pymunk.Segment(space.static_body, a, b, _WALL_THICKNESS)
        wall.elasticity = wall.friction = 1.0
        wall.collision_type = 0
        space.add(wall)


def _add_body(space: pymunk.Space, index: int, body: Body, world: Collisions) -> pymunk.Body:
    material = material_of(body, world)
    corners = [tuple(corner) for corner in body.corners().tolist()]
    moment = math.inf
    if world.rotation:
        disc = pymunk.moment_for_circle(body.mass, 0, body.radius)
        moment = pymunk.moment_for_poly(body.mass, corners) if corners else disc
    rigid = pymunk.Body(body.mass, moment)
    rigid.position, rigid.velocity, rigid.angle = body.position, body.velocity, body.angle
    shape = pymunk.Poly(rigid, corners) if corners else pymunk.Circle(rigid, body.radius)
    shape.elasticity, shape.friction = material.restitution, material.friction
    shape.collision_type = index + 1
    space.add(rigid, shape)
    return rigid
