"""What `selfflow benchmark --only autoencoders` measures."""

import json
from pathlib import Path

import pytest

from selfflow.autoencoders.config import Convolutional
from selfflow.autoencoders.load import load_autoencoder
from selfflow.benchmark import autoencoders as autoencoder_benchmark
from selfflow.cli.benchmark import main
from tests.autoencoders.small_networks import AUDIO_NETWORK, VIDEO_NETWORK, written
from tests.conftest import mentions

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def video_file(tmp_path_factory):
    return written(VIDEO_NETWORK, tmp_path_factory.mktemp("video") / "autoencoder.safetensors")


def test_one_autoencoder(video_file, monkeypatch):
    config = Convolutional(channels=6, temporal_stride=4, stride=4, path=str(video_file))
    monkeypatch.setattr(autoencoder_benchmark, "_memory", lambda *_: [(9, 0)])
    autoencoder = load_autoencoder(config, video_file)
    rate = autoencoder_benchmark._rate("video", config, video_file, autoencoder, (9, 8, 8, 3), 2)
    assert (rate.modality, rate.clips, rate.shape, rate.memory) == ("video", 16, (9, 8, 8, 3), [(9, 0)])
    assert rate.encoded_per_second > 0 and rate.decoded_per_second > 0 and rate.bfloat16_encode_ratio > 0
    assert 1e-4 < rate.bfloat16_error < 0.05 and rate.bfloat16_decoded_db > 20
    assert rate.torch_encode_ratio is None  # diffusers has none of this kind
    assert autoencoder_benchmark._peak("video", config, video_file, (9, 8, 8, 3)) > 10e6


@pytest.mark.slow
def test_the_command(data_dir, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(autoencoder_benchmark, "_LONG", 2**16)
    file = tmp_path / "tiny.py"
    file.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.tiny import experiment\n")
    main([str(file), "--only", "autoencoders", "--rounds", "1", "--json", "--data-dir", str(data_dir)])
    rows = {row["modality"]: row for row in json.loads(capsys.readouterr().out)["autoencoders"]}
    assert rows.keys() == {"video", "audio", "image"}
    assert rows["image"]["memory"] is None and rows["video"]["bfloat16_error"] is None
    lengths, more = zip(*rows["audio"]["memory"])
    assert lengths[2] == pytest.approx(16 * lengths[0], rel=0.05) and more[0] == 0
    main([str(file), "--only", "autoencoders", "--rounds", "1", "--data-dir", str(data_dir)])
    assert mentions("patch_pca memory audio clip").search(capsys.readouterr().out)


@pytest.mark.slow
def test_an_hour_of_audio_takes_no_more_memory_than_minutes(tmp_path):
    path = written(AUDIO_NETWORK, tmp_path / "autoencoder.safetensors")
    config = Convolutional(channels=5, temporal_stride=8, stride=0, sample_rate=8000)
    (first, _), *_, (last, more) = autoencoder_benchmark._memory("audio", config, path, (80,))
    assert first < 5 * 60 * 8000 and last > 3600 * 8000
    assert more < 300e6, more
