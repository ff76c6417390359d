"""Random seeds of a run."""

from dataclasses import dataclass

from selfflow.errors import UserError


@dataclass(frozen=True)
class Seeds:
    """Random seeds of a run. They are separate, so that arms of a study can share some of them."""

    init: int = 0
    """Seed of the initial weights."""
    data: int = 0
    """Seed of the data order."""
    noise: int = 0
    """Seed of noise, noise levels, masks and dropped labels."""

    def __post_init__(self):
        for name in ("init", "data", "noise"):
            if not 0 <= getattr(self, name) < 2**31:
                raise UserError(f"seed.{name} is {getattr(self, name)}: give a number from 0 to 2^31 - 1")
