"""Loads frozen encoders: one function maps a config to its implementation, so that configs import nothing heavy."""

from functools import lru_cache
from typing import TYPE_CHECKING

from selfflow.encoders.config import EffNetLite0, Encoder, FeatureFiles, FrozenEncoder, VisionFolder
from selfflow.encoders.text.config import Text

if TYPE_CHECKING:
    from selfflow.encoders.text.encoder import TextEncoder


@lru_cache(maxsize=8)
def load_encoder(settings: Encoder) -> FrozenEncoder:
    """The encoder of some settings, read once in a process.

    Raises:
      UserError: if a package is not installed, or files are missing, damaged or of another model.
    """
    match settings:
        case EffNetLite0():
            from selfflow.encoders.effnet_maps import EffNetMaps

            return EffNetMaps()
        case VisionFolder():
            from selfflow.encoders.vision import VisionMaps

            return VisionMaps(settings)
        case FeatureFiles():
            from selfflow.encoders.feature_files import FeatureFileReader

            return FeatureFileReader(settings)
    raise AssertionError(settings)


@lru_cache(maxsize=1)
def cached_text_encoder(text: Text) -> "TextEncoder":
    """The caption encoder of a config, read once per process.

    Raises:
      UserError: as `load_text_encoder`.
    """
    from selfflow.encoders.text.encoder import load_text_encoder  # imports JAX and tokenizers

    return load_text_encoder(text)
