"""scikit-learn's digits -> a TFDS data set."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from selfflow.data import handwriting
from selfflow.data.digits import Digits


def read() -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 [1797, 8, 8], and the digits that they show, int [1797]."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return np.rint(loaded.images * (255 / 16)).astype(np.uint8), loaded.target.astype(np.int64)


def build(settings: Digits, data_dir: Path) -> tfds.core.DatasetBuilder:
    """See `Digits.build`."""
    description = "Handwritten digits of scikit-learn (UCI Optical Recognition of Handwritten Digits, test part)."
    return handwriting.build(settings, data_dir, read, description)
