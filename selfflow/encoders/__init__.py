"""Frozen encoders whose features of clean media are a target of alignment; importing this brings no JAX."""

from selfflow.encoders.config import EffNetLite0, Encoder, FeatureFiles, FrozenEncoder, VisionFolder

__all__ = ["EffNetLite0", "Encoder", "FeatureFiles", "FrozenEncoder", "VisionFolder"]
