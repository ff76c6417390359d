"""Text encoders other than BERT (T5, CLIP's text tower, RoBERTa, Qwen...), run by transformers and torch."""

from pathlib import Path
from typing import Any

import numpy as np

from selfflow.encoders.text.folder import weight_files
from selfflow.errors import UserError


class Pretrained:
    """Any text model of transformers; only code of transformers runs, only safetensors are read.

    Attributes:
      width: channels D of an embedding.
      files: the files that embeddings depend on.
      implementation: package that computes them, with the major version of transformers, which may choose another
        tokenizer.
    """

    def __init__(self, folder: Path, config: dict[str, Any], tokens: int):
        """Reads tokenizer and weights; the model runs on a GPU of torch's if there is one.

        Raises:
          UserError: if transformers or torch is not installed, `tokens` does not suit the encoder, or transformers
            cannot read the folder.
        """
        kind = config.get("model_type")
        try:
            import torch
            import transformers
        except ImportError as error:
            raise UserError(
                f"text.encoder: a model of type {kind} needs transformers and torch, and {error.name} is missing: "
                "pip install 'selfflow[text]'"
            ) from None
        if "vision_config" in config:
            raise UserError(
                f"text.encoder: {folder} holds a multimodal {kind}; save its text model to a separate folder"
            )
        weights = weight_files(folder)
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            known = transformers.AutoConfig.from_pretrained(folder, **options)
            # Text encodings are the encoders alone of T5 and its like; transformers has no such class for other
            # encoder-decoders.
            encodes = known.is_encoder_decoder or type(known) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING
            family = transformers.AutoModelForTextEncoding if encodes else transformers.AutoModel
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
            model, report = family.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **options)
        except Exception as error:  # a dozen classes, from missing files to unknown model types
            raise UserError(f"text.encoder: transformers cannot read {folder}: {_line(error)}") from None
        # transformers would initialise missing weights at random. A pooler is not used.
        missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
        if missing:
            raise UserError(
                f"text.encoder: the weights in {folder} lack {missing[0]}, {len(missing)} in all; copy the folder"
            )
        self.torch, self.tokens = torch, tokens
        self.implementation = f"transformers {transformers.__version__.split('.')[0]}"
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = model.float().eval().to(self.device)
        self.width = model.config.hidden_size
        self._check(folder, config)
        names = [path for path in folder.iterdir() if path.suffix in (".json", ".txt", ".model") and path.is_file()]
        self.files = sorted({*names, *weights})

    def _check(self, folder: Path, config: dict[str, Any]) -> None:
        most = min(self.tokenizer.model_max_length, config.get("max_position_embeddings") or self.tokens)
        if self.tokens > most:
            raise UserError(f"text.tokens {self.tokens}: {folder} takes {most} tokens at most")
        special = len(self.tokenizer("")["input_ids"])
        if self.tokens <= special:
            raise UserError(f"text.tokens {self.tokens}: {special} are special tokens; give at least {special + 1}")
        if not special and self.tokenizer.eos_token_id is None:
            raise UserError(f"text.encoder: the tokenizer in {folder} has no special token for an empty caption")

    def tokenise(self, caption: str) -> list[int]:
        """Token numbers of one caption, special ones included."""
        ids = self.tokenizer(caption, truncation=True, max_length=self.tokens)["input_ids"]
        # Some tokenizers add no special token, so that an empty caption would have no embedding at all.
        return ids or [self.tokenizer.eos_token_id]

    def hidden(self, ids_BL: np.ndarray, valid_BL: np.ndarray) -> np.ndarray:
        """Last hidden states, float32 [B, L, D]."""
        with self.torch.inference_mode():
            ids = self.torch.as_tensor(ids_BL, dtype=self.torch.long, device=self.device)
            mask = self.torch.as_tensor(valid_BL, dtype=self.torch.long, device=self.device)
            return self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float().cpu().numpy()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
