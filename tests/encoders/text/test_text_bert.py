"""The forward pass against one written token by token and head by head in float64, and the ways weights are stored."""

import json
import math

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from selfflow.encoders.text.bert import Bert, forward, supports
from selfflow.encoders.text.config import Text
from selfflow.encoders.text.encoder import load_text_encoder
from tests.encoders.text.folders import CONFIG, tensors, write_bert


def reference(weights: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """Last hidden states [l, D] of one caption without padding."""
    w = {name: tensor.astype(np.float64) for name, tensor in weights.items()}
    heads, eps = CONFIG["num_attention_heads"], CONFIG["layer_norm_eps"]
    size = CONFIG["hidden_size"] // heads

    def normed(vector, name):
        deviation = math.sqrt(np.var(vector) + eps)
        return (vector - np.mean(vector)) / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]

    def affine(vector, name):
        return np.einsum("oi,i->o", w[f"{name}.weight"], vector) + w[f"{name}.bias"]

    x = []
    for position, token in enumerate(ids):
        vector = w["embeddings.word_embeddings.weight"][token] + w["embeddings.position_embeddings.weight"][position]
        x.append(normed(vector + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm"))
    for layer in range(CONFIG["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        queries, keys, values = (
            [affine(vector, f"{at}.attention.self.{name}") for vector in x] for name in ("query", "key", "value")
        )
        after = []
        for i, vector in enumerate(x):
            mixed = np.zeros(CONFIG["hidden_size"])
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                scores = [math.exp(queries[i][part] @ key[part] / math.sqrt(size)) for key in keys]
                for score, value in zip(scores, values):
                    mixed[part] += score / sum(scores) * value[part]
            mixed = affine(mixed, f"{at}.attention.output.dense")
            after.append(normed(vector + mixed, f"{at}.attention.output.LayerNorm"))
        x = []
        for vector in after:
            inner = [0.5 * u * (1 + math.erf(u / math.sqrt(2))) for u in affine(vector, f"{at}.intermediate.dense")]
            x.append(normed(vector + affine(np.array(inner), f"{at}.output.dense"), f"{at}.output.LayerNorm"))
    return np.array(x)


@pytest.fixture
def bert(tmp_path) -> Bert:
    return Bert(write_bert(tmp_path / "tiny"), CONFIG, 8)


def padded(ids: list[int], length: int, fill: int = 0) -> tuple[np.ndarray, np.ndarray]:
    ids_BL, valid_BL = np.full((1, length), fill, np.int32), np.zeros((1, length), bool)
    ids_BL[0, : len(ids)], valid_BL[0, : len(ids)] = ids, True
    return ids_BL, valid_BL


def test_forward_is_bert(bert):
    for ids in ([2, 4, 5, 6, 7, 8, 10, 3], [2, 5, 12, 3], [2, 3]):
        hidden = bert.hidden(*padded(ids, 8))[0, : len(ids)]
        assert hidden.dtype == np.float32
        np.testing.assert_allclose(hidden, reference(tensors(), ids), atol=2e-5)


def test_what_is_not_valid_has_no_gradient(bert):
    ids_BL, valid_BL = padded([2, 4, 5, 3], 8, fill=9)

    def first(word):
        params = bert.params | {"embeddings": bert.params["embeddings"] | {"word": word}}
        hidden_BLD = forward(params, ids_BL, valid_BL, heads=bert.heads, eps=bert.eps)
        return (hidden_BLD[0, :4] ** 3).sum()

    gradient = np.abs(jax.grad(first)(bert.params["embeddings"]["word"])).sum(axis=1)
    assert (gradient[[2, 4, 5, 3]] > 0).all() and gradient[9] == 0


def encoded(folder) -> np.ndarray:
    return load_text_encoder(Text(encoder=str(folder), tokens=8)).encode(["a ball hits the wall."])[0]


def test_stored_with_prefix_old_names_or_in_shards(tmp_path):
    expected = encoded(write_bert(tmp_path / "plain"))
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in tensors().items()}
    old = {f"bert.{name.replace('LayerNorm.bias', 'LayerNorm.beta')}": tensor for name, tensor in old.items()}
    headed = old | {"cls.predictions.bias": np.zeros(13, np.float32)}
    np.testing.assert_array_equal(encoded(write_bert(tmp_path / "headed", headed)), expected)

    folder = write_bert(tmp_path / "sharded")
    (folder / "model.safetensors").unlink()
    names, weights = sorted(tensors()), tensors()
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, members in shards.items():
        save_file({name: weights[name] for name in members}, folder / file)
    index = {"weight_map": {name: file for file, members in shards.items() for name in members}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(encoded(folder), expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_stored_in_half_precision(tmp_path, dtype):
    half = {name: t.astype(dtype) if t.dtype == np.float32 else t for name, t in tensors().items()}
    expected = encoded(write_bert(tmp_path / "full", {name: t.astype(np.float32) for name, t in half.items()}))
    np.testing.assert_array_equal(encoded(write_bert(tmp_path / "half", half)), expected)


def test_other_architectures_are_left_to_transformers():
    assert supports(CONFIG)
    for change in ({"model_type": "roberta"}, {"hidden_act": "gelu_new"}, {"is_decoder": True}):
        assert not supports(CONFIG | change)
    assert not supports(CONFIG | {"position_embedding_type": "relative_key"})
