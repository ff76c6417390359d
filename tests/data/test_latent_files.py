"""Precomputed latents: reading files of them, and refusing those that do not fit."""

import dataclasses
import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from selfflow.autoencoders.config import SDVAE, Precomputed
from selfflow.autoencoders.linear import PatchPCA
from selfflow.autoencoders.load import load_autoencoder
from selfflow.autoencoders.parse import parse_autoencoder
from selfflow.cli.data import main
from selfflow.config.resolve import resolve
from selfflow.data.built import BuiltDataset, build, load_builder
from selfflow.data.latent_files import LatentFiles
from selfflow.data.latent_files.manifest import read_manifest
from selfflow.data.report import read_report
from selfflow.data.verify import verify_data
from selfflow.encoders import FeatureFiles
from selfflow.errors import UserError
from selfflow.input.mixture import Component
from selfflow.latents.encode import EncodeShare
from selfflow.latents.fit_autoencoder import FittedAutoencoder, check_precomputed, fit_autoencoder
from selfflow.latents.verify import verify_latents
from selfflow.modality import Modality
from selfflow.noise import DualTimestep
from selfflow.objectives.alignment import ExternalEncoder
from selfflow.run.prepare_data import prepare_data
from tests.conftest import mentions

IMAGE = {"autoencoder": "sd-vae-ft-ema", "shape": [8, 6, 4], "stride": 8}
VIDEO = {"autoencoder": "wan", "shape": [3, 4, 4, 5], "stride": 16, "temporal_stride": 4, "frames_per_second": 24}
AUDIO = {"autoencoder": "oobleck", "shape": [10, 7], "temporal_stride": 2048, "sample_rate": 44100}


def written(folder, manifest, **files):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latents.json").write_text(json.dumps(manifest))
    for name, arrays in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path.with_suffix(".npz"), **arrays)
    return folder


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def experiment_of(tiny_experiment, source, autoencoders, **changed):
    """The tiny experiment on latents of a folder, one component of the mixture for each modality."""
    patches = {"image": (2, 2), "video": (1, 2, 2), "audio": (1,)}
    return dataclasses.replace(
        tiny_experiment,
        data={"mine": LatentFiles(source=str(source), validation_fraction=0.0, test_fraction=0.0)},
        autoencoders=autoencoders,
        patch={m: patches[m] for m in autoencoders},
        mixture={m: Component(modalities=(m,), weight=1 / len(autoencoders), batch_size=2) for m in autoencoders},
        schedule=DualTimestep(),
        **changed,
    )


def test_stored_latents_are_those_of_the_files_shifted_scaled_and_transposed(tiny_experiment, tmp_path, capsys):
    scale, shift = [0.5, 2.0, 1.0, 0.1], [0.0, 1.0, -1.0, 3.0]
    manifest = {"image": IMAGE | {"scale": scale, "shift": shift, "channels_first": True}, "labels": {"of": 9}}
    one, two, std = noise(4, 8, 6), noise(2, 4, 8, 6, seed=1), np.abs(noise(4, 8, 6, seed=2))
    arrays = {"image": one, "image.std": std, "of": 3, "foo": 1, "class": 2}
    source = written(tmp_path / "source", manifest, one=arrays)
    save_file({"image": two.astype(ml_dtypes.bfloat16), "of": np.array([5, -1])}, source / "stack.safetensors")
    experiment = experiment_of(tiny_experiment, source, {"image": parse_autoencoder(f"precomputed={source}", "image")})
    feed, raw = prepare_data(resolve(experiment), tmp_path / "data")
    assert raw == {}  # there are no media
    assert mentions("latents.json class foo").search(capsys.readouterr().out)
    train = feed.latents["mine"].open_split("train")
    stored = {train.id(i): train[i] for i in range(3)}
    assert stored.keys() == {"one.npz", "stack.safetensors#0", "stack.safetensors#1"}

    def normalised(x):
        return ((np.moveaxis(np.float32(x), 0, -1) - np.float32(shift)) * np.float32(scale)).astype(np.float16)

    np.testing.assert_array_equal(stored["one.npz"]["image"], normalised(one))
    np.testing.assert_array_equal(
        stored["one.npz"]["image.std"], (np.moveaxis(std, 0, -1) * np.float32(scale)).astype(np.float16)
    )
    for i in range(2):
        sample = stored[f"stack.safetensors#{i}"]
        np.testing.assert_array_equal(sample["image"], normalised(two[i].astype(ml_dtypes.bfloat16)))
        assert "image.std" not in sample
    labels = dict(zip((train.id(i) for i in range(3)), train.index["label/of"]))
    assert labels == {"one.npz": 3, "stack.safetensors#0": 5, "stack.safetensors#1": -1}
    assert feed.latents["mine"].manifest["modalities"]["image"]["identity"] == "precomputed: sd-vae-ft-ema"
    built = build(experiment.data["mine"], tmp_path / "data")
    assert verify_data(built) == [] and verify_latents(feed.latents["mine"].path, built) == []


def test_video_and_audio_keep_their_rates_and_lengths(tiny_experiment, tmp_path):
    manifest = {"video": VIDEO | {"first_frame_alone": True}, "audio": AUDIO}
    source = written(tmp_path / "source", manifest, long={"video": noise(3, 4, 4, 5), "audio": noise(10, 7)},
                     short={"video": noise(2, 4, 4, 5), "audio": noise(6, 7)})  # fmt: skip
    configs = {m: parse_autoencoder(f"precomputed={source}", m) for m in ("video", "audio")}
    setup = resolve(experiment_of(tiny_experiment, source, configs))
    assert setup.experiment.data["mine"].media_shapes() == {"video": (9, 64, 64, 3), "audio": (20480,)}
    streams = setup.objective.modalities
    assert streams["video"].period == pytest.approx(100 * 4 / 24)
    assert streams["audio"].period == pytest.approx(100 * 2048 / 44100)
    # The first latent frame holds one frame alone, so that it ends after one.
    times = streams["video"].coordinates()[:, 0]
    assert times[0] == pytest.approx(100 * (1 / 24 - 2 / 24), abs=1e-4)
    feed, _ = prepare_data(setup, tmp_path / "data")
    index = feed.latents["mine"].open_split("train").index
    assert sorted(index["frames/video"]) == [2, 3] and sorted(index["frames/audio"]) == [6, 10]


def test_a_run_needs_neither_the_folder_nor_latents_json(tiny_experiment, tmp_path):
    source = written(tmp_path / "source", {"image": IMAGE}, one={"image": noise(8, 6, 4)})
    experiment = experiment_of(tiny_experiment, source, {"image": parse_autoencoder(f"precomputed={source}", "image")})
    resolved = resolve(experiment)
    feed, _ = prepare_data(resolved, tmp_path / "data")
    source.rename(tmp_path / "gone")
    again, _ = prepare_data(resolved, tmp_path / "data")
    assert again.latents["mine"].hash == feed.latents["mine"].hash
    assert resolve(experiment, resolved.experiment) == resolved  # as when a run resumes
    with pytest.raises(UserError, match=mentions(source, "latents.json")):
        resolve(experiment)
    source.mkdir()
    assert prepare_data(resolved, tmp_path / "data")[0].latents["mine"].hash == feed.latents["mine"].hash


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("autoencoder", "", "name"),
        ("shape", [8, 6], "[8, 6] 3"),
        ("shape", [8, 0, 4], "[8, 0, 4] 3"),
        ("stride", 0, "0"),
        ("scale", [1.0, 2.0], "[1.0, 2.0] 4"),
        ("scale", 0, "0"),
        ("scale", math.nan, "nan 4"),
        ("first_frame_alone", True, ""),
        ("channels_first", "yes", "yes true false"),
        ("strid", 8, "stride"),
    ],
)
def test_a_manifest_that_makes_no_sense_names_file_and_field(field, value, words, tmp_path):
    with pytest.raises(UserError, match=mentions(tmp_path / "latents.json", "image", field, words)):
        read_manifest(written(tmp_path, {"image": IMAGE | {field: value}}))


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "JSON line 1 column 2"),
        ("[]", "image, video, audio"),
        ('{"labels": {}}', "image, video, audio"),
        ('{"image": {"shape": [8, 6, 4]}}', "image autoencoder, stride"),
        ('{"audio": {"autoencoder": "a", "shape": [5, 4], "sample_rate": 8000}}', "audio temporal_stride"),
        ('{"speech": {}, "image": {}}', "speech image, video, audio labels"),
    ],
)
def test_damaged_manifests(text, words, tmp_path):
    (tmp_path / "latents.json").write_text(text)
    with pytest.raises(UserError, match=mentions(tmp_path / "latents.json", words)):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "labels, word",
    [
        ({"image": 3}, "image"),
        ({"image_std": 3}, "image_std"),
        ({"a.b": 3}, "a.b"),
        ({"kind": 0}, "0 kind"),
        ({"kind": []}, "[] kind"),
        ({"kind": [1]}, "[1] kind"),
        (["kind"], "table"),
    ],
)
def test_labels_need_names_and_classes(labels, word, tmp_path):
    with pytest.raises(UserError, match=mentions(tmp_path / "latents.json", "labels", word)):
        read_manifest(written(tmp_path, {"image": IMAGE, "labels": labels}))


def test_files_that_cannot_be_used_are_in_the_report(tmp_path, capsys):
    good, huge = noise(8, 6, 4), np.full((8, 6, 4), 1e6, np.float32)
    source = written(
        tmp_path / "source",
        {"image": IMAGE, "labels": {"of": ["cat", "dog"]}},
        good={"image": good, "of": 1},
        huge={"image": huge, "of": 1},
        nan={"image": good * np.nan, "of": 1},
        odd={"image": good[:7], "of": 1},
        deep={"image": good[None, None], "of": 1},
        whole={"image": np.ones((8, 6, 4), int)},
        third={"image": good, "of": 2},
        real={"image": good, "of": 1.0},
        other={"photo": good},
        partial={"image": np.stack([good, good * np.inf, good]), "of": np.array([0, 1, 1])},
        objects={"image": np.array([{}], object)},
        empty={"image": np.zeros((0, 8, 6, 4), np.float32)},
        fewer={"image": np.stack([good, good]), "of": np.array([1])},
        longer={"image": np.stack([good, good]), "of": np.array([1, 0, 1])},
        scalar={"image": np.stack([good, good]), "of": 1},
        shorter={"image": np.stack([good, good]), "image.std": good[None]},
        surrogate={"image": good, "caption": np.array("\ud800")},
    )
    (source / "cut.npz").write_bytes((source / "good.npz").read_bytes()[:-30])
    (source / "none.safetensors").write_bytes(b"")
    np.savez_compressed(source / "flipped.npz", image=np.round(good, 1))
    compressed = bytearray((source / "flipped.npz").read_bytes())
    compressed[len(compressed) // 2] ^= 0xFF
    (source / "flipped.npz").write_bytes(compressed)
    save_file({"image": good.astype(ml_dtypes.float8_e4m3fn)}, source / "float8.safetensors")
    (source / "notes.txt").write_text("not read")
    settings = LatentFiles(source=str(source), validation_fraction=0.0, test_fraction=0.0)
    built = build(settings, tmp_path / "data")
    assert built.splits == {"train": 3}
    report = read_report(load_builder(settings, tmp_path / "data"))
    skipped = {remark["file"]: remark["reason"] for remark in report["skipped"]}
    assert skipped == {
        "huge.npz": "not finite",
        "nan.npz": "not finite",
        "odd.npz": "wrong shape",
        "deep.npz": "wrong shape",
        "whole.npz": "wrong type",
        "third.npz": "wrong label",
        "real.npz": "wrong label",
        "other.npz": "no latents",
        "objects.npz": "unreadable",
        "empty.npz": "no latents",
        "cut.npz": "unreadable",
        "none.safetensors": "unreadable",
        "flipped.npz": "unreadable",
        "float8.safetensors": "unreadable",
        "fewer.npz": "wrong shape",
        "longer.npz": "wrong shape",
        "scalar.npz": "wrong shape",
        "shorter.npz": "wrong shape",
        "surrogate.npz": "wrong caption",
    }
    assert [(r["file"], r["detail"][:9]) for r in report["partial"]] == [("partial.npz", "sample 1:")]
    assert (report["files"], report["used"]) == (21, 2)
    assert "pickle" not in capsys.readouterr().out


def test_a_folder_without_a_usable_file_names_the_first_reason(tmp_path):
    source = written(tmp_path / "source", {"image": IMAGE}, odd={"image": noise(4, 8, 6)})
    with pytest.raises(UserError, match=mentions(source, "odd.npz image shape (4, 8, 6) (8, 6, 4)")):
        build(LatentFiles(source=str(source)), tmp_path / "data")
    (source / "odd.npz").unlink()
    with pytest.raises(UserError, match=mentions(source, "npz safetensors")):
        build(LatentFiles(source=str(source)), tmp_path / "data")


def test_folders_are_splits(tmp_path):
    one = {"image": noise(8, 6, 4)}
    source = written(tmp_path / "source", {"image": IMAGE}, train__a=one, train__b__c=one, test__d=one, extra__e=one)
    built = build(LatentFiles(source=str(source)), tmp_path / "data")
    assert built.splits == {"train": 2, "test": 1}
    assert {r["id"] for r in built.records("train")} == {"train/a.npz", "train/b/c.npz"}


def test_other_autoencoders_are_refused(tiny_experiment, data_dir, tmp_path):
    source = written(tmp_path / "source", {"image": IMAGE}, one={"image": noise(8, 6, 4)})
    for config, words in (
        (PatchPCA(patch=8, channels=4), "patch_pca sd-vae-ft-ema"),
        (Precomputed(name="mine", channels=4, stride=8, images_only=True), "name mine sd-vae-ft-ema"),
        (Precomputed(name="sd-vae-ft-ema", channels=4, stride=4, images_only=True), "[16, 12, 4] [8, 6, 4]"),
        (Precomputed(name="sd-vae-ft-ema", channels=4, stride=8), "video images_only stride"),
    ):
        experiment = experiment_of(tiny_experiment, source, {"image": config})
        with pytest.raises(UserError, match=mentions("autoencoders.image", words)):
            prepare_data(resolve(experiment), tmp_path / "data")
    with pytest.raises(UserError, match=mentions("x --autoencoder.video NAME=PATH")):
        load_autoencoder(Precomputed(name="x"), tmp_path)
    tiny = prepare_data(resolve(tiny_experiment), data_dir)[1]
    with pytest.raises(UserError, match=mentions("autoencoders.image collisions")):
        fit_autoencoder("image", Precomputed(name="sd-vae-ft-ema", images_only=True), tiny, (), tmp_path / "data")


@pytest.mark.parametrize(
    "name, passes",
    [
        ("sd-vae", True),
        ("SD_VAE of somebody", True),
        ("sd_vae-0123456789ab", True),
        ("sd_vae-0123456789ac", False),
        ("sd_vae-0123456789ac-bfloat16", False),
        ("convolutional", False),
        ("s", False),
        ("\u4e00", False),
        ("of sd-vae", False),
    ],
)
def test_names_of_autoencoders(name, passes):
    settings = LatentFiles(source="folder")
    metadata = {"latents": {"image": {"autoencoder": name, "shape": [8, 6, 4]}}}
    built = BuiltDataset(settings, "latent_files/x/1.0.0", Path(), {"train": 1}, metadata)
    fitted = {"image": FittedAutoencoder(SDVAE(path="x"), Path("x"), "sd_vae-0123456789ab", {})}
    modalities = {"image": Modality((8, 6, 4), (1, 1))}
    if passes:
        check_precomputed(built, fitted, modalities, {})
    else:
        with pytest.raises(UserError, match=mentions("autoencoders.image sd_vae-0123456789ab folder", name)):
            check_precomputed(built, fitted, modalities, {})


def test_encoding_ahead_keeps_the_rate(tiny_experiment, tmp_path, capsys):
    """Latents that `data build` encodes are those that an experiment expects; of several hosts none waits."""
    source = written(tmp_path / "source", {"audio": AUDIO}, one={"audio": noise(10, 7)})
    flags = ["--source", str(source), "--validation-fraction", "0", "--test-fraction", "0"]
    main(
        [
            "build",
            "latent_files",
            *flags,
            "--autoencoder.audio",
            f"precomputed={source}",
            "--data-dir",
            str(tmp_path / "data"),
        ]
    )
    experiment = experiment_of(tiny_experiment, source, {"audio": parse_autoencoder(f"precomputed={source}", "audio")})
    feed, _ = prepare_data(resolve(experiment), tmp_path / "data", EncodeShare(host=1, hosts=2))
    assert str(feed.latents["mine"].path) in capsys.readouterr().out
    batch, _ = next(iter(feed.batches(0, 1)))
    assert batch["latents"]["audio"].shape == (2, 10, 7)


def test_frozen_encoders_need_features_in_a_file(tiny_experiment, tmp_path):
    source = written(tmp_path / "source", {"image": IMAGE}, one={"image": noise(8, 6, 4)})
    save_file({"one.npz": noise(4, 3, 5)}, tmp_path / "features.safetensors")
    encoder = FeatureFiles(str(tmp_path / "features.safetensors"), 5)
    external = ExternalEncoder(student_layer=1, encoders={"image": encoder})
    config = {"image": parse_autoencoder(f"precomputed={source}", "image")}
    feed, _ = prepare_data(
        resolve(experiment_of(tiny_experiment, source, config, alignment=external)), tmp_path / "data"
    )
    assert feed.latents["mine"].features


def test_upper_case_suffixes_are_the_same_formats(tmp_path):
    source = written(tmp_path / "source", {"image": IMAGE}, one={"image": noise(8, 6, 4)})
    (source / "one.npz").rename(source / "one.NPZ")
    save_file({"image": noise(3, 8, 6, 4)}, source / "stack.SAFETENSORS")
    settings = LatentFiles(source=str(source), validation_fraction=0.0, test_fraction=0.0)
    records = build(settings, tmp_path / "data").records("train")
    assert {record["id"] for record in records} == {"one.NPZ", *(f"stack.SAFETENSORS#{i}" for i in range(3))}
