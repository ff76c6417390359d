"""What is measured of a run's samples while it trains."""

from dataclasses import dataclass

from selfflow.errors import check_at_least


@dataclass(frozen=True)
class Evaluation:
    """What is measured of samples of the EMA, every `cadence.evaluate_every` steps; may change while a run trains."""

    samples: int = 64
    """Samples of each component, compared with twice as many of the test split."""
    shown: int = 4
    """Clips of them that are kept as files, and shown in TensorBoard."""
    features: tuple[str, ...] = ("layer", "logmel")
    """Whose features the distances are between: layer (the run's own teacher block) or layer=K, effnet, logmel,
    birdnet, inception=FILE, i3d=FILE, clap=FOLDER. Each is asked of the media that it looks at."""

    def __post_init__(self):
        check_at_least(self, "evaluation.", samples=4, shown=0)
