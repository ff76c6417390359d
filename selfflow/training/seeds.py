"""Seeds of the random numbers of a run."""

from dataclasses import dataclass

from selfflow.errors import UserError


@dataclass(frozen=True)
class Seeds:
    """Three seeds, so that the arms of a comparison can share some of them."""

    init: int = 0
    """Initial weights."""
    data: int = 0
    """Order of the data."""
    noise: int = 0
    """Noise, levels, masks and dropped labels."""

    def __post_init__(self):
        for name in ("init", "data", "noise"):
            if not 0 <= getattr(self, name) < 2**31:
                raise UserError(f"seed.{name} is {getattr(self, name)}: give a number from 0 to 2^31 - 1")
