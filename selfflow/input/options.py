"""How batches are read."""

from dataclasses import dataclass

from selfflow.errors import check_at_least, check_fraction


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
        check_at_least(self, "loader.", workers=0, threads=1, prefetch=1)
        check_fraction(self, "loader.", "unreadable_share")
