"""Collisions: rigid bodies seen from above that sound when they touch; an embedded data set for runs of minutes.

Sight and sound share their causes: a contact changes velocities and rings the material. This module holds
the settings and is light; simulation, rendering and TFDS are imported when a set is built.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selfflow.serialization import digest

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

MATERIAL_NAMES = ("felt", "wood", "stone", "steel")
SHAPE_NAMES = ("circle", "square", "triangle")
SPLITS = ("train", "validation", "test", "shifted")


@dataclass(frozen=True)
class Material:
    """What a body is made of: how it bounces, how it slides and how it sounds."""

    restitution: float = 0.5
    """Normal speed after a contact with a wall over the speed before it, 0 to 1; two bodies multiply theirs."""
    friction: float = 0.5
    """Coulomb coefficient against a wall; two bodies multiply theirs."""
    frequency: float = 440.0
    """Frequency of the first mode at the reference radius, Hz."""
    decay: float = 0.1
    """Time in which the sound falls to 1/e, seconds."""


@dataclass(frozen=True)
class Collisions:
    """The settings of the Collisions data set; a changed setting is another data set on disk."""

    kind: Literal["collisions"] = "collisions"
    """Tells this data set from the others in an experiment file."""
    frames: int = 25
    """Frames of a clip; frame i shows the state at the start of its window, i / frames_per_second."""
    frames_per_second: float = 12.5
    """Frames per second; a clip lasts frames / frames_per_second seconds."""
    size: int = 32
    """Height and width of a frame, pixels; the box fills the frame."""
    sample_rate: int = 8000
    """Samples of sound per second; must give a whole number per frame."""
    train_clips: int = 4096
    """Clips of the split train."""
    validation_clips: int = 512
    """Clips of the split validation."""
    test_clips: int = 1024
    """Clips of the split test."""
    shifted_clips: int = 512
    """Clips of the split shifted: more and larger bodies than any clip of train."""
    seed: int = 0
    """Seed of the whole set; every clip draws from (seed, split, index), so that splits share none."""
    box: float = 64.0
    """Side of the square box, units."""
    bodies: tuple[int, int] = (1, 3)
    """Fewest and most bodies of a clip."""
    radius: tuple[float, float] = (6.0, 9.0)
    """Least and largest radius of a body's circumscribed circle, units."""
    shifted_bodies: tuple[int, int] = (4, 4)
    """Fewest and most bodies of a clip of the split shifted."""
    shifted_radius: tuple[float, float] = (10.0, 12.0)
    """Least and largest radius of a body in the split shifted, units."""
    speed: tuple[float, float] = (40.0, 160.0)
    """Least and largest speed at the start, log-uniform, units per second."""
    shapes: tuple[str, ...] = SHAPE_NAMES
    """Shapes to draw from."""
    materials: Literal["clip", "body"] = "clip"
    """One material per clip, which labels the clip, or one per body (label -1)."""
    drawn: tuple[str, ...] = MATERIAL_NAMES
    """Materials to draw from; labels always count in the order felt, wood, stone, steel."""
    felt: Material = Material(restitution=0.45, friction=0.9, frequency=220.0, decay=0.03)
    """Soft: loses most of its speed and grips, a dull thud."""
    wood: Material = Material(restitution=0.60, friction=0.6, frequency=400.0, decay=0.06)
    """Bounces somewhat, knocks."""
    stone: Material = Material(restitution=0.76, friction=0.3, frequency=730.0, decay=0.11)
    """Bounces well."""
    steel: Material = Material(restitution=0.92, friction=0.05, frequency=1330.0, decay=0.2)
    """Loses almost nothing and rings."""
    partials: tuple[float, ...] = (1.0, 1.59, 2.14)
    """Frequencies of a body's modes over that of its first; those above half the sample rate are left out."""
    partial_gains: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Relative amplitudes of the modes."""
    reference_radius: float = 7.5
    """Radius at which a material's frequency holds; pitch goes with sqrt(reference_radius / radius)."""
    audible_impulse: float = 300.0
    """A contact with less impulse makes no sound and is not listed, units of area times units per second."""
    full_scale_impulse: float = 200_000.0
    """Impulse whose sound starts with full scale as its envelope; one gain for all clips."""
    push_probability: float = 0.5
    """Share of the clips with a push."""
    push_seconds: float = 0.08
    """Length of a push, seconds."""
    push_force: tuple[float, float] = (50_000.0, 200_000.0)
    """Least and largest force of a push, log-uniform, any direction; mass is area."""
    physics_rate: int = 1000
    """Steps of the physics per second; must give a whole number per frame."""
    gravity: float = 0.0
    """Acceleration towards the bottom of the frame, units per second squared; lets single frames leak the material."""
    rotation: bool = False
    """Whether bodies turn; off, their moment is infinite."""
    informative_impulse: float = 2_000.0
    """Least momentum along the normal that the first contact of every clip must meet, whatever the material."""
    quiet_end: float = 0.4
    """That first contact comes at least this long before the end, seconds."""
    workers: int = 0
    """Processes that generate; 0 takes every core it may use, at most 32. Does not change the records."""

    def __post_init__(self):
        from selfflow.data.collisions.check import check

        check(self)

    @property
    def seconds(self) -> float:
        """Length of a clip."""
        return self.frames / self.frames_per_second

    @property
    def samples(self) -> int:
        """Samples of sound in a clip."""
        return round(self.seconds * self.sample_rate)

    @property
    def licence(self) -> str:
        """Licence of the records."""
        return "Apache-2.0"

    def media_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the media of a record, by modality."""
        still = (self.size, self.size, 3)
        return {"video": (self.frames, *still), "audio": (self.samples,), "image": still}

    @property
    def slots(self) -> int:
        """Length of the per-body axes of a record, at least 4."""
        return max(4, self.bodies[1], self.shifted_bodies[1])

    @property
    def config_name(self) -> str:
        """Name of the TFDS config: every setting that changes a record changes it."""
        own, default = _digest(self), _digest(Collisions())
        return f"{'default' if own == default else 'custom'}_{own}"

    def clips(self, split: str) -> int:
        """Number of clips of `split`."""
        return getattr(self, f"{split}_clips")

    def build(self, data_dir: Path) -> "tfds.core.DatasetBuilder":
        """Returns the TFDS builder of this set under `data_dir`; generates the set first if it is not there.

        Read it with `builder.as_data_source("train")`.

        Raises:
          UserError: a setting cannot be, `data_dir` cannot be written, or a worker process died.
        """
        from selfflow.data.collisions.builder import build

        return build(self, Path(data_dir))


def _digest(settings: Collisions) -> str:
    values = dataclasses.asdict(settings)
    del values["workers"]
    return digest(_plain(values), 10)


def _plain(value):
    """`value` for the hash: equal settings give equal text, so 1 and 1.0, and lists and tuples, are one."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return float(value) if isinstance(value, (int, float)) else value
