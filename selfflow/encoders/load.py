"""Frozen encoders, read as their settings say."""

from functools import lru_cache

from selfflow.encoders.config import EffNetLite0, Encoder, FeatureFiles, FrozenEncoder, VisionFolder


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
