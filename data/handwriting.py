"""What the data sets of handwritten digits share: their records, splits and TFDS builder. Importing this is cheap."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfflow.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import tensorflow_datasets as tfds

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}

Source = Callable[[], tuple["np.ndarray", "np.ndarray"]]
"""Returns the images, uint8 [N, H, W] with white ink on black, and the digits that they show, int [N]."""


def check_size(settings: Any) -> None:
    """Raises UserError if the size of the images cannot be."""
    if not isinstance(settings.size, int) or settings.size < 1:
        raise UserError(f"{settings.kind}.size = {settings.size!r}: must be a whole number above 0")


def ordered(digits: "np.ndarray") -> Iterator[tuple[str, int]]:
    """(split, row of the source) of every digit: of each class the first 80 % train, then 10 % validate, 10 % test.

    Blocks, because neighbours in the source may be of one hand. Within a split the classes take turns, so that its
    beginning is as balanced as all of it.
    """
    import numpy as np

    of_class = [np.flatnonzero(digits == digit) for digit in range(len(NAMES))]
    begun = 0.0
    for split, share in SPLITS.items():
        blocks = [rows[round(begun * len(rows)) : round((begun + share) * len(rows))] for rows in of_class]
        begun += share
        for place in range(max(map(len, blocks))):
            for block in blocks:
                if place < len(block):
                    yield split, int(block[place])


def record(settings: Any, row: int, image: "np.ndarray", digit: int) -> dict[str, Any]:
    """The record of a digit, its image resized with antialiasing to uint8 [size, size, 3]."""
    import numpy as np
    from PIL import Image

    size = (settings.size, settings.size)
    picture = Image.fromarray(image)
    grey = np.asarray(picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC))
    return {
        "id": f"{settings.kind}-{row:05d}",
        "image": np.repeat(grey[:, :, None], 3, axis=2),
        "present": {"image": True},
        "quality": 1.0,
        "digit": digit,
        "caption": f"a handwritten {NAMES[digit]}",
    }


def build(settings: Any, data_dir: Path, source: Source, description: str) -> "tfds.core.DatasetBuilder":
    """Returns the builder of a set of digits below `data_dir`; reads `source` and writes the set if it is not there.

    Raises:
      UserError: what `source` raises, or `data_dir` cannot be written.
    """
    import numpy as np
    import tensorflow_datasets as tfds

    from selfflow.data.writing import Config, RecordsBuilder, prepare
    from selfflow.progress import progress

    class HandwritingBuilder(RecordsBuilder, skip_registration=True):
        name = settings.kind

        def _info(self) -> tfds.core.DatasetInfo:
            image = tfds.features.Tensor(shape=(settings.size, settings.size, 3), dtype=np.uint8, encoding="bytes")
            return tfds.core.DatasetInfo(
                builder=self,
                description=description,
                license=settings.licence,
                disable_shuffling=True,
                features=tfds.features.FeaturesDict(
                    {
                        "id": tfds.features.Text(),
                        "image": image,
                        "present": {"image": np.bool_},
                        "quality": np.float32,
                        "digit": np.int32,
                        "caption": tfds.features.Text(),
                    }
                ),
                metadata=tfds.core.MetadataDict(digits=list(NAMES)),
            )

        def records(self) -> Iterator[tuple[str, dict]]:
            images, digits = source()
            for split, row in progress(list(ordered(digits)), f"building {settings.kind}", unit="images"):
                yield split, record(settings, row, images[row], int(digits[row]))

    config = Config(name=f"size_{settings.size}", settings=settings)
    return prepare(lambda: HandwritingBuilder(data_dir=str(data_dir), config=config, file_format="array_record"))
