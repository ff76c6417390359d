"""Scenes: the initial state of a clip, with bodies and an optional push, drawn from a seed."""

import math
from dataclasses import dataclass, replace

import numpy as np

from selfflow.data.collisions import Collisions
from selfflow.data.collisions.names import SHAPE_NAMES, SPLITS
from selfflow.errors import UserError

_PLACEMENT_TRIES = 20_000


@dataclass(frozen=True)
class Body:
    """A rigid body. `radius` is the radius of the circumscribed circle; the mass is the area of the shape."""

    shape: str
    material: str
    radius: float
    position: tuple[float, float]
    """Centre of mass, units; x points right and y points down, as in the frame."""
    velocity: tuple[float, float]
    """Units per second."""
    angle: float = 0.0
    """Radians, from x towards y."""
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Red, green, blue, 0 to 1."""

    def corners(self) -> np.ndarray:
        """Returns the corners at angle 0, relative to the centre, [corners, 2]; none for a circle."""
        count = {"circle": 0, "triangle": 3, "square": 4}.get(self.shape)
        if count is None:
            raise UserError(f"body.shape: {self.shape!r} is not a shape; choose from {', '.join(SHAPE_NAMES)}")
        turns = (np.arange(count) + 0.5) * (2 * math.pi / max(count, 1))
        return self.radius * np.stack([np.cos(turns), np.sin(turns)], axis=-1)

    @property
    def mass(self) -> float:
        """Area of the shape: pi r^2, 2 r^2 for a square, (3 sqrt(3) / 4) r^2 for a triangle."""
        count = len(self.corners())
        return self.radius**2 * (count / 2 * math.sin(2 * math.pi / count) if count else math.pi)


@dataclass(frozen=True)
class Push:
    """A constant force on one body, from `start` for `Collisions.push_seconds`."""

    body: int
    start: float
    """Start, seconds; rounded up to a simulation step."""
    force: tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """The input of `simulate`; change a field with `dataclasses.replace` for a counterfactual pair."""

    bodies: tuple[Body, ...]
    push: Push | None = None
    image_frame: int = 0
    """Index of the video frame that is also the image."""
    settings: Collisions = Collisions()

    def with_material(self, material: str) -> "Scene":
        """Returns the same scene with every body made of `material`."""
        return replace(self, bodies=tuple(replace(body, material=material) for body in self.bodies))


def clip_seed(settings: Collisions, split: str, index: int) -> tuple[int, int, int]:
    """Returns the entropy of a clip: (seed, number of the split, index in the split)."""
    return settings.seed, SPLITS.index(split), index


def draw_scene(settings: Collisions, split: str, index: int, attempt: int = 0) -> Scene:
    """Draws the scene of a clip; equal arguments give equal scenes.

    The material is drawn from its own random stream, which does not depend on `attempt`, so that redrawing a scene
    never changes the distribution of materials.

    Raises:
      UserError: the bodies do not fit into the box.
    """
    seed = clip_seed(settings, split, index)
    material_rng = np.random.default_rng([*seed, 0])
    rng = np.random.default_rng([*seed, 1, attempt])
    shifted = split == "shifted"
    fewest, most = settings.shifted_bodies if shifted else settings.bodies
    count = int(rng.integers(fewest, most, endpoint=True))
    radii = rng.uniform(*(settings.shifted_radius if shifted else settings.radius), size=count)
    # Positions depend on all radii.
    positions = _draw_positions(rng, radii, settings.box)
    materials = material_rng.choice(settings.drawn, size=count if settings.materials == "body" else 1)
    bodies = []
    for i in range(count):
        speed = _log_uniform(rng, settings.speed)
        # The order of the arguments is the order of the random draws.
        bodies.append(
            Body(
                shape=str(rng.choice(settings.shapes)),
                material=str(materials[i % len(materials)]),
                radius=float(radii[i]),
                position=(float(positions[i, 0]), float(positions[i, 1])),
                velocity=_random_direction(rng, speed),
                angle=float(rng.uniform(0, 2 * math.pi)),
                colour=_draw_colour(rng),
            )
        )
    push = None
    if rng.uniform() < settings.push_probability:
        # The push starts and ends at a simulation step.
        step = 1 / settings.physics_rate
        latest = settings.seconds - settings.push_seconds
        push = Push(
            body=int(rng.integers(count)),
            start=int(rng.uniform(0, latest) / step) * step,
            force=_random_direction(rng, _log_uniform(rng, settings.push_force)),
        )
    return Scene(tuple(bodies), push, int(rng.integers(settings.frames)), settings)


def _draw_positions(rng: np.random.Generator, radii: np.ndarray, box: float) -> np.ndarray:
    """Draws centres, [bodies, 2], uniformly such that the circumscribed circles are disjoint and inside the box."""
    least_distances = radii[:, None] + radii[None, :]
    np.fill_diagonal(least_distances, 0.0)
    # Rejection sampling is uniform over all valid placements.
    for _ in range(_PLACEMENT_TRIES):
        positions = rng.uniform(radii[:, None], box - radii[:, None], size=(len(radii), 2))
        distances = np.linalg.norm(positions[:, None] - positions[None, :], axis=-1)
        if (distances >= least_distances).all():
            return positions
    raise UserError(
        f"collisions: {len(radii)} bodies of radius {radii.min():.3g} to {radii.max():.3g} do not fit into a box of "
        f"{box:.3g}; lower bodies or radius (shifted_bodies, shifted_radius), or raise box"
    )


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1]))))


def _random_direction(rng: np.random.Generator, length: float) -> tuple[float, float]:
    """Returns a vector of a given length in any direction."""
    angle = rng.uniform(0, 2 * math.pi)
    return length * math.cos(angle), length * math.sin(angle)


def _draw_colour(rng: np.random.Generator) -> tuple[float, float, float]:
    """Returns a saturated, bright colour: any hue, saturation 0.55 to 1, value 0.75 to 1."""
    hue, saturation, value = rng.uniform(0, 6), rng.uniform(0.55, 1), rng.uniform(0.75, 1)
    pure = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return tuple(float(channel) for channel in value * (1 - saturation * (1 - pure)))
