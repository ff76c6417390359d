"""Features of a run: extracted from any block at any noise level, computed once and stored."""

from selfflow.representation.features.extract import Features, features

__all__ = ["Features", "features"]
