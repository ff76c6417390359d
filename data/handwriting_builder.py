"""Records and TFDS builder of data sets of handwritten digits."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from selfflow.data.handwriting import Handwriting
from selfflow.data.writing import Config, RecordsBuilder, prepare
from selfflow.progress import progress

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}

Source = Callable[[], tuple[np.ndarray, np.ndarray]]
"""Returns the images, uint8 [N, H, W] with white ink on black, and the digits that they show, int [N]."""


def split_rows(digits: np.ndarray) -> Iterator[tuple[str, int]]:
    """Yields (split, row of the source) of every digit. The first 80 % of each class are for training, the next 10 %
    for validation and the last 10 % for testing.

    Within each class, splits are contiguous blocks, because neighbouring digits in the source may be by the same
    writer. Within a split, the classes alternate, so that its beginning is as balanced as the whole.
    """
    rows_by_class = [np.flatnonzero(digits == digit) for digit in range(len(NAMES))]
    start = 0.0
    for split, share in SPLITS.items():
        blocks = [rows[round(start * len(rows)) : round((start + share) * len(rows))] for rows in rows_by_class]
        start += share
        # One digit of each class in turn.
        for position in range(max(map(len, blocks))):
            for block in blocks:
                if position < len(block):
                    yield split, int(block[position])


def record(settings: Handwriting, row: int, image: np.ndarray, digit: int) -> dict[str, Any]:
    """Returns the record of a digit, its image resized with antialiasing to uint8 [size, size, 3]."""
    size = (settings.size, settings.size)
    source = Image.fromarray(image)
    grey = np.asarray(source if source.size == size else source.resize(size, Image.Resampling.BICUBIC))
    return {
        "id": f"{settings.kind}-{row:05d}",
        "image": np.repeat(grey[:, :, None], 3, axis=2),
        "present": {"image": True},
        "quality": 1.0,
        "digit": digit,
        "caption": f"a handwritten {NAMES[digit]}",
    }


def build_handwriting(
    settings: Handwriting, data_dir: Path, source: Source, description: str
) -> tfds.core.DatasetBuilder:
    """Returns the TFDS builder of a data set of digits below `data_dir`; writes the data set first if it does not
    exist.

    Raises:
      UserError: `source` raises it, or `data_dir` cannot be written to.
    """

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
            for split, row in progress(list(split_rows(digits)), f"building {settings.kind}", unit="images"):
                yield split, record(settings, row, images[row], int(digits[row]))

    config = Config(name=f"size_{settings.size}", settings=settings)
    return prepare(lambda: HandwritingBuilder(data_dir=str(data_dir), config=config, file_format="array_record"))
