"""Digits: the 1797 handwritten digits of scikit-learn, 8 x 8. Importing this is cheap."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from selfflow.data.handwriting import Handwriting


@dataclass(frozen=True)
class Digits(Handwriting):
    """The settings of the Digits data set."""

    kind: Literal["digits"] = "digits"
    """Name of the data set."""
    licence: ClassVar[str] = "CC BY 4.0"
