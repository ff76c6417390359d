"""Collisions: generated clips of rigid bodies, seen from above, that make a sound when they touch.

Video and audio share their causes: a contact changes velocities and excites the modes of the material. Importing this
module is cheap; only the builder imports the simulator, the renderer and TFDS.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from selfflow.data.checks import check_numbers, is_number, require
from selfflow.data.collisions.names import MATERIAL_NAMES, SHAPE_NAMES, SPLITS
from selfflow.data.generated import GeneratedSettings, settings_hash
from selfflow.errors import check_above_zero, check_at_least, check_fraction

if TYPE_CHECKING:
    from selfflow.data.collisions.targets import CollisionsTargets

_RANGES = ("bodies", "radius", "shifted_bodies", "shifted_radius", "speed", "push_force")


@dataclass(frozen=True)
class Material:
    """Restitution, friction and modes of a material."""

    restitution: float = 0.5
    """Normal speed after a contact with a wall over the speed before it, 0 to 1; the values of two bodies in contact
    are multiplied."""
    friction: float = 0.5
    """Coulomb coefficient against a wall; the values of two bodies in contact are multiplied."""
    frequency: float = 440.0
    """Frequency of the first mode at the reference radius, Hz."""
    decay: float = 0.1
    """Time in which the sound falls to 1/e, seconds."""


@dataclass(frozen=True)
class Collisions(GeneratedSettings):
    """The settings of the Collisions data set; other settings define another data set."""

    kind: Literal["collisions"] = "collisions"
    """Name of the data set."""
    train_clips: int = 4096
    """Clips of the split train."""
    validation_clips: int = 512
    """Clips of the split validation."""
    test_clips: int = 1024
    """Clips of the split test."""
    shifted_clips: int = 512
    """Clips of the split shifted: more and larger bodies than any clip of train."""
    box: float = 64.0
    """Side of the square box, which fills the frame, units."""
    bodies: tuple[int, int] = (1, 3)
    """Minimum and maximum number of bodies in a clip."""
    radius: tuple[float, float] = (6.0, 9.0)
    """Minimum and maximum radius of a body's circumscribed circle, units."""
    shifted_bodies: tuple[int, int] = (4, 4)
    """Minimum and maximum number of bodies in a clip of the split shifted."""
    shifted_radius: tuple[float, float] = (10.0, 12.0)
    """Minimum and maximum radius of a body in the split shifted, units."""
    speed: tuple[float, float] = (40.0, 160.0)
    """Minimum and maximum speed at the start, log-uniform, units per second."""
    shapes: tuple[str, ...] = SHAPE_NAMES
    """Shapes to draw from."""
    materials: Literal["clip", "body"] = "clip"
    """One material per clip, which labels the clip, or one per body (label -1)."""
    drawn: tuple[str, ...] = MATERIAL_NAMES
    """Materials to draw from; labels always count in the order felt, wood, stone, steel."""
    felt: Material = Material(restitution=0.45, friction=0.9, frequency=220.0, decay=0.03)
    """A soft material with low restitution, high friction and a dull sound."""
    wood: Material = Material(restitution=0.60, friction=0.6, frequency=400.0, decay=0.06)
    """A material with medium restitution and a short decay."""
    stone: Material = Material(restitution=0.76, friction=0.3, frequency=730.0, decay=0.11)
    """A material with high restitution and low friction."""
    steel: Material = Material(restitution=0.92, friction=0.05, frequency=1330.0, decay=0.2)
    """A hard material with high restitution and a long decay."""
    partials: tuple[float, ...] = (1.0, 1.59, 2.14)
    """Frequencies of the modes over the frequency of the first; modes above half the sample rate are left out."""
    partial_gains: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Relative amplitudes of the modes."""
    reference_radius: float = 7.5
    """Radius of a body with the frequency of its material; frequencies scale with sqrt(reference_radius / radius)."""
    audible_impulse: float = 300.0
    """Minimum impulse of a contact that makes a sound and is listed, units of area times units per second."""
    full_scale_impulse: float = 200_000.0
    """Impulse for which the envelope of the sound starts at full scale; determines the gain of all clips."""
    push_probability: float = 0.5
    """Share of the clips with a push."""
    push_seconds: float = 0.08
    """Duration of a push, seconds."""
    push_force: tuple[float, float] = (50_000.0, 200_000.0)
    """Minimum and maximum force of a push, log-uniform, in any direction; the mass of a body is its area."""
    physics_rate: int = 1000
    """Simulation steps per second; a frame must last a whole number of steps."""
    gravity: float = 0.0
    """Acceleration towards the bottom of the frame, units/s^2; with gravity, single frames reveal the material."""
    rotation: bool = False
    """Whether bodies turn; without rotation their moment of inertia is infinite."""
    informative_impulse: float = 2_000.0
    """Minimum momentum along the normal in the first contact of every clip, for any material."""
    quiet_end: float = 0.4
    """Minimum time between the first contact and the end of the clip, seconds."""
    workers: int = 0
    """Worker processes of the builder; 0 for one per available core, at most 32. Does not change the records."""
    splits: ClassVar[tuple[str, ...]] = SPLITS
    licence: ClassVar[str] = "Apache-2.0"

    def __post_init__(self):
        super().__post_init__()
        positive = ("box", "reference_radius", "full_scale_impulse", "push_seconds")
        not_negative = ("audible_impulse", "informative_impulse", "quiet_end")
        check_numbers(self, *positive, *not_negative, "gravity", "push_probability")
        check_numbers(self, "physics_rate", "workers", whole=True)
        # Every split must have clips, because probes and evaluation need all of them.
        clips = [f"{split}_clips" for split in SPLITS]
        check_above_zero(self, "collisions.", *positive, "physics_rate", *clips)
        check_at_least(self, "collisions.", workers=0, **dict.fromkeys(not_negative, 0))
        check_fraction(self, "collisions.", "push_probability")
        self._check_ranges()
        self._check_materials()
        self._check_times()

    def _check_ranges(self) -> None:
        for name in _RANGES:
            bounds = getattr(self, name)
            two = len(bounds) == 2 and all(map(is_number, bounds))
            require(two, self, name, "must be two finite numbers, minimum and maximum")
            require(0 < bounds[0] <= bounds[1], self, name, "must be above 0, the minimum first")
        # A body as wide as the box cannot be placed.
        for name, radius in (("bodies", "radius"), ("shifted_bodies", "shifted_radius")):
            require(all(isinstance(bound, int) for bound in getattr(self, name)), self, name, "must be whole numbers")
            diameter = 2 * getattr(self, radius)[1]
            require(diameter < self.box, self, radius, f"must stay below half the box of {self.box:g}")
        for name, known in (("drawn", MATERIAL_NAMES), ("shapes", SHAPE_NAMES)):
            values = getattr(self, name)
            require(len(values) > 0, self, name, f"must hold at least one of {', '.join(known)}")
            for value in values:
                require(value in known, self, name, f"{value!r} is unknown; choose from {', '.join(known)}")

    def _check_materials(self) -> None:
        require(self.materials in ("clip", "body"), self, "materials", "must be 'clip' or 'body'")
        for name in MATERIAL_NAMES:
            material = getattr(self, name)
            for field in ("restitution", "friction", "frequency", "decay"):
                require(is_number(getattr(material, field)), self, name, f"its {field} must be a finite number")
            require(0 <= material.restitution <= 1, self, name, "its restitution must lie in 0 to 1")
            require(material.friction >= 0, self, name, "its friction must not be negative")
            require(material.frequency > 0, self, name, "its frequency must be above 0")
            require(material.decay > 0, self, name, "its decay must be above 0")
        # Each partial has one gain.
        as_many = len(self.partial_gains) == len(self.partials) > 0
        require(as_many, self, "partial_gains", "must have one value for each of partials, at least one")
        require(min(self.partial_gains) > 0, self, "partial_gains", "must be above 0")
        require(min(self.partials) > 0, self, "partials", "must be above 0")

    def _check_times(self) -> None:
        # Frames start at a sample and at a simulation step, so that the windows of all media agree.
        for name in ("sample_rate", "physics_rate"):
            remedy = f"must be a multiple of frames_per_second = {self.frames_per_second:g}"
            require(_is_whole(getattr(self, name) / self.frames_per_second), self, name, remedy)
        remedy = f"must be a whole number of steps of 1/{self.physics_rate:g} s"
        require(_is_whole(self.push_seconds * self.physics_rate), self, "push_seconds", remedy)
        fits = self.push_seconds <= self.seconds
        require(fits, self, "push_seconds", f"must not exceed the clip's {self.seconds:g} s")
        require(self.quiet_end < self.seconds, self, "quiet_end", f"must stay below the clip's {self.seconds:g} s")

    @property
    def slots(self) -> int:
        """Length of the per-body axes of a record, at least 4."""
        return max(4, self.bodies[1], self.shifted_bodies[1])

    @property
    def config_name(self) -> str:
        """Name of the TFDS config, which depends on every setting that changes a record."""
        own, default = (settings_hash(settings, ignored=("workers",)) for settings in (self, Collisions()))
        return f"{'default' if own == default else 'custom'}_{own}"

    @property
    def ground_truth(self) -> "CollisionsTargets":
        """Shapes, contacts, positions and velocities of the bodies as probe targets."""
        from selfflow.data.collisions.targets import CollisionsTargets

        return CollisionsTargets(self.seconds, self.box, self.frames_per_second)

    @property
    def verifier(self) -> str:
        """Name of the verifier; "" with gravity, because the verifier fits straight lines to the motion of bodies."""
        return "" if self.gravity else "physics"


def _is_whole(value: float) -> bool:
    return round(value) >= 1 and abs(value - round(value)) < 1e-6
