"""Vision transformers of Hugging Face folders as encoders, where torch and transformers are installed."""

import json

import numpy as np
import pytest

from selfflow.encoders import VisionFolder
from selfflow.encoders.load import load_encoder
from selfflow.errors import UserError
from tests.conftest import mentions

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
    video = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    found = encoder(video)
    pixels = torch.tensor(((video / 255 - MEAN) / STD).transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.no_grad():
        expected = model(pixel_values=pixels).last_hidden_state[:, special:].reshape(3, 4, 4, 12).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(encoder(video[1]), found[1], atol=1e-5)
    assert encoder.identity.startswith(f"{kind}-") and encoder.ids is None


def test_dinov2_takes_images_of_any_size(tmp_path):
    write(tmp_path)
    encoder = load_encoder(VisionFolder(str(tmp_path), 12, side=24))
    flat = np.broadcast_to(np.uint8([10, 100, 200]), (40, 20, 3))
    assert encoder(flat).shape == (6, 6, 12)
    # Resizing does not change an image of one colour.
    np.testing.assert_allclose(encoder(flat), encoder(np.ascontiguousarray(flat[:24, :20])), atol=1e-5)
    assert encoder.identity != load_encoder(VisionFolder(str(tmp_path), 12, side=16)).identity


def test_folders_of_other_or_damaged_models_are_named(tmp_path):
    def refused(folder, *words, **more):
        with pytest.raises(UserError, match=mentions(*words)):
            load_encoder(VisionFolder(str(folder), 12, **more))

    refused(tmp_path / "nowhere", tmp_path / "nowhere" / "config.json")
    write(tmp_path / "bare", normal=False)
    refused(tmp_path / "bare", tmp_path / "bare" / "preprocessor_config.json")
    write(tmp_path / "clip", "clip")
    refused(tmp_path / "clip", tmp_path / "clip", "clip_vision_model dinov2")
    vit = tmp_path / "vit"
    write(vit, "vit")
    refused(vit, vit, "side 20 16", side=20)
    refused(vit, vit, "side 18 patch 4", side=18)
    weights = vit / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(vit, vit, "transformers", side=16)
    weights.unlink()
    (vit / "pytorch_model.bin").write_bytes(b"")
    refused(vit, vit, "model.safetensors", side=16)
    with pytest.raises(UserError, match=mentions("side x 0")):
        VisionFolder("x", 12, side=0)
