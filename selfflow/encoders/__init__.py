"""Frozen networks whose features of clean media are targets of alignment or inputs of metrics. Imports no JAX."""

from selfflow.encoders.config import EffNetLite0, Encoder, FeatureFiles, FrozenEncoder, VisionFolder

__all__ = ["EffNetLite0", "Encoder", "FeatureFiles", "FrozenEncoder", "VisionFolder"]
