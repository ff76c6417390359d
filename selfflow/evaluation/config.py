"""Settings of the evaluation of samples during training."""

from dataclasses import dataclass

from selfflow.errors import check_at_least


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of samples of the EMA every `cadence.evaluate_every` steps. Fields may change while a run trains."""

    samples: int = 64
    """Samples of each component; the reference is twice as many clips of the test split."""
    shown: int = 4
    """Samples that are written to files and to TensorBoard."""
    features: tuple[str, ...] = ("layer", "logmel")
    """Features of the distances: layer (the run's own teacher block) or layer=K, effnet, logmel, birdnet,
    inception=FILE, i3d=FILE, clap=FOLDER; each for the modalities that it applies to."""

    def __post_init__(self):
        check_at_least(self, "evaluation.", samples=4, shown=0)
