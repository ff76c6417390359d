"""Checks of settings, whose errors name the field, its value and what it must be. Importing this module is cheap."""

import math
from typing import Any

from selfflow.data.dataset import Dataset
from selfflow.errors import UserError


def require(holds: bool, settings: Dataset, name: str, remedy: str) -> None:
    """Raises a `UserError` about the field `name`, unless a condition holds."""
    if not holds:
        raise UserError(f"{settings.kind}.{name} = {getattr(settings, name)!r}: {remedy}")


def is_number(value: Any) -> bool:
    """Whether a value is a finite int or float."""
    return isinstance(value, int | float) and math.isfinite(value)


def check_numbers(settings: Dataset, *names: str, whole: bool = False) -> None:
    """Checks that fields are finite numbers; with `whole`, integers."""
    for name in names:
        value = getattr(settings, name)
        require(is_number(value), settings, name, "must be a finite number")
        require(isinstance(value, int) or not whole, settings, name, "must be a whole number")


def whole_samples(settings: Dataset, frames: int) -> int:
    """Audio samples of a clip of some frames.

    Raises:
      UserError: the clip does not last a whole number of samples.
    """
    # A fraction of a sample would let audio drift against video from clip to clip.
    samples = frames * settings.sample_rate / settings.frames_per_second
    if abs(samples - round(samples)) > 1e-6:
        raise UserError(
            f"{settings.kind}.sample_rate = {settings.sample_rate}: {frames} frames at "
            f"{settings.frames_per_second:g} Hz last {samples:.3f} samples, not a whole number; change one of the three"
        )
    return round(samples)
