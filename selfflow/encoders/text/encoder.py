"""Captions -> embeddings, by a frozen encoder read from disk."""

import re
from pathlib import Path
from typing import Protocol

import numpy as np

from selfflow.encoders.text import bert
from selfflow.encoders.text.config import Text
from selfflow.encoders.text.folder import PACKAGED, find_folder, fingerprint, read_json
from selfflow.encoders.text.pretrained import Pretrained
from selfflow.errors import UserError

# Captions per call. The last batch is padded, so that JAX compiles one shape.
BATCH = 32


class Network(Protocol):
    """The network and tokenizer of an encoder folder: `bert.Bert` or `pretrained.Pretrained`."""

    width: int
    files: list[Path]
    implementation: str

    def tokenise(self, caption: str) -> list[int]: ...

    def hidden(self, ids_BL: np.ndarray, valid_BL: np.ndarray) -> np.ndarray: ...


class TextEncoder:
    """Captions -> last hidden states of their tokens.

    Attributes:
      width: channels D of an embedding.
      identity: name, and hash of weights, tokenizer and settings: equal identities imply equal embeddings.
    """

    def __init__(self, network: Network, tokens: int, identity: str):
        self.network, self.tokens, self.identity = network, tokens, identity
        self.width = network.width

    def encode(self, captions: list[str]) -> list[np.ndarray]:
        """Embeddings, float16 [l, D], of each caption, for its l tokens including special ones, at most `tokens`.

        An empty caption consists of the special tokens alone. An embedding does not depend on the other captions.

        Raises:
          UserError: if an embedding is not finite in float16.
        """
        # Captions repeat in many data sets.
        distinct = list(dict.fromkeys(captions))
        embeddings = {}
        for start in range(0, len(distinct), BATCH):
            batch = distinct[start : start + BATCH]
            embeddings |= zip(batch, self._encode(batch))
        return [embeddings[caption] for caption in captions]

    def _encode(self, captions: list[str]) -> list[np.ndarray]:
        # One by one: the threads of tokenizers do not survive a fork, and the network takes far longer.
        tokens = [self.network.tokenise(caption) for caption in captions]
        ids_BL = np.zeros((BATCH, self.tokens), np.int32)
        valid_BL = np.zeros((BATCH, self.tokens), bool)
        # Every row needs a valid token: a softmax over no keys is NaN.
        valid_BL[:, 0] = True
        for row, ids in enumerate(tokens):
            ids_BL[row, : len(ids)], valid_BL[row, : len(ids)] = ids, True
        hidden_BLD = self.network.hidden(ids_BL, valid_BL)
        with np.errstate(over="ignore"):
            embeddings = [hidden_BLD[row, : len(ids)].astype(np.float16) for row, ids in enumerate(tokens)]
        for caption, embedding in zip(captions, embeddings):
            if not np.isfinite(embedding).all():
                raise UserError(
                    f"text.encoder {self.identity}: the embedding of {caption!r} is not finite in float16; "
                    "choose another encoder"
                )
        return embeddings


def load_text_encoder(text: Text) -> TextEncoder:
    """Reads the encoder that `text` names: BERT in JAX, others through transformers.

    Raises:
      UserError: if the folder or a package is missing, or a file is damaged or of another format.
    """
    folder = find_folder(text.encoder)
    config = read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise UserError(f"text.encoder: {folder / 'config.json'} has no model_type; give the folder of an encoder")
    reader = bert.Bert if bert.supports(config) else Pretrained
    network = reader(folder, config, text.tokens)
    name = PACKAGED if text.encoder == PACKAGED else folder.resolve().name
    # Identities may become names of files.
    name = re.sub(r"[^\w.-]+", "-", name)
    identity = f"{name}-{fingerprint(network.files, network.implementation, text.tokens)}"
    return TextEncoder(network, text.tokens, identity)
