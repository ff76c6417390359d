"""Which settings can be."""

import math
from typing import TYPE_CHECKING

from selfflow.errors import UserError

if TYPE_CHECKING:
    from selfflow.data.collisions import Collisions

_POSITIVE = (
    *("frames", "frames_per_second", "size", "sample_rate", "train_clips", "validation_clips", "test_clips"),
    *("shifted_clips", "box", "reference_radius", "full_scale_impulse", "push_seconds", "physics_rate"),
)
_NOT_NEGATIVE = ("seed", "audible_impulse", "informative_impulse", "quiet_end", "workers")
_RANGES = ("bodies", "radius", "shifted_bodies", "shifted_radius", "speed", "push_force")
_WHOLE = ("frames", "size", "sample_rate", "seed", "physics_rate", "workers")


def check(settings: "Collisions") -> None:
    """Refuses settings that no data set can have.

    Raises:
      UserError: names the field, its value and what it may be.
    """
    from selfflow.data.collisions import MATERIAL_NAMES, SHAPE_NAMES, SPLITS

    for name in _POSITIVE + _NOT_NEGATIVE + ("gravity", "push_probability"):
        _number(settings, name, getattr(settings, name))
    for name in _POSITIVE:
        _require(getattr(settings, name) > 0, settings, name, "must be above 0")
    for name in _NOT_NEGATIVE:
        _require(getattr(settings, name) >= 0, settings, name, "must not be negative")
    for name in _WHOLE + tuple(f"{split}_clips" for split in SPLITS):
        _require(isinstance(getattr(settings, name), int), settings, name, "must be a whole number")
    _require(0 <= settings.push_probability <= 1, settings, "push_probability", "must lie in 0 to 1")

    for name in _RANGES:
        bounds = getattr(settings, name)
        _require(len(bounds) == 2, settings, name, "must be two numbers, the least and the largest")
        for bound in bounds:
            _number(settings, name, bound)
        _require(0 < bounds[0] <= bounds[1], settings, name, "must be above 0, the least first")
    for name, radius in (("bodies", "radius"), ("shifted_bodies", "shifted_radius")):
        for bound in getattr(settings, name):
            _require(isinstance(bound, int), settings, name, "must be whole numbers")
        widest = 2 * getattr(settings, radius)[1]
        _require(widest < settings.box, settings, radius, f"must stay below half the box of {settings.box:g}")

    for name, known in (("drawn", MATERIAL_NAMES), ("shapes", SHAPE_NAMES)):
        values = getattr(settings, name)
        _require(len(values) > 0, settings, name, f"must hold at least one of {', '.join(known)}")
        for value in values:
            _require(value in known, settings, name, f"{value!r} is unknown; choose from {', '.join(known)}")
    _require(settings.materials in ("clip", "body"), settings, "materials", "must be 'clip' or 'body'")

    for name in MATERIAL_NAMES:
        material = getattr(settings, name)
        for field in ("restitution", "friction", "frequency", "decay"):
            _number(settings, f"{name}.{field}", getattr(material, field))
        _require(0 <= material.restitution <= 1, settings, name, "its restitution must lie in 0 to 1")
        _require(material.friction >= 0, settings, name, "its friction must not be negative")
        _require(material.frequency > 0, settings, name, "its frequency must be above 0")
        _require(material.decay > 0, settings, name, "its decay must be above 0")
    gains = settings.partial_gains
    _require(
        len(gains) == len(settings.partials) > 0, settings, "partial_gains", "must be as many as partials, one or more"
    )
    _require(min(gains) > 0, settings, "partial_gains", "must be above 0")
    _require(min(settings.partials) > 0, settings, "partials", "must be above 0")

    for name in ("sample_rate", "physics_rate"):
        rate = getattr(settings, name) / settings.frames_per_second
        _require(
            round(rate) >= 1 and abs(rate - round(rate)) < 1e-6,
            settings,
            name,
            f"must be a multiple of frames_per_second = {settings.frames_per_second:g}",
        )
    steps = settings.push_seconds * settings.physics_rate
    whole = round(steps) >= 1 and abs(steps - round(steps)) < 1e-6
    _require(whole, settings, "push_seconds", f"must be a whole number of steps of 1/{settings.physics_rate:g} s")
    seconds = settings.frames / settings.frames_per_second
    _require(settings.push_seconds <= seconds, settings, "push_seconds", f"must not exceed the clip's {seconds:g} s")
    _require(settings.quiet_end < seconds, settings, "quiet_end", f"must stay below the clip's {seconds:g} s")


def _number(settings: "Collisions", name: str, value: object) -> None:
    finite = isinstance(value, (int, float)) and math.isfinite(value)
    if not finite:
        raise UserError(f"collisions.{name} = {value!r}: must be a finite number")


def _require(holds: bool, settings: "Collisions", name: str, remedy: str) -> None:
    if not holds:
        raise UserError(f"collisions.{name} = {getattr(settings, name)!r}: {remedy}")
