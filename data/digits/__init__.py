"""Digits: the 1797 handwritten digits of scikit-learn, 8 x 8. Importing this is cheap."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selfflow.data.handwriting import check_size

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


@dataclass(frozen=True)
class Digits:
    """The settings of the Digits data set."""

    kind: Literal["digits"] = "digits"
    """Tells this data set from the others in an experiment file."""
    size: int = 32
    """Height and width of an image, pixels: the 8 x 8 of the source, resized."""

    def __post_init__(self):
        check_size(self)

    @property
    def licence(self) -> str:
        """Licence of the records."""
        return "CC BY 4.0"

    def media_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the media of a record, by modality."""
        return {"image": (self.size, self.size, 3)}

    def build(self, data_dir: Path) -> "tfds.core.DatasetBuilder":
        """Returns the TFDS builder of this set under `data_dir`; writes the set first if it is not there.

        Raises:
          UserError: `data_dir` cannot be written.
        """
        from selfflow.data.digits.builder import build

        return build(self, Path(data_dir))
