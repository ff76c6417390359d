"""Vision transformers of Hugging Face folders as encoders, where torch and transformers are installed."""

import json

import numpy as np
import pytest

from selfflow.encoders import VisionFolder
from selfflow.encoders.load import load_encoder
from selfflow.errors import UserError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 2, "patch_size": 4, "image_size": 16}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def write(folder, kind="dinov2", normal=True):
    torch.manual_seed(0)
    t = transformers
    match kind:
        case "dinov2":
            model = t.Dinov2Model(t.Dinov2Config(**SMALL))
        case "dinov2_with_registers":
            model = t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**SMALL, num_register_tokens=3))
        case "vit":
            model = t.ViTModel(t.ViTConfig(**SMALL, intermediate_size=20))
        case "clip":
            model = t.CLIPVisionModel(t.CLIPVisionConfig(**SMALL, intermediate_size=20))
    model.save_pretrained(folder)
    if normal:
        (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return model.eval()


@pytest.mark.parametrize(("kind", "special"), [("dinov2", 1), ("dinov2_with_registers", 4), ("vit", 1)])
def test_features_are_the_patches_of_the_last_hidden_state(tmp_path, kind, special):
    model = write(tmp_path / "folder", kind)
    encoder = load_encoder(VisionFolder(str(tmp_path / "folder"), 12, side=16))
    film = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    found = encoder(film)
    pixels = torch.tensor(((film / 255 - MEAN) / STD).transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.no_grad():
        expected = model(pixel_values=pixels).last_hidden_state[:, special:].reshape(3, 4, 4, 12).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(encoder(film[1]), found[1], atol=1e-5)
    assert encoder.identity.startswith(f"{kind}-") and encoder.ids is None


def test_dinov2_sees_pictures_of_any_size(tmp_path):
    write(tmp_path)
    encoder = load_encoder(VisionFolder(str(tmp_path), 12, side=24))
    flat = np.broadcast_to(np.uint8([10, 100, 200]), (40, 20, 3))
    assert encoder(flat).shape == (6, 6, 12)
    # Resizing changes nothing of a picture of one colour.
    np.testing.assert_allclose(encoder(flat), encoder(np.ascontiguousarray(flat[:24, :20])), atol=1e-5)
    assert encoder.identity != load_encoder(VisionFolder(str(tmp_path), 12, side=16)).identity


def test_folders_that_are_none_are_named(tmp_path):
    load = lambda folder, **more: load_encoder(VisionFolder(str(folder), 12, **more))
    with pytest.raises(UserError, match="cannot read .*nowhere/config.json"):
        load(tmp_path / "nowhere")
    write(tmp_path / "bare", normal=False)
    with pytest.raises(UserError, match="cannot read .*preprocessor_config.json"):
        load(tmp_path / "bare")
    write(tmp_path / "clip", "clip")
    with pytest.raises(UserError, match="holds a model of type 'clip_vision_model': give one of dinov2"):
        load(tmp_path / "clip")
    write(tmp_path / "vit", "vit")
    with pytest.raises(UserError, match="side 20 .* 16"):
        load(tmp_path / "vit", side=20)
    with pytest.raises(UserError, match="side 18 .* is not a multiple of its patch, 4"):
        load(tmp_path / "vit", side=18)
    weights = tmp_path / "vit" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="transformers cannot read"):
        load(tmp_path / "vit", side=16)
    weights.unlink()
    (tmp_path / "vit" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="has no model.safetensors: pickled weights are not read"):
        load(tmp_path / "vit", side=16)
    with pytest.raises(UserError, match="side of the encoder x is 0"):
        VisionFolder("x", 12, side=0)
