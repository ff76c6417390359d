"""The encoder of BERT (arXiv 1810.04805) in JAX, with weights as Hugging Face names them.

Layers normalise after their residual sum; gelu is the exact one, x Phi(x); everything is float32. Dropout and the
pooler are left out: embeddings are the last hidden states.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from selfflow.encoders.text.folder import INSTALL, read_tensors, weight_files
from selfflow.errors import UserError

Params = dict[str, Any]


def supports(config: dict[str, Any]) -> bool:
    """Returns whether config.json describes what `forward` computes."""
    return (
        config.get("model_type") == "bert"
        and config.get("hidden_act", "gelu") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder", False)
    )


class Bert:
    """A BERT folder: config.json, model.safetensors (or shards), tokenizer.json.

    Attributes:
      width: channels D of an embedding.
      files: the files that embeddings depend on.
      implementation: package that computes them.
    """

    implementation = "selfflow bert"

    def __init__(self, folder: Path, config: dict[str, Any], tokens: int):
        """Reads tokenizer and weights.

        Raises:
          UserError: if tokenizers is not installed, `tokens` does not suit the encoder, a file is missing or damaged,
            or the weights do not match config.json.
        """
        sizes = _sizes(folder, config)
        self.width, self.heads = sizes["hidden_size"], sizes["num_attention_heads"]
        self.eps = float(config.get("layer_norm_eps", 1e-12))
        if tokens > sizes["max_position_embeddings"]:
            raise UserError(
                f"text.tokens {tokens}: {folder} has positions for {sizes['max_position_embeddings']} tokens at most"
            )
        self.tokenizer = _tokenizer(folder / "tokenizer.json", tokens, sizes["vocab_size"])
        weights = weight_files(folder)
        self.params = jax.device_put(_params(read_tensors(weights), sizes, folder))
        self.files = [folder / "config.json", folder / "tokenizer.json", *weights]

    def tokenise(self, caption: str) -> list[int]:
        """Token numbers of one caption, special ones included."""
        return self.tokenizer.encode(caption).ids

    def hidden(self, ids_BL: np.ndarray, valid_BL: np.ndarray) -> np.ndarray:
        """Last hidden states, float32 [B, L, D]."""
        return np.asarray(forward(self.params, ids_BL, valid_BL, heads=self.heads, eps=self.eps))


@partial(jax.jit, static_argnames=("heads", "eps"))
def forward(
    params: Params, ids_BL: Int[Array, "B L"], valid_BL: Bool[Array, "B L"], *, heads: int, eps: float
) -> Float[Array, "B L D"]:
    """Last hidden states; no position attends to one that is not valid.

    Args:
      params: `embeddings` and a list of `layers`, as `_params` makes them.
      ids_BL: token numbers; any in the vocabulary where not valid.
      valid_BL: which of them are a caption's.
      heads: attention heads.
      eps: added to variances.
    """

    def norm(x_BLD, weights):
        centred_BLD = x_BLD - x_BLD.mean(axis=-1, keepdims=True)
        variance_BL1 = jnp.mean(jnp.square(centred_BLD), axis=-1, keepdims=True)
        return centred_BLD * jax.lax.rsqrt(variance_BL1 + eps) * weights["weight"] + weights["bias"]

    def dense(x, weights):
        return x @ weights["weight"].T + weights["bias"]

    def split_heads(x_BLD):
        return x_BLD.reshape(*ids_BL.shape, heads, -1)

    # By default accelerators multiply float32 matrices in fewer bits.
    with jax.default_matmul_precision("highest"):
        embeddings = params["embeddings"]
        # A caption is one sentence: its tokens are all of type 0.
        x_BLD = embeddings["word"][ids_BL] + embeddings["position"][: ids_BL.shape[1]] + embeddings["type"][0]
        x_BLD = norm(x_BLD, embeddings["norm"])
        for layer in params["layers"]:
            # Queries, keys and values [B, L, A, H].
            q, k, v = (split_heads(dense(x_BLD, layer[name])) for name in ("query", "key", "value"))
            mixed_BLAH = jax.nn.dot_product_attention(q, k, v, mask=valid_BL[:, None, None, :])
            x_BLD = norm(x_BLD + dense(mixed_BLAH.reshape(x_BLD.shape), layer["out"]), layer["out_norm"])
            hidden_BLF = jax.nn.gelu(dense(x_BLD, layer["up"]), approximate=False)
            x_BLD = norm(x_BLD + dense(hidden_BLF, layer["down"]), layer["down_norm"])
    return x_BLD


def _sizes(folder: Path, config: dict[str, Any]) -> dict[str, int]:
    names = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size")
    sizes = {name: config.get(name) for name in (*names, "max_position_embeddings", "type_vocab_size")}
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise UserError(f"text.encoder: {folder / 'config.json'} has {name} = {size}; it must be a positive number")
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise UserError(
            f"text.encoder: {folder / 'config.json'} divides hidden_size {sizes['hidden_size']} among "
            f"{sizes['num_attention_heads']} heads; correct it"
        )
    return sizes


def _tokenizer(path: Path, tokens: int, vocabulary: int):
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(f"text.encoder needs the package tokenizers: {INSTALL}") from None
    if not path.is_file():
        raise UserError(
            f"text.encoder: {path} is missing; write it with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the only class that tokenizers raises
        raise UserError(f"text.encoder: cannot read {path} ({error}); copy it again") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    special = len(tokenizer.encode("").ids)
    if tokens <= special:
        # tokenizers does not truncate to fewer than these.
        raise UserError(f"text.tokens {tokens}: {special} are special tokens; give at least {special + 1}")
    tokenizer.enable_truncation(tokens)
    most = max(tokenizer.get_vocab().values(), default=0)
    if most >= vocabulary:
        raise UserError(
            f"text.encoder: {path} has token {most}, and config.json a vocab_size of {vocabulary}: "
            "they are of different encoders"
        )
    return tokenizer


# The tensor of each embedding, and the field of config.json that gives its number of rows.
_EMBEDDINGS = {
    "word": ("word_embeddings", "vocab_size"),
    "position": ("position_embeddings", "max_position_embeddings"),
    "type": ("token_type_embeddings", "type_vocab_size"),
}
_ANCHOR = "embeddings.word_embeddings.weight"


def _params(tensors: dict[str, np.ndarray], sizes: dict[str, int], folder: Path) -> Params:
    # A model with a head keeps the encoder under a prefix, mostly `bert.`.
    prefixes = [name.removesuffix(_ANCHOR) for name in tensors if name.endswith(_ANCHOR)]
    if len(prefixes) != 1:
        raise UserError(f"text.encoder: the weights in {folder} hold {len(prefixes)} tensors {_ANCHOR}, not one")

    def take(name: str, *shape: int) -> np.ndarray:
        # Weights converted from the first release call a norm's parameters gamma and beta.
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensor = tensors.get(prefixes[0] + name, tensors.get(prefixes[0] + old))
        if tensor is None:
            raise UserError(f"text.encoder: the weights in {folder} lack {prefixes[0] + name}; copy the whole folder")
        if tensor.shape != shape:
            raise UserError(
                f"text.encoder: {prefixes[0] + name} in {folder} has shape {list(tensor.shape)}, and config.json has "
                f"{list(shape)}: they are of different encoders"
            )
        return tensor

    def dense(name: str, outputs: int, inputs: int) -> dict[str, np.ndarray]:
        return {"weight": take(f"{name}.weight", outputs, inputs), "bias": take(f"{name}.bias", outputs)}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"weight": take(f"{name}.LayerNorm.weight", width), "bias": take(f"{name}.LayerNorm.bias", width)}

    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    embeddings = {}
    for key, (name, size) in _EMBEDDINGS.items():
        embeddings[key] = take(f"embeddings.{name}.weight", sizes[size], width)
    layers = []
    for number in range(sizes["num_hidden_layers"]):
        at = f"encoder.layer.{number}"
        layer = {name: dense(f"{at}.attention.self.{name}", width, width) for name in ("query", "key", "value")}
        layer |= {
            "out": dense(f"{at}.attention.output.dense", width, width),
            "out_norm": norm(f"{at}.attention.output"),
        }
        layer |= {"up": dense(f"{at}.intermediate.dense", inner, width)}
        layer |= {"down": dense(f"{at}.output.dense", width, inner), "down_norm": norm(f"{at}.output")}
        layers.append(layer)
    return {"embeddings": embeddings | {"norm": norm("embeddings")}, "layers": layers}
