"""Checks of settings; errors state the field, its value and the requirement. Importing this module is cheap."""

import math
from typing import Any

from selfflow.data.dataset import Dataset
from selfflow.errors import UserError


def require(holds: bool, settings: Dataset, name: str, remedy: str) -> None:
    """Raises a `UserError` about the field `name` if a condition does not hold."""
    if not holds:
        raise UserError(f"{settings.kind}.{name} = {getattr(settings, name)!r}: {remedy}")


def is_number(value: Any) -> bool:
    """Returns whether a value is a finite int or float."""
    return isinstance(value, int | float) and math.isfinite(value)


def check_numbers(settings: Dataset, *names: str, whole: bool = False) -> None:
    """Checks that fields are finite numbers, or integers if `whole` is true."""
    for name in names:
        value = getattr(settings, name)
        require(is_number(value), settings, name, "must be a finite number")
        require(isinstance(value, int) or not whole, settings, name, "must be a whole number")


def whole_samples(settings: Dataset, frames: int) -> int:
    """Returns the number of audio samples in a clip of `frames` frames.

    Raises:
      UserError: the clip does not last a whole number of samples.
    """
    # With a fraction of a sample, audio would drift against video from clip to clip.
    samples = frames * settings.sample_rate / settings.frames_per_second
    if abs(samples - round(samples)) > 1e-6:
        raise UserError(
            f"{settings.kind}.sample_rate = {settings.sample_rate}: {frames} frames at "
            f"{settings.frames_per_second:g} Hz last {samples:.3f} samples, not a whole number; change one of the three"
        )
    return round(samples)
