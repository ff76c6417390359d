"""Other architectures, through transformers where it is installed."""

import json

import numpy as np
import pytest

from selfflow.encoders.text.config import Text
from selfflow.encoders.text.encoder import load_text_encoder
from selfflow.encoders.text.pretrained import Pretrained
from selfflow.errors import UserError
from tests.conftest import mentions
from tests.encoders.text.folders import CONFIG, WORDS, write_bert, write_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CAPTIONS = ["a ball hits the wall.", "", "the ball sings and hits a wall and sings", "wall"]
SMALL = {"vocab_size": len(WORDS), "hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 2}
SMALL |= {"intermediate_size": 20, "max_position_embeddings": 16}


def write(folder, model):
    model.save_pretrained(folder)
    write_tokenizer(folder)
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 12}
    tokenizer |= {"pad_token": "[PAD]", "eos_token": "[SEP]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(params=["t5", "t5 encoder", "clip text", "roberta", "gpt neox"])
def model(request):
    torch.manual_seed(0)
    t = transformers
    t5 = {"vocab_size": len(WORDS), "d_model": 12, "d_kv": 4, "d_ff": 20, "num_layers": 2, "num_heads": 3}
    match request.param:
        case "t5":
            return t.T5Model(t.T5Config(**t5))
        case "t5 encoder":
            return t.T5EncoderModel(t.T5Config(**t5))
        case "clip text":
            return t.CLIPTextModel(t.CLIPTextConfig(**SMALL, eos_token_id=3))
        case "roberta":
            return t.RobertaModel(t.RobertaConfig(**SMALL, pad_token_id=0))
        case "gpt neox":
            return t.GPTNeoXModel(t.GPTNeoXConfig(**SMALL))


def test_last_hidden_states_of_each_caption(model, tmp_path):
    encoder = load_text_encoder(Text(encoder=str(write(tmp_path / "tiny", model)), tokens=8))
    assert isinstance(encoder.network, Pretrained) and encoder.width == 12
    embeddings = encoder.encode(CAPTIONS)
    reference = model.eval().get_encoder() if isinstance(model, transformers.T5Model) else model.eval()
    ids = [[2, 4, 5, 6, 7, 8, 12, 3], [2, 3], [2, 7, 5, 10, 11, 9, 6, 3], [2, 8, 3]]
    for embedding, tokens in zip(embeddings, ids, strict=True):
        with torch.no_grad():
            expected = reference(input_ids=torch.tensor([tokens])).last_hidden_state[0].numpy()
        np.testing.assert_allclose(embedding, expected, atol=2e-3)


def test_bert_reads_alike_in_both(tmp_path):
    folder = write_bert(tmp_path / "tiny")
    jax_encoder = load_text_encoder(Text(encoder=str(folder), tokens=8))
    network = Pretrained(folder, CONFIG, 8)
    ids_BL = np.array([[2, 4, 5, 6, 7, 3, 0, 0]], np.int32)
    ours, theirs = (n.hidden(ids_BL, ids_BL > 0)[0, :6] for n in (jax_encoder.network, network))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def refused(text: Text, *words: str) -> None:
    with pytest.raises(UserError, match=mentions(*words)) as error:
        load_text_encoder(text)
    assert "\n" not in str(error.value)


def test_folders_that_are_refused(tmp_path):
    model = transformers.GPTNeoXModel(transformers.GPTNeoXConfig(**SMALL))
    folder = write(tmp_path / "tiny", model)
    refused(Text(encoder=str(folder), tokens=13), "text.tokens 13 12")
    refused(Text(encoder=str(folder), tokens=2), "text.tokens 2 3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"\blayers\.2\."):
        load_text_encoder(Text(encoder=str(folder)))
    heads = {"encoder_attention_heads": 3, "decoder_attention_heads": 3}
    bart = transformers.BartModel(transformers.BartConfig(d_model=12, encoder_layers=1, decoder_layers=1, **heads))
    refused(Text(encoder=str(write(tmp_path / "bart", bart))), "transformers", tmp_path / "bart", "BartConfig")
    (folder / "config.json").write_text(json.dumps(config | {"vision_config": {}}))
    refused(Text(encoder=str(folder)), folder, "text model")
    code = {"model_type": "mine", "auto_map": {"AutoModel": "code.Mine", "AutoConfig": "code.Mine"}}
    (folder / "config.json").write_text(json.dumps(config | code))
    (folder / "code.py").write_text("raise SystemExit('executed')")
    refused(Text(encoder=str(folder)), "transformers", folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-8])
    refused(Text(encoder=str(folder), tokens=8), "transformers", folder)
