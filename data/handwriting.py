"""What the settings of data sets of handwritten digits have in common. Importing this module is cheap."""

from dataclasses import dataclass
from pathlib import Path

from selfflow.data.checks import check_positive, check_whole
from selfflow.data.dataset import Dataset


@dataclass(frozen=True)
class Handwriting(Dataset):
    """Images of digits, with the digit as label and in a caption."""

    size: int = 32
    """Height and width of an image, pixels: that of the source, resized."""

    def __post_init__(self):
        check_whole(self, "size")
        check_positive(self, "size")

    def media_shapes(self, folder: Path | None = None) -> dict[str, tuple[int, ...]]:
        """Shapes of the media of a record, by modality."""
        return {"image": (self.size, self.size, 3)}
