"""Training an autoencoder: the same loop, the run it leaves, and a model trained on its latents."""

import dataclasses
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from selfflow.autoencoders.load import load_autoencoder
from selfflow.autoencoders.parse import parse_autoencoder
from selfflow.cli.parse import parse
from selfflow.cli.train import Options
from selfflow.config.files import load_experiment, read_experiment
from selfflow.config.resolve import resolve
from selfflow.config.shapes import all_streams
from selfflow.data.built import build
from selfflow.errors import UserError
from selfflow.input.media_batches import MediaBatchSource, MediaSource
from selfflow.input.mixture import Component
from selfflow.report.study import open_study
from selfflow.run.folder import check_run
from selfflow.run.run import Run, open_run
from selfflow.serialization import from_json, to_json
from selfflow.tasks.train import train
from selfflow.training.metrics import TIMINGS, read_metrics
from tests import tiny
from tests.autoencoders.tiny_autoencoder import audio_experiment, experiment
from tests.conftest import mentions
from tests.training.test_distributed import free_port

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).parent / "tiny_autoencoder.py"


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "videos"
    summary = train(load_experiment(FILE, autoencoders=True), folder, data_dir)
    return folder, summary


@pytest.fixture(scope="module")
def audio_run(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "audio"
    return folder, train(audio_experiment(), folder, data_dir)


def command(name: str):
    return importlib.import_module(f"selfflow.cli.{name}")


def numbers(folder) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in read_metrics(folder)]


def test_a_run_leaves_what_it_should(run, audio_run):
    folder, summary = run
    assert Run(folder).experiment == resolve(experiment()).experiment == read_experiment(folder / "experiment.json")
    rows = read_metrics(folder)
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert {row["component"] for row in rows} == {"videos", "images"}
    assert all(
        np.isfinite([row[n] for n in ("loss", "squared", "gradient", "kl", "gradient_norm")]).all() for row in rows
    )
    assert np.isfinite(
        [rows[2][n] for n in ("error_db/videos", "latent_std/least/images", "posterior_std/videos")]
    ).all()
    assert rows[0]["tokens_per_second"] > 0
    videos = summary["reconstruction"]["videos"]
    assert videos["split"] == "test" and videos["samples"] == 6 and videos["numbers"] == 3 * 4 * 4 * 8
    # PCA of at least as many numbers: 9 frames of 16 positions.
    assert videos["linear_numbers"] == 9 * 16 * 3 >= videos["numbers"]
    # Six steps change little, and the initialisation is near a linear autoencoder.
    assert videos["linear"]["psnr_db"] - 3 < videos["convolutional"]["psnr_db"] < videos["linear"]["psnr_db"] + 3
    assert all(Path(file).stat().st_size > 0 for file in summary["files"])
    audio = audio_run[1]["reconstruction"]["audio"]
    assert set(audio["convolutional"]) == set(audio["linear"]) == {"log_mel_distance", "snr_db"}
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["datasets"]["collisions"]["fingerprint"] and provenance["data"]


def test_its_latents_have_unit_variance(run, data_dir):
    folder, _ = run
    setup = resolve(experiment())
    made = setup.experiment
    built = build(made.data["collisions"], data_dir)
    feed = MediaBatchSource({"collisions": built}, made.mixture, setup.cuts, indexes=data_dir / "indexes")
    latents = []
    for name, modality in (("videos", "video"), ("images", "image")):
        path = folder / "autoencoder.safetensors"
        autoencoder = load_autoencoder(parse_autoencoder(f"convolutional={path}", modality), path)
        media = feed.held_out((), 512)[name][1]
        latents.append(autoencoder.encode(media[:, 0] if modality == "image" else media).reshape(-1, 8))
    # Of both components alike, though videos have four times as many positions.
    mean = np.mean([z.mean(0) for z in latents], axis=0)
    np.testing.assert_allclose(mean, 0, atol=1e-3)
    np.testing.assert_allclose(np.mean([np.square(z).mean(0) for z in latents], axis=0) - mean**2, 1, atol=2e-3)


def test_a_resumed_run_is_an_uninterrupted_one(run, data_dir, tmp_path):
    folder, again = run[0], tmp_path / "again"
    shutil.copytree(folder, again)
    shutil.rmtree(again / "checkpoints" / "6")
    for name in ("summary.json", "autoencoder.safetensors"):
        (again / name).unlink()
    assert Run(again).last_step() == 3
    train(experiment(), again, data_dir)
    assert numbers(again) == numbers(folder)
    a, b = (Run(f).restore() for f in (folder, again))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert (again / "autoencoder.safetensors").read_bytes() == (folder / "autoencoder.safetensors").read_bytes()


def test_it_may_start_from_another(run, data_dir, tmp_path):
    made = dataclasses.replace(experiment(), steps=1, init_from=str(run[0]))
    train(made, tmp_path / "next", data_dir)
    assert Run(tmp_path / "next").experiment.init_from.endswith("videos:6")


@pytest.mark.slow
def test_eight_devices_compute_what_one_does(tmp_path):
    command = [sys.executable, "-m", "tests.autoencoders.spread", str(tmp_path / "errors.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert set(errors) == {"8x1", "2x4"} and max(errors.values()) < 1e-4


@pytest.mark.slow
def test_two_processes_initialise_and_train_as_one_does(run, data_dir, tmp_path):
    """Both fit the layers by PCA, and both use the result of process 0."""
    command = [sys.executable, "-m", "selfflow", "train", str(FILE), "--workdir", str(tmp_path / "both")]
    where = f"127.0.0.1:{free_port()}"
    command += ["--data-dir", str(data_dir), "--coordinator", where, "--processes", "2", "--process"]
    both = [
        subprocess.Popen(command + [str(i)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)
    alone = read_metrics(run[0])
    for row, other in zip(read_metrics(tmp_path / "both"), alone, strict=True):
        assert row.keys() == other.keys() and row["component"] == other["component"]
        for name in row.keys() - {*TIMINGS, "component"}:
            assert row[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), (row["step"], name)
    made = Run(tmp_path / "both").summary()["reconstruction"]["videos"]["convolutional"]["psnr_db"]
    assert made == pytest.approx(run[1]["reconstruction"]["videos"]["convolutional"]["psnr_db"], abs=0.01)


@pytest.mark.slow
def test_a_model_is_trained_on_its_latents(run, audio_run, data_dir, tiny_experiment, tmp_path):
    """From the command line, by name and file: video and image share one autoencoder, audio has the other."""
    file = tmp_path / "tiny.py"
    file.write_text("from tests.tiny import experiment\n__all__ = ['experiment']\n")
    moved = tmp_path / "moved.safetensors"
    shutil.copy(audio_run[0] / "autoencoder.safetensors", moved)
    visual, audio = f"convolutional={run[0]}", f"convolutional={moved}"
    arguments = [str(file), "--workdir", str(tmp_path / "joint"), "--data-dir", str(data_dir), "--steps", "2"]
    arguments += ["--autoencoder.video", visual, f"--autoencoder.image={visual}", "--autoencoder.audio", audio]
    command("train").main(arguments)
    moved.unlink()  # the run has a copy
    again, *_ = parse("train", arguments, "", lambda file: Options(tmp_path / "elsewhere"))
    assert again.autoencoders == open_run(tmp_path / "joint").experiment.autoencoders
    (tmp_path / "visual").mkdir()
    shutil.copy(run[0] / "experiment.json", tmp_path / "visual")
    study = open_study([str(tmp_path)])
    assert [member.name for member in study.members] == ["joint"]
    assert mentions("visual autoencoder").search(study.notes[0])
    joint = open_run(tmp_path / "joint")
    # Bodies and contacts are probed at the tokens that hold their frames.
    assert "position/video" in joint.summary()["probes"]["trained, block 3"]
    streams = all_streams(joint.experiment)
    assert streams["video"].latent == (7, 4, 4, 8) and streams["video"].period == 4 * 8.0
    # A latent frame ends with its last video frame: the first after one frame, which lasts 80 ms.
    ends = streams["video"].coordinates()[:, 0] + streams["video"].period / 2
    np.testing.assert_allclose(np.unique(ends), 8.0 * (1 + 4 * np.arange(7)))
    assert streams["image"].latent == (4, 4, 8) and streams["audio"].latent == (50, 16)
    assert joint.autoencoder("video").identity == joint.autoencoder("image").identity
    sample = joint.sample(1, ("video", "audio"))
    assert sample.media["video"].shape == (1, 25, 32, 32, 3) and sample.media["audio"].shape == (1, 16000)
    latents = joint.data("test", "joint").latents(0)
    assert latents["video"].shape == (7, 4, 4, 8)


def test_other_commands_refuse_runs_and_experiments_of_autoencoders(run, tmp_path):
    folder, _ = run
    for name in ("sample", "probe", "evaluate", "export"):
        with pytest.raises(UserError, match=mentions(folder, "autoencoder convolutional")):
            command(name).main([str(folder), "--out", str(tmp_path / "x")] if name == "export" else [str(folder)])
    for name in ("encode", "plan", "sweep"):
        with pytest.raises(UserError, match=mentions(FILE, "autoencoder train")):
            command(name).main([str(FILE)])
    with pytest.raises(UserError, match=mentions("init_from", folder, "autoencoder")):
        check_run(tmp_path / "none", dataclasses.replace(tiny.experiment(), init_from=str(folder)))
    with pytest.raises(UserError, match=mentions(folder, "experiment --workdir")):
        check_run(folder, tiny.experiment())


def test_experiments_are_checked():
    made = experiment()
    assert from_json(to_json(made), type(made), "experiment.json") == made
    video = dataclasses.replace(made.mixture["videos"], weight=1)
    for changed, words in (
        ({"mixture": {"x": dataclasses.replace(video, seconds=0.8)}}, "mixture.x 10 frames seconds 0.72"),
        ({"mixture": {"x": dataclasses.replace(video, seconds=0.7)}}, "mixture.x.seconds 0.7 8.75"),
        ({"mixture": {"x": Component(modalities=("audio",))}}, "mixture.x.modalities audio strides"),
        ({"mixture": {"x": Component(modalities=("video", "image"))}}, "mixture.x.modalities 'video', 'image' one"),
        ({"mixture": {"x": Component(modalities=("action",))}}, "mixture.x.modalities action collisions"),
        ({"mixture": {"x": Component(modalities=("image",), data="other")}}, "mixture.x.data other collisions"),
        ({"side": 30}, "side 30 strides 8"),
        ({"steps": 0}, "steps 0"),
        ({"held_out": 0}, "held_out 0"),
        ({"ema_decay": 1.0}, "ema_decay 1.0"),
    ):
        with pytest.raises(UserError, match=mentions(words)):
            resolve(dataclasses.replace(made, **changed))


def test_media_are_cropped_and_padded(data_dir):
    setup = resolve(dataclasses.replace(experiment(), side=16))
    made, cuts = setup.experiment, setup.cuts
    built = build(made.data["collisions"], data_dir)
    assert cuts["videos"].shape == (9, 16, 16, 3) and cuts["images"].shape == (1, 16, 16, 3)
    feed = MediaBatchSource(
        {"collisions": built}, made.mixture, cuts, excluded=frozenset({"train-000003"}), indexes=data_dir / "indexes"
    )
    reader = feed.reader("videos", "train")
    assert 3 not in reader.records and len(reader.records) == 23
    record = built.records("train")[5]["video"]
    np.testing.assert_array_equal(reader(5)["media"], record[:9, 8:24, 8:24])
    crops = [reader(5, np.random.default_rng(i))["media"] for i in range(40)]
    windows = np.lib.stride_tricks.sliding_window_view(record, (9, 16, 16, 3)).reshape(-1, 9, 16, 16, 3)
    assert all((windows == crop).all(axis=(1, 2, 3, 4)).any() for crop in crops)
    assert len({crop.tobytes() for crop in crops}) > 20
    held = [feed.held_out((), 512)["videos"][1] for _ in range(2)]
    np.testing.assert_array_equal(*held)
    middle = {reader(i)["media"].tobytes() for i in map(int, reader.records)}
    assert len(held[0]) == 23 and len(middle & {crop.tobytes() for crop in held[0]}) < 5
    longer = dataclasses.replace(reader, cut=dataclasses.replace(cuts["videos"], length=29, shape=(29, 40, 40, 3)))
    media = longer(5)["media"]
    np.testing.assert_array_equal(media[:25, :32, :32], record)
    np.testing.assert_array_equal(media[25:, :32, :32], np.repeat(record[-1:], 4, axis=0))


def test_records_that_cannot_be_read_have_weight_0(data_dir, monkeypatch):
    from selfflow.data.records import Records
    from selfflow.data.shards import BadRecord

    setup = resolve(experiment())
    made = setup.experiment
    built = build(made.data["collisions"], data_dir)
    feed = MediaBatchSource({"collisions": built}, made.mixture, setup.cuts, indexes=data_dir / "indexes")
    reader, plain = feed.reader("images", "train"), Records.__getitem__

    def broken(records, i, plain=plain):
        if i == 2:
            raise BadRecord("train-00000", "it is torn")
        return plain(records, i)

    monkeypatch.setattr(Records, "__getitem__", broken)
    sample = reader(2)
    assert sample["weight"] == 0 and not sample["media"].any() and reader.why(2) == ("train-00000", "it is torn")
    assert len(feed.held_out((), 24)["images"][1]) == 23
    first = int(np.random.default_rng(0).permutation(24)[0])
    monkeypatch.setattr(Records, "__getitem__", lambda records, i: broken(records, 2 if i == first else i))
    assert len(feed.held_out((), 1)["images"][1]) == 1  # another in its place
    monkeypatch.setattr(Records, "__getitem__", broken)
    # The modalities of each record are looked up once and then stored, unless some records are unreadable.
    indexes = set((data_dir / "indexes").iterdir())
    assert indexes
    for path in indexes:
        path.unlink()
    raw = Records.raw
    monkeypatch.setattr(Records, "raw", lambda records, i: broken(records, i, raw))
    assert len(MediaSource(built, "train", (), data_dir / "indexes").indices_with("image")) == 23
    assert not list((data_dir / "indexes").iterdir())
    monkeypatch.undo()
    assert len(MediaSource(built, "train", (), data_dir / "indexes").indices_with("image")) == 24
    monkeypatch.setattr(Records, "raw", None)
    source = MediaSource(built, "train", (), data_dir / "indexes")
    assert (
        source.id(0) == "train-000000"
        and len(source.indices_with("audio")) == 24
        and not len(source.indices_with("depth"))
    )
