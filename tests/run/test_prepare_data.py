"""From an experiment to its batches: several data sets, captions, exclusions, precomputed latents; and it trains."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from selfflow.config.resolve import resolve
from selfflow.data.atari import Atari
from selfflow.data.mnist5k import Mnist5k
from selfflow.encoders.text import Text
from selfflow.encoders.text.encoder import load_text_encoder
from selfflow.errors import UserError
from selfflow.input.batches import LoaderOptions
from selfflow.input.mixture import Component, Stage
from selfflow.latents.ids import check_excluded, hash_id
from selfflow.objectives.alignment import NoAlignment
from selfflow.run.prepare_data import _print_excluded, latents_hash, prepare_data
from selfflow.run.run import open_run
from selfflow.serialization import from_json, to_json
from selfflow.tasks.train import train
from tests.conftest import mentions
from tests.encoders.text.folders import write_bert


@pytest.fixture(scope="module")
def mixed(tiny_experiment, tmp_path_factory):
    """Collisions with captions, Pong, and MNIST in one mixture, with a curriculum."""
    encoder = write_bert(tmp_path_factory.mktemp("bert"))
    excluded = tmp_path_factory.mktemp("ids") / "ids.txt"
    excluded.write_text("train-000003\ntrain-000011\n")
    return resolve(
        dataclasses.replace(
            tiny_experiment,
            data=tiny_experiment.data
            | {
                "atari": Atari(train_clips=8, validation_clips=4, test_clips=4),
                "mnist": Mnist5k(),
            },
            mixture={
                "collisions": Component(("video", "audio"), 0.25, 4, data="collisions"),
                "short": Component(("video",), 0.25, 4, data="collisions", seconds=0.8),
                "atari": Component(("video", "audio"), 0.25, 2, data="atari"),
                "digits": Component(("image",), 0.25, 8, data="mnist"),
            },
            curriculum=(Stage(step=6, weights={"digits": 1.0}),),
            text=Text(encoder=str(encoder), tokens=8),
            model=dataclasses.replace(tiny_experiment.model, text=12),
            exclude=str(excluded),
            steps=7,
        )
    ).experiment


@pytest.fixture(scope="module")
def prepared(mixed, data_dir):
    return prepare_data(resolve(mixed), data_dir)


def test_one_feed_for_all_data_sets(prepared, mixed):
    feed, built = prepared
    assert set(feed.latents) == set(built) == {"collisions", "atari", "mnist"}
    shapes = {m: x.latent for m, x in feed.modalities["short"].items()}
    assert shapes == {"video": (10, 4, 4, 32)}
    seen = {}
    for batch, facts in feed.batches(0, 7):
        seen[facts["component"]] = batch
    assert set(seen) == set(mixed.mixture)
    assert seen["short"]["latents"]["video"].shape == (4, 10, 4, 4, 32)
    assert "caption" in seen["collisions"] and "caption" in seen["digits"] and "caption" not in seen["atari"]
    # One modality means the same in every data set: one autoencoder, fitted to all.
    identity = {name: latents.manifest["modalities"] for name, latents in feed.latents.items()}
    assert identity["collisions"]["video"] == identity["atari"]["video"]
    assert identity["collisions"]["image"] == identity["mnist"]["image"]
    assert len(identity["mnist"]["image"]["fitted_on"]) == 3


def test_captions_are_those_of_their_samples(prepared, mixed):
    feed, built = prepared
    encoder = load_text_encoder(mixed.text)
    reader = feed.reader("collisions", "train")
    for i in reader.records[:4]:
        embedding, mask = reader(int(i))["caption"]
        (expected,) = encoder.encode([built["collisions"].records("train")[int(i)]["caption"]])
        np.testing.assert_array_equal(embedding[mask], expected)
        assert mask.sum() == len(expected) <= 8


def test_excluded_samples_are_in_no_reader(prepared, mixed, capsys, data_dir):
    feed, _ = prepared
    for split in ("train", "test"):
        reader = feed.reader("collisions", split)
        assert not {"train-000003", "train-000011"} & {reader.source.id(i) for i in reader.records}
    assert len(feed.reader("collisions", "train").records) == 22
    prepare_data(resolve(mixed), data_dir)
    assert mentions("exclude 2 ids").search(capsys.readouterr().out)
    # Ids that are neither in the data nor deleted from it; the autoencoders are those of the latents.
    latents = feed.latents
    assert check_excluded("ids", ["gone"], (), [{"hashes": [hash_id("gone")]}]) == {"gone"}
    with pytest.raises(UserError, match=mentions("exclude ids.txt 1 3 ids nobody")):
        _print_excluded("ids.txt", {"train-000003", "train-000011", "nobody"}, latents)


def test_the_hash_of_the_excluded_ids_is_in_the_experiment(mixed, tmp_path):
    assert len(mixed.exclude_hash) == 16 and from_json(to_json(mixed), type(mixed), "here") == mixed
    moved = tmp_path / "moved.txt"
    moved.write_text("\n\ntrain-000011\r\ntrain-000003")
    again = dataclasses.replace(mixed, exclude=str(moved), exclude_hash="")
    assert resolve(again).experiment.exclude_hash == mixed.exclude_hash
    moved.write_text("nobody\n")
    assert resolve(again).experiment.exclude_hash != mixed.exclude_hash
    for text, words in ((b"", "no ids"), (b"\xff\xfe", "UTF-16"), (b"a\n\xff", "2 UTF-8")):
        moved.write_bytes(text)
        with pytest.raises(UserError, match=mentions(moved, words)):
            resolve(again)
    with pytest.raises(UserError, match=mentions("nowhere No such file")):
        resolve(dataclasses.replace(mixed, exclude="nowhere", exclude_hash=""))
    with pytest.raises(UserError, match=mentions("exclude_hash 1234", mixed.exclude, mixed.exclude_hash)):
        resolve(dataclasses.replace(mixed, exclude_hash="1234"))


def test_precomputed_latents_need_no_raw_data(prepared, mixed, tmp_path):
    feed, _ = prepared
    folders = {name: str(latents.path) for name, latents in feed.latents.items()}
    elsewhere = dataclasses.replace(mixed, latents=folders)
    again, built = prepare_data(resolve(elsewhere), tmp_path)
    assert built == {} and not (tmp_path / "collisions").exists()
    assert latents_hash(again.latents) == latents_hash(feed.latents)
    for (a, _), (b, _) in zip(feed.batches(0, 3), again.batches(0, 3)):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    other = dataclasses.replace(
        elsewhere,
        autoencoders=mixed.autoencoders | {"audio": dataclasses.replace(mixed.autoencoders["audio"], channels=64)},
    )
    with pytest.raises(UserError, match=mentions("audio autoencoder 'channels': 128} 64}")):
        prepare_data(resolve(other), tmp_path)
    with pytest.raises(UserError, match=mentions(tmp_path, "manifest.json")):
        prepare_data(resolve(dataclasses.replace(mixed, latents={"mnist": str(tmp_path)})), tmp_path)


@pytest.mark.slow
def test_it_trains_and_logs_unreadable_records(prepared, mixed, tmp_path, data_dir, capsys):
    """Two data sets in one run, one with captions and one with a damaged record."""
    import shutil

    from selfflow.latents.store import shard_name

    feed, _ = prepared
    damaged = tmp_path / "atari"
    shutil.copytree(feed.latents["atari"].path, damaged)
    path = damaged / shard_name("train", 0, 1)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    experiment = dataclasses.replace(
        mixed,
        latents={"atari": str(damaged)},
        mixture={
            "atari": dataclasses.replace(mixed.mixture["atari"], weight=0.5, batch_size=8),
            "digits": dataclasses.replace(mixed.mixture["digits"], weight=0.5),
        },
        alignment=NoAlignment(),
        loader=LoaderOptions(unreadable_share=0.5),
        final_evaluation=dataclasses.replace(mixed.final_evaluation, samples=1),
    )
    train(experiment, tmp_path / "run", data_dir)
    rows = open_run(tmp_path / "run").metrics()
    assert {row["component"] for row in rows} == {"atari", "digits"} and all(np.isfinite(row["loss"]) for row in rows)
    assert rows[6]["component"] == "digits" and all(row["waiting"] >= 0 for row in rows)
    (named,) = {i for row in rows for i in row.get("unreadable", [])}
    assert named.startswith("atari")
    assert mentions(named, "train-00000-of-00001.array_record").search(capsys.readouterr().err)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {name.split("/")[0] for name in summary["flow_loss"]} == {"atari", "digits"}


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda e: {"mixture": {"a": Component(("image",), 1.0, 4, data="colisions")}},
            "mixture.a.data colisions collisions",
        ),
        (lambda e: {"mixture": {"a": Component(("image",), 1.0, 4)}}, "mixture.a.data empty"),
        (
            lambda e: {"mixture": {"a": Component(("audio",), 1.0, 4, data="mnist")}},
            "mixture.a.modalities audio data.mnist",
        ),
        (
            lambda e: {"mixture": {"a": Component(("video",), 1.0, 4, data="atari", seconds=0.1)}},
            "mixture.a.seconds 0.1",
        ),
        (
            lambda e: {"data": e.data | {"atari": Atari(size=64)}},
            "data.atari image size",
        ),
        (
            lambda e: {"data": e.data | {"atari": Atari(frames_per_second=25.0)}},
            "data.atari video frames_per_second",
        ),
        (lambda e: {"latents": {"nobody": "x"}}, "latents.nobody"),
        (lambda e: {"text": None}, "text model.text"),
        (lambda e: {"curriculum": (Stage(step=1, weights={"nobody": 1.0}),)}, "nobody"),
    ],
)
def test_experiments_that_cannot_be(mixed, change, words):
    with pytest.raises(UserError, match=mentions(words)):
        resolve(dataclasses.replace(mixed, **({"curriculum": ()} | change(mixed))))


def test_captions_of_another_width_are_refused(mixed, data_dir):
    wide = dataclasses.replace(mixed, model=dataclasses.replace(mixed.model, text=16))
    with pytest.raises(UserError, match=mentions("model.text 16 captions 12")):
        prepare_data(resolve(wide), data_dir)
