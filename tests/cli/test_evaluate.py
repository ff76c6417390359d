import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from selfflow.cli.evaluate import main
from selfflow.config.files import load_experiment
from selfflow.errors import UserError
from selfflow.evaluation.config import Evaluation
from selfflow.run.run import open_run
from selfflow.training.metrics import TIMINGS, MetricsLog
from tests.conftest import TINY, mentions


@pytest.fixture
def evaluate(tiny_run, data_dir, tmp_path):
    def call(*flags):
        for flag, value in (("--samples", 6), ("--out", tmp_path / f"{len([*tmp_path.iterdir()])}.json")):
            flags += () if flag in flags else (flag, value)
        main([str(tiny_run), "--data-dir", str(data_dir), "--batch-size", "4", *map(str, flags)])
        return json.loads(Path(flags[flags.index("--out") + 1]).read_text(encoding="utf-8"))["rows"]

    return call


def test_samples_are_tabulated_beside_real_clips_and_noise(evaluate, capsys):
    rows = evaluate("--features", "layer", "logmel")
    assert [*rows] == ["real clips", "real, decoded", "samples", "noise"]
    distances = {row: values["frechet/LogMel/audio"] for row, values in rows.items()}
    assert distances["noise"] > distances["real clips"]
    for name in ("layer2/video+audio", "LogMel/audio"):
        assert rows["samples"][f"kid_error/{name}"] > 0
    assert rows["real clips"]["physics/bodies"] > rows["noise"]["physics/bodies"]
    assert rows["real clips"]["av_sync"] > rows["noise"]["av_sync"]
    out = capsys.readouterr().out
    assert mentions(*rows, "KID layer2 LogMel physics/bodies av_sync").search(out)


def test_images_for_the_evaluator_of_adm(evaluate, tmp_path):
    rows = evaluate("--modality", "image", "--features", "layer=1", "--adm-npz", tmp_path / "made.npz")
    assert "kid/layer1/image" in rows["samples"] and "av_sync" not in rows["samples"]
    with np.load(tmp_path / "made.npz") as made:
        assert made["arr_0"].shape == (6, 32, 32, 3) and made["arr_0"].dtype == np.uint8


def test_audio_is_generated_with_real_video_as_context(evaluate, capsys):
    rows = evaluate("--modality", "audio", "--context", "video", "--features", "logmel")
    assert mentions("context video").search(capsys.readouterr().out)
    assert rows["samples"]["physics/bodies"] > 0.5  # the videos are real


def test_the_verifier_itself_is_measured(tiny_run, data_dir, capsys):
    main([str(tiny_run), "--calibrate", "--data-dir", str(data_dir)])
    words = "RMS bodies causes energy gravity autoencoders calibration.json"
    assert mentions(words).search(capsys.readouterr().out)


def test_a_reference_is_kept_and_one_of_other_features_refused(evaluate, tmp_path):
    file = tmp_path / "real.npz"
    first = evaluate("--features", "logmel", "--save-reference", file)
    again = evaluate("--features", "logmel", "--reference", file)
    assert again["samples"] == first["samples"]
    for words, *flags in (
        (f"{file} LogMel-16000-40 layer2", "--features", "layer"),
        ("--reference 2 --features --modality", "--features", "layer", "logmel"),
        (f"--reference {file} --samples 6", "--features", "logmel", "--samples", 5),
    ):
        with pytest.raises(UserError, match=mentions(words)):
            evaluate(*flags, "--reference", file)


def test_results_of_other_settings_are_not_replaced(evaluate, tmp_path):
    flags = ("--modality", "image", "--features", "layer", "--out", tmp_path / "a.json")
    assert evaluate(*flags) == evaluate(*flags)
    with pytest.raises(UserError, match=mentions("--out", tmp_path / "a.json", "weights ema student")):
        evaluate(*flags, "--weights", "student")
    results = json.loads((tmp_path / "a.json").read_text())
    assert results["comparisons"]["samples"]["FD-layer2 image"]["generated"] == 6
    assert "test split" in results["reference_set"]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--features", "layer=9"], "--features layer=9 3"),
        (["--features", "layer=1", "layer=2"], "--features layer=1 layer=2"),
        (["--features", "logmel", "logmel"], "--features logmel FD-LogMel audio"),
        (["--features", "logmel", "--modality", "image"], "--features logmel image"),
        (["--features", "logmell"], "--features logmell logmel"),
        (["--features", "inception=nowhere.pth", "--modality", "image"], "nowhere.pth"),
        (["--samples", "1"], "--samples 1"),
        (["--adm-npz", "a.npz"], "--adm-npz --modality image"),
        (["--context", "inpaint_region:0,0,1,0.5"], "--context inpaint_region schedule.context"),
    ],
)
def test_what_cannot_be_evaluated(evaluate, flags, words):
    with pytest.raises(UserError, match=mentions(words)):
        evaluate(*flags)


@pytest.fixture(scope="module")
def evaluated(tiny_run, data_dir, tmp_path_factory):
    """The tiny run again, with evaluations."""
    from selfflow.tasks.train import train

    experiment = load_experiment(TINY)
    experiment = dataclasses.replace(
        experiment,
        cadence=dataclasses.replace(experiment.cadence, evaluate_every=5),
        evaluation=Evaluation(samples=4, shown=2),
    )
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    train(experiment, folder, data_dir)
    return folder


def test_evaluations_leave_the_training_as_it_is(evaluated, tiny_run):
    def trained(row):
        return {k: v for k, v in row.items() if not k.startswith("samples/") and k not in TIMINGS}

    rows, plain = (open_run(folder).metrics() for folder in (evaluated, tiny_run))
    assert [trained(row) for row in rows] == [trained(row) for row in plain]


def test_evaluations_are_in_the_metrics_and_their_samples_in_tensorboard(evaluated):
    rows = {row["step"]: row for row in open_run(evaluated).metrics()}
    steps = {step for step, row in rows.items() if any(name.startswith("samples/") for name in row)}
    assert steps == {5, 10}
    for name in ("samples/joint/kid/layer2/video+audio", "samples/image/kid/layer2/image"):
        assert np.isfinite(rows[10][name])
    assert "samples/joint/physics/bodies" in rows[10]
    folder = evaluated / "evaluations" / "step_10"
    assert {path.name for path in folder.iterdir()} == {"image.png", "joint.png"} | {
        f"joint_0{i}.{kind}" for i in range(2) for kind in ("mp4", "wav")
    }
    images, audio = summaries_of(evaluated)
    assert {(10, "samples/joint"), (10, "samples/image"), (5, "samples/joint")} <= images
    assert (10, "samples/joint_01") in audio


def test_mistakes_in_the_features_come_before_the_run(data_dir, tmp_path):
    from selfflow.tasks.train import train

    experiment = load_experiment(TINY)
    cadence = dataclasses.replace(experiment.cadence, evaluate_every=5)
    experiment = dataclasses.replace(experiment, cadence=cadence, evaluation=Evaluation(features=("efnet",)))
    with pytest.raises(UserError, match=mentions("efnet effnet")):
        train(experiment, tmp_path / "run", data_dir)
    assert not (tmp_path / "run" / "experiment.json").exists()


def test_evaluations_of_steps_that_are_repeated_go_and_damaged_files_do_no_harm(evaluated, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(evaluated, folder)
    (folder / "evaluations" / "step_5" / "joint.png").write_bytes(b"")
    (folder / "evaluations" / "step_5" / "joint_00.wav").write_bytes(b"")
    MetricsLog(folder, 6).close()
    assert {path.name for path in (folder / "evaluations").iterdir()} == {"step_5"}
    images, audio = summaries_of(folder)
    assert images == {(5, "samples/image")} and audio == {(5, "samples/joint_01")}


def summaries_of(folder):
    """(step, tag) of the images and of the audio in TensorBoard's events."""
    import struct

    from tensorboardX.proto.event_pb2 import Event

    images, audio = set(), set()
    for path in (folder / "tensorboard").glob("events*"):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            for value in event.summary.value:
                if value.WhichOneof("value") == "image":
                    assert value.image.encoded_image_string.startswith(b"\x89PNG") and value.image.width > 100
                    images.add((event.step, value.tag))
                if value.WhichOneof("value") == "audio":
                    assert value.audio.sample_rate == 8000 and value.audio.length_frames == 16_000
                    audio.add((event.step, value.tag))
    return images, audio
