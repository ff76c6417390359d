"""Simulation of a scene with pymunk."""

import math
from dataclasses import dataclass, field

import numpy as np
import pymunk

from selfflow.data.collisions import Collisions, Material
from selfflow.data.collisions.names import MATERIAL_NAMES
from selfflow.data.collisions.scene import Body, Push, Scene
from selfflow.errors import UserError

WALL = -1
_WALL_THICKNESS = 32.0


@dataclass(frozen=True)
class Contact:
    """A contact of two bodies, or of a body and a wall, at its first simulation step."""

    time: float
    """Seconds; velocities change at this time."""
    bodies: tuple[int, int]
    """Indices of the bodies, the lower one first; -1, always second, stands for a wall."""
    impulse: float
    """Length of the impulse vector, units of mass times units per second."""


@dataclass(frozen=True)
class Motion:
    """The simulated motion of a scene.

    Row i of an array is the state at the time i / frames_per_second, after any contact at this time.
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
    """Time of the first contact, audible or not, seconds; infinite without a contact."""
    first_momentum: float
    """Momentum along the normal before the first contact, which does not depend on the material; 0 without a
    contact."""
    action: np.ndarray
    """Mean force in the window of each frame, and position of the pushed body at the start of the push, float64
    [frames, 4]."""


@dataclass
class _ContactRecorder:
    """Records contacts, through callbacks of pymunk.

    Attributes:
      now: time of the current step, seconds.
      contacts: all contacts, by time.
      first_momentum: momentum along the normal of the first contact, by its time.
    """

    now: float = 0.0
    contacts: list[Contact] = field(default_factory=list)
    first_momentum: dict[float, float] = field(default_factory=dict)

    def begin(self, arbiter: pymunk.Arbiter, space: pymunk.Space, data: None) -> None:
        """Records the momentum of the first contact, before the solver applies a restitution."""
        if not self.first_momentum or self.now in self.first_momentum:
            a, b = (shape.body for shape in arbiter.shapes)
            momentum = abs((a.velocity - b.velocity).dot(arbiter.normal)) / (1 / a.mass + 1 / b.mass)
            self.first_momentum[self.now] = max(momentum, self.first_momentum.get(self.now, 0.0))

    def post_solve(self, arbiter: pymunk.Arbiter, space: pymunk.Space, data: None) -> None:
        """Records a contact with its impulse, which is not yet known in `begin`.

        Only the first step of a contact is recorded, so that a lasting contact (sliding, resting, pushing against a
        wall) does not repeat its sound.
        """
        if not arbiter.is_first_contact:
            return
        # The collision type of body i is i + 1, and that of a wall is 0.
        low, high = sorted(shape.collision_type - 1 for shape in arbiter.shapes)
        pair = (high, WALL) if low == WALL else (low, high)
        self.contacts.append(Contact(self.now, pair, arbiter.total_impulse.length))


def material_of(body: Body, settings: Collisions) -> Material:
    """Returns the material of a body.

    Raises:
      UserError: the name of the material is unknown.
    """
    if body.material not in MATERIAL_NAMES:
        raise UserError(f"body.material: {body.material!r} is not a material; choose from {', '.join(MATERIAL_NAMES)}")
    return getattr(settings, body.material)


def simulate(scene: Scene) -> Motion:
    """Simulates a scene.

    Each step moves the bodies, detects contacts and then changes velocities, so that the time of a contact is the end
    of its first step. Without gravity, velocities change only at contacts and by the push.
    """
    settings = scene.settings
    steps_per_frame = round(settings.physics_rate / settings.frames_per_second)
    space = pymunk.Space()
    space.gravity = (0.0, settings.gravity)
    # With a larger slop, bodies at rest against each other would stay in contact and hide the next collision.
    space.collision_slop = 0.01
    _add_walls(space, settings.box)
    bodies = [_add_body(space, i, body, settings) for i, body in enumerate(scene.bodies)]
    recorder = _ContactRecorder()
    space.on_collision(begin=recorder.begin, post_solve=recorder.post_solve)

    push_steps = _push_steps(scene.push, settings)
    pushed_at = None
    states = []
    for i in range(settings.frames * steps_per_frame):
        if i % steps_per_frame == 0:
            states.append([(*body.position, *body.velocity, body.angle) for body in bodies])
        if i in push_steps:
            body = bodies[scene.push.body]
            # The position at the start of the push is part of the action.
            if pushed_at is None:
                pushed_at = tuple(body.position)
            # pymunk resets forces after every step.
            body.force = scene.push.force
        recorder.now = (i + 1) / settings.physics_rate
        space.step(1.0 / settings.physics_rate)

    action = np.zeros((settings.frames, 4))
    for i in push_steps:
        if i < settings.frames * steps_per_frame:
            action[i // steps_per_frame, :2] += np.array(scene.push.force) / steps_per_frame
            action[i // steps_per_frame, 2:] = pushed_at
    state = np.array(states)
    return Motion(
        scene=scene,
        positions=state[..., 0:2],
        velocities=state[..., 2:4],
        angles=state[..., 4],
        contacts=tuple(contact for contact in recorder.contacts if contact.impulse >= settings.audible_impulse),
        first_time=min(recorder.first_momentum, default=math.inf),
        first_momentum=max(recorder.first_momentum.values(), default=0.0),
        action=action,
    )


def _push_steps(push: Push | None, settings: Collisions) -> range:
    """Returns the simulation steps in which the force of the push acts."""
    if push is None:
        return range(0)
    start = math.ceil(push.start * settings.physics_rate - 1e-6)
    return range(start, start + round(settings.push_seconds * settings.physics_rate))


def _add_walls(space: pymunk.Space, box: float) -> None:
    # Thick walls prevent tunnelling; their inner faces lie on the box.
    low, high = -_WALL_THICKNESS, box + _WALL_THICKNESS
    corners = (low, low), (high, low), (high, high), (low, high)
    for a, b in zip(corners, corners[1:] + corners[:1], strict=True):
        wall = pymunk.Segment(space.static_body, a, b, _WALL_THICKNESS)
        # pymunk multiplies the values of both shapes, so that 1 leaves the value of the body unchanged.
        wall.elasticity = wall.friction = 1.0
        wall.collision_type = 0
        space.add(wall)


def _add_body(space: pymunk.Space, index: int, body: Body, settings: Collisions) -> pymunk.Body:
    material = material_of(body, settings)
    corners = [tuple(corner) for corner in body.corners().tolist()]
    # An infinite moment of inertia keeps bodies from turning.
    moment = math.inf
    if settings.rotation:
        disc = pymunk.moment_for_circle(body.mass, 0, body.radius)
        moment = pymunk.moment_for_poly(body.mass, corners) if corners else disc
    rigid = pymunk.Body(body.mass, moment)
    rigid.position, rigid.velocity, rigid.angle = body.position, body.velocity, body.angle
    shape = pymunk.Poly(rigid, corners) if corners else pymunk.Circle(rigid, body.radius)
    shape.elasticity, shape.friction = material.restitution, material.friction
    shape.collision_type = index + 1
    space.add(rigid, shape)
    return rigid
