"""The digits of scikit-learn as a TFDS data set."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from selfflow.data.digits import Digits
from selfflow.data.handwriting_builder import build_handwriting


def read() -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 [1797, 8, 8], and the digits that they show, int [1797]."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return np.rint(loaded.images * (255 / 16)).astype(np.uint8), loaded.target.astype(np.int64)


def build(settings: Digits, data_dir: Path) -> tfds.core.DatasetBuilder:
    """Returns the TFDS builder below `data_dir`; writes the data set first if it does not exist.

    Raises:
      UserError: `data_dir` cannot be written.
    """
    description = "Handwritten digits of scikit-learn (UCI Optical Recognition of Handwritten Digits, test part)."
    return build_handwriting(settings, data_dir, read, description)
