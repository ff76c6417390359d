"""A folder of the user's own videos, sounds and images as a data set. Importing this is cheap."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selfflow.data.folder import FolderSettings
from selfflow.data.report import format_report, read_report
from selfflow.errors import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

__all__ = ["Media", "format_report", "read_report"]


@dataclass(frozen=True)
class Media(FolderSettings):
    """A folder of videos, sounds and images, cut into clips of one length, size and rate."""

    kind: Literal["media"] = "media"
    """Which data set this is."""
    frames: int = 25
    """Frames of a video clip."""
    frames_per_second: float = 12.5
    """Frames per second of a video clip."""
    size: int = 32
    """Height and width of frames and images, in pixels: the largest centred square, resized."""
    sample_rate: int = 8000
    """Samples per second of the sound, which is mixed down to one channel."""
    hop_seconds: float = 1.0
    """Distance in seconds between the starts of successive clips of one file."""

    @property
    def clip_seconds(self) -> float:
        return self.frames / self.frames_per_second

    @property
    def samples(self) -> int:
        """Sound samples of a clip.

        Raises:
          UserError: a clip would not hold a whole number of samples.
        """
        exact = self.frames * self.sample_rate / self.frames_per_second
        if abs(exact - round(exact)) > 1e-6:
            raise UserError(
                f"media: frames * sample_rate / frames_per_second = {self.frames} * {self.sample_rate} / "
                f"{self.frames_per_second:g} = {exact:.3f} is not a whole number of samples; change one of the three"
            )
        return round(exact)

    @property
    def licence(self) -> str:
        """Licence of the records."""
        return "that of the files in its folder"

    def media_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the media of a record, by modality; which of them are in a record its `present` tells."""
        still = (self.size, self.size, 3)
        return {"video": (self.frames, *still), "audio": (self.samples,), "image": still}

    def check(self) -> None:
        """Raises UserError, which names the field, if a value makes no sense."""
        for field in ("frames", "frames_per_second", "size", "sample_rate", "hop_seconds"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"media.{field} is {value}; it must be above 0")
        super().check()
        self.samples

    def build(self, data_dir: Path) -> "tfds.core.DatasetBuilder":
        """Returns the builder of the ready data set; builds it below `data_dir` if it is not there.

        A folder whose files changed (paths, sizes, times) is built anew. A folder that is gone is not needed:
        the newest data set that was built from it with these settings is used, which a line on stderr says.

        Raises:
          UserError: a setting makes no sense, or the folder is missing, no folder, or holds nothing usable.
        """
        from selfflow.data.media.builder import prepare

        return prepare(self, Path(data_dir))
