"""Settings shared by all generated data sets. Importing this module is cheap."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from selfflow.data.checks import check_numbers, whole_samples
from selfflow.data.dataset import Dataset
from selfflow.errors import check_above_zero, check_at_least
from selfflow.serialization import digest


@dataclass(frozen=True)
class GeneratedSettings(Dataset):
    """Clips of video and audio on one clock, in splits of a given size; other settings define another data set."""

    frames: int = 25
    """Frames of a clip; frame i shows the state at i / frames_per_second."""
    frames_per_second: float = 12.5
    """Frames per second; a clip lasts frames / frames_per_second seconds."""
    size: int = 32
    """Height and width of a frame, pixels."""
    sample_rate: int = 8000
    """Samples of audio per second; must give a whole number per clip."""
    train_clips: int = 512
    """Clips of the split train."""
    validation_clips: int = 64
    """Clips of the split validation."""
    test_clips: int = 64
    """Clips of the split test."""
    seed: int = 0
    """Seed of the whole data set; every clip draws from (seed, split, index), so that splits share none."""
    splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test")

    def __post_init__(self):
        clips = [f"{split}_clips" for split in self.splits]
        # Types first, because comparisons of other types raise errors of their own.
        check_numbers(self, "frames_per_second")
        check_numbers(self, "frames", "size", "sample_rate", "seed", *clips, whole=True)
        check_above_zero(self, f"{self.kind}.", "frames", "frames_per_second", "size", "sample_rate", "train_clips")
        check_at_least(self, f"{self.kind}.", seed=0, **dict.fromkeys(clips, 0))
        whole_samples(self, self.frames)

    @property
    def seconds(self) -> float:
        """Duration of a clip."""
        return self.frames / self.frames_per_second

    @property
    def samples(self) -> int:
        """Audio samples of a clip."""
        return round(self.seconds * self.sample_rate)

    def clips(self, split: str) -> int:
        """Number of clips of `split`."""
        return getattr(self, f"{split}_clips")

    def media_shapes(self, folder: Path | None = None) -> dict[str, tuple[int, ...]]:
        """Shapes of the media of a record, by modality."""
        image = (self.size, self.size, 3)
        return {"video": (self.frames, *image), "audio": (self.samples,), "image": image}


def settings_hash(settings: GeneratedSettings, ignored: Collection[str] = ()) -> str:
    """Returns a hash of all settings that change a record; equal values of other types, such as 1 and 1.0, are equal
    here."""
    values = {name: value for name, value in dataclasses.asdict(settings).items() if name not in ignored}
    return digest(_canonical(values), 10)


def _canonical(value: Any) -> Any:
    """`value` with all numbers as floats and all tuples as lists."""
    if isinstance(value, dict):
        return {key: _canonical(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(entry) for entry in value]
    return float(value) if isinstance(value, int | float) else value
