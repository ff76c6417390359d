"""Captions as embeddings of a frozen encoder. Imports neither JAX nor tokenizers."""

from selfflow.encoders.text.config import Text

__all__ = ["Text"]
