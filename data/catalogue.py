"""The catalogue of data sets and their cards."""

import importlib.resources
import typing

from selfflow.data.atari import Atari
from selfflow.data.collisions import Collisions
from selfflow.data.dataset import Dataset
from selfflow.data.digits import Digits
from selfflow.data.latent_files import LatentFiles
from selfflow.data.media import Media
from selfflow.data.mnist5k import Mnist5k
from selfflow.data.tfds import Tfds
from selfflow.errors import UserError

AnyDataset = Collisions | Media | Atari | Mnist5k | Digits | LatentFiles | Tfds

DATASETS: dict[str, type[Dataset]] = {settings.kind: settings for settings in typing.get_args(AnyDataset)}


def card(name: str) -> str:
    """Returns the card of a data set: the text of its README.

    Raises:
      UserError: there is no data set of that name.
    """
    if name not in DATASETS:
        raise UserError(f"there is no data set {name!r}; choose from {', '.join(DATASETS)}")
    return importlib.resources.files(f"selfflow.data.{name}").joinpath("README.md").read_text(encoding="utf-8")
