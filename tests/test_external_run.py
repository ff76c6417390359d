"""A run that is aligned with a frozen encoder: prepared, trained, taken up again, looked at and exported."""

import dataclasses
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from selfflow.config.resolve import resolve
from selfflow.data.built import build
from selfflow.encoders import FeatureFiles
from selfflow.errors import UserError
from selfflow.interop.export import export
from selfflow.objectives.alignment import ExternalEncoder
from selfflow.run.prepare_data import latents_hash, prepare_data
from selfflow.run.run import open_run
from selfflow.tasks.train import train
from tests.conftest import mentions


@pytest.fixture(scope="module")
def aligned(tiny_experiment, data_dir, tmp_path_factory):
    """The tiny experiment, whose encoder of images and videos sees the mean colours of 4 x 4 squares."""
    folder, built = tmp_path_factory.mktemp("features"), build(tiny_experiment.data["collisions"], data_dir)
    for m in ("image", "video"):
        colours = {}
        for split in built.splits:
            for record in built.records(split):
                x = record[m].astype(np.float32) / 255
                *lead, side, _, _ = x.shape
                colours[record["id"]] = x.reshape(*lead, 4, side // 4, 4, side // 4, 3).mean((-2, -4))
        save_file(colours, folder / f"{m}.safetensors")
    encoders = {m: FeatureFiles(str(folder / f"{m}.safetensors"), 3) for m in ("image", "video")} | {"audio": None}
    return dataclasses.replace(
        tiny_experiment,
        alignment=ExternalEncoder(student_layer=1, projector_depth=2, encoders=encoders),
        steps=6,
        final_evaluation=dataclasses.replace(tiny_experiment.final_evaluation, samples=1, probe_clips=0),
    )


def test_batches_have_the_targets_of_their_tokens(aligned, data_dir):
    feed, built = prepare_data(resolve(aligned), data_dir)
    seen = {facts["component"]: batch for batch, facts in feed.batches(0, 4)}
    assert {m: x.shape for m, x in seen["joint"]["features"].items()} == {"video": (2, 25 * 2 * 2, 3)}
    assert {m: x.shape for m, x in seen["image"]["features"].items()} == {"image": (4, 16, 3)}
    split, batch = feed.held_out(("validation",), 2)["image"]
    record = built["collisions"].records(split)[0]["image"].astype(np.float32) / 255
    by_hand = record.reshape(4, 8, 4, 8, 3).mean((1, 3)).reshape(16, 3)
    np.testing.assert_allclose(batch["features"]["image"][0], by_hand, atol=1e-3)


def test_precomputed_latents_need_neither_raw_data_nor_encoder(aligned, tiny_experiment, data_dir, tmp_path):
    feed, _ = prepare_data(resolve(aligned), data_dir)
    gone = {m: e and dataclasses.replace(e, path="no/longer/here") for m, e in aligned.alignment.encoders.items()}
    elsewhere = dataclasses.replace(
        aligned,
        alignment=dataclasses.replace(aligned.alignment, encoders=gone),
        latents={"collisions": str(feed.latents["collisions"].path)},
    )
    again, built = prepare_data(resolve(elsewhere), tmp_path)
    assert built == {} and latents_hash(again.latents) == latents_hash(feed.latents)
    plain, _ = prepare_data(resolve(tiny_experiment), data_dir)
    assert latents_hash(plain.latents) != latents_hash(feed.latents)
    without = dataclasses.replace(elsewhere, latents={"collisions": str(plain.latents["collisions"].path)})
    with pytest.raises(UserError, match=mentions(plain.latents["collisions"].path, "features alignment.encoders")):
        prepare_data(resolve(without), tmp_path)
    # An experiment without an encoder may read latents with features, and ignores these.
    other = dataclasses.replace(tiny_experiment, latents=elsewhere.latents)
    read, _ = prepare_data(resolve(other), tmp_path)
    assert all("features" not in batch for batch, _ in read.batches(0, 3))


@pytest.mark.slow
def test_it_trains_resumes_and_is_exported(aligned, data_dir, tmp_path, capsys):
    train(dataclasses.replace(aligned, steps=4), tmp_path / "run", data_dir)
    assert re.search(r"\baudio\b.*\balignment\.encoders\b", capsys.readouterr().out)
    train(aligned, tmp_path / "run", data_dir)
    run = open_run(tmp_path / "run")
    rows = run.metrics()
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        names = {name for name in row if name.startswith("alignment_cosine/")}
        assert names == {"alignment_cosine/video" if row["component"] == "joint" else "alignment_cosine/image"}
        assert np.isfinite(row["loss"])
    clips = run.data("test", component="joint")
    from selfflow.representation.views import views

    seen = views(run, clips, [0, 1])
    assert set(seen.cosine) == {"video"} and seen.cosine["video"].shape == (2, 100)
    (tmp_path / "out").mkdir()
    assert not export(run, tmp_path / "out").projector  # its head leads to another network
