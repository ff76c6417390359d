"""How batches are read."""

from dataclasses import dataclass

from selfflow.errors import UserError


@dataclass(frozen=True)
class LoaderOptions:
    """How batches are read; changes nothing in them and may change while a run goes on."""

    workers: int = 0
    """Processes that read; 0 reads in threads of this one, which is enough for latents on a local disk."""
    threads: int = 2
    """Threads of each process that reads."""
    prefetch: int = 4
    """Batches that are read ahead."""
    unreadable_share: float = 0.01
    """Stop when more than this share of a component's records was unreadable since the start of the process; until then
    such records have weight 0."""

    def __post_init__(self):
        for name, least in (("workers", 0), ("threads", 1), ("prefetch", 1)):
            if getattr(self, name) < least:
                raise UserError(f"loader.{name} is {getattr(self, name)}: it must be at least {least}")
        if not 0 <= self.unreadable_share <= 1:
            raise UserError(f"loader.unreadable_share is {self.unreadable_share}: give a number from 0 to 1")
