"""A tiny random BERT, in a folder as Hugging Face lays it out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "ball", "hits", "the", "wall", "and", "sing", "##s", "."]
CONFIG = {
    "model_type": "bert",
    "hidden_size": 12,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "vocab_size": len(WORDS),
    "max_position_embeddings": 10,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-3,
    "hidden_act": "gelu",
}


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights, biases and norms, under the names of Hugging Face."""
    random = np.random.default_rng(seed)
    width, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (len(WORDS), width),
        "embeddings.position_embeddings.weight": (CONFIG["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (2, width),
    }
    dense = {"attention.self.query": (width, width), "attention.self.key": (width, width)}
    dense |= {"attention.self.value": (width, width), "attention.output.dense": (width, width)}
    dense |= {"intermediate.dense": (inner, width), "output.dense": (width, inner)}
    norms = ["embeddings.LayerNorm"]
    for layer in range(CONFIG["num_hidden_layers"]):
        at = f"encoder.layer.{layer}."
        shapes |= {f"{at}{name}.weight": shape for name, shape in dense.items()}
        shapes |= {f"{at}{name}.bias": shape[:1] for name, shape in dense.items()}
        norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
    shapes |= {f"{norm}.{name}": (width,) for norm in norms for name in ("weight", "bias")}
    made = {name: random.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    # As the packaged MiniLM has it: a buffer that is no weight.
    return made | {"embeddings.position_ids": np.arange(10)[None]}


def write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    # As the packaged MiniLM has it: settings that must not reach the embeddings.
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=7)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_bert(folder: Path, weights: dict[str, np.ndarray] | None = None, **config: Any) -> Path:
    """Writes config.json (with changes), model.safetensors and tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(tensors() if weights is None else weights, folder / "model.safetensors")
    write_tokenizer(folder)
    return folder
