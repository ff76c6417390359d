"""Settings shared by all data sets of handwritten digits. Importing this module is cheap."""

from dataclasses import dataclass
from pathlib import Path

from selfflow.data.checks import check_numbers
from selfflow.data.dataset import Dataset
from selfflow.errors import check_above_zero


@dataclass(frozen=True)
class Handwriting(Dataset):
    """Images of digits, with the digit as label and in a caption."""

    size: int = 32
    """Height and width of an image, pixels: that of the source, resized."""

    def __post_init__(self):
        check_numbers(self, "size", whole=True)
        check_above_zero(self, f"{self.kind}.", "size")

    def media_shapes(self, folder: Path | None = None) -> dict[str, tuple[int, ...]]:
        """Shapes of the media of a record, by modality."""
        return {"image": (self.size, self.size, 3)}
