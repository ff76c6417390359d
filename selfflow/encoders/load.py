"""Loads frozen encoders: one function maps a config to its implementation, so that configs import nothing heavy."""

from functools import lru_cache
from typing import TYPE_CHECKING

from selfflow.encoders.config import EffNetLite0, Encoder, FeatureFiles, FrozenEncoder, VisionFolder
from selfflow.encoders.text.config import Text

if TYPE_CHECKING:
    from selfflow.encoders.text.encoder import TextEncoder


@lru_cache(maxsize=8)
def load_encoder(config: Encoder) -> FrozenEncoder:
    """Returns the encoder of a config, read once per process.

    Raises:
      UserError: if a package is not installed, or files are missing, damaged or of another model.
    """
    match config:
        case EffNetLite0():
            from selfflow.encoders.effnet import EffNetEncoder

            return EffNetEncoder()
        case VisionFolder():
            from selfflow.encoders.vision_transformer import VisionTransformerEncoder

            return VisionTransformerEncoder(config)
        case FeatureFiles():
            from selfflow.encoders.feature_files import FeatureFileReader

            return FeatureFileReader(config)
    raise AssertionError(config)


@lru_cache(maxsize=1)
def cached_text_encoder(text: Text) -> "TextEncoder":
    """Returns the caption encoder of a config, read once per process.

    Raises:
      UserError: as `load_text_encoder`.
    """
    from selfflow.encoders.text.encoder import load_text_encoder  # imports JAX and tokenizers

    return load_text_encoder(text)
