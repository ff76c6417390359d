"""Media: a folder of the user's own videos, audio files and images. Importing this is cheap."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from selfflow.data.checks import check_numbers, whole_samples
from selfflow.data.folder import File, FolderSettings, scan
from selfflow.data.report import Remark
from selfflow.errors import check_above_zero


@dataclass(frozen=True)
class Media(FolderSettings):
    """A folder of videos, audio files and images, cut into clips of one duration, size and rate."""

    kind: Literal["media"] = "media"
    """Name of the data set."""
    frames: int = 25
    """Frames of a video clip."""
    frames_per_second: float = 12.5
    """Frames per second of a video clip."""
    size: int = 32
    """Height and width of frames and images, in pixels: the largest centred square, resized."""
    sample_rate: int = 8000
    """Samples per second of the audio, which is mixed down to one channel."""
    hop_seconds: float = 1.0
    """Distance in seconds between the starts of successive clips of one file."""
    licence: ClassVar[str] = "that of the files in its folder"

    @property
    def clip_seconds(self) -> float:
        """Duration of a clip."""
        return self.frames / self.frames_per_second

    @property
    def samples(self) -> int:
        """Audio samples of a clip.

        Raises:
          UserError: a clip does not last a whole number of samples.
        """
        return whole_samples(self, self.frames)

    def media_shapes(self, folder: Path | None = None) -> dict[str, tuple[int, ...]]:
        """Shapes of the media of a record, by modality; `present` marks those that a record has."""
        image = (self.size, self.size, 3)
        return {"video": (self.frames, *image), "audio": (self.samples,), "image": image}

    def contents(self, data_dir: Path) -> tuple[list[File], list[Remark]]:
        """Returns all files of the folder; the data folder may be inside it and is skipped."""
        outputs = [data_dir / self.kind]
        if os.path.realpath(data_dir) != os.path.realpath(self.folder()):
            outputs.append(data_dir)
        return scan(self, excluded=tuple(outputs))

    def check(self) -> None:
        """Raises UserError, which names the field, if a value is invalid."""
        # Not in __post_init__: the CLI and experiments make settings before their source is known.
        fields = ("frames", "frames_per_second", "size", "sample_rate", "hop_seconds")
        check_numbers(self, *fields)
        check_above_zero(self, "media.", *fields)
        super().check()
        whole_samples(self, self.frames)
