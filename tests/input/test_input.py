"""From a prepared data set to batches."""

import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.input.latents import prepare_latents
from selfflow.input.mixture import Set, batches


@pytest.fixture(scope="module")
def prepared(tiny_experiment, data_dir):
    builder = tiny_experiment.data.build(data_dir)
    return builder, prepare_latents(builder, tiny_experiment.autoencoders, data_dir, 8000)


MIXTURE = {"joint": Set(("video", "audio"), 3.0, 4), "image": Set(("image",), 1.0, 5)}


def take(source, count, start=0, seed=0, mixture=MIXTURE, label="material", classes=4):
    stream = batches(source, mixture, label, classes, seed, start)
    return [next(stream) for _ in range(count)]


def test_latents_are_the_encoded_records_in_order(prepared, tiny_experiment):
    builder, latents = prepared
    records, source = builder.as_data_source("test"), latents.source("test")
    assert len(source) == len(records) == 12
    for i in (0, 7):
        for m, autoencoder in latents.autoencoders.items():
            np.testing.assert_array_equal(source[i][m], autoencoder.encode(records[i][m]).astype(np.float16))
            assert source[i][m].shape == tiny_experiment.modalities()[m].latent
        assert source.index["label/material"][i] == records[i]["material"]


def test_latents_are_encoded_once_and_quality_is_kept(prepared, tiny_experiment, data_dir, capsys):
    builder, latents = prepared
    capsys.readouterr()
    again = prepare_latents(builder, tiny_experiment.autoencoders, data_dir, 8000)
    assert again.path == latents.path and again.hash == latents.hash and "encode" not in capsys.readouterr().err
    quality = latents.manifest["quality"]
    assert quality["video"]["psnr_db"] > 15 and {"snr_db", "log_mel_distance"} <= set(quality["audio"])
    assert "snr_db/steel" in quality["audio"]


def test_what_is_half_written_is_never_taken_for_latents(prepared, tiny_experiment, data_dir, tmp_path, monkeypatch):
    builder, latents = prepared
    import selfflow.input.latents as module

    def fail(*_):
        raise OSError("disk")

    with monkeypatch.context() as patch:
        patch.setattr(module, "reconstruction_quality", fail)
        with pytest.raises(OSError):
            prepare_latents(builder, tiny_experiment.autoencoders, tmp_path, 8000)
    assert not list((tmp_path / "latents").iterdir())
    whole = prepare_latents(builder, tiny_experiment.autoencoders, tmp_path, 8000)
    (whole.path / "manifest.json").unlink()  # as if killed before the last file
    mended = prepare_latents(builder, tiny_experiment.autoencoders, tmp_path, 8000)
    assert mended.hash == whole.hash == latents.hash


def test_a_step_sees_the_same_wherever_it_is_started(prepared):
    source = prepared[1].source("train")
    straight = take(source, 12)
    for start in (0, 5, 11):
        for a, b in zip(straight[start:], take(source, 12 - start, start)):
            assert sorted(a["latents"]) == sorted(b["latents"])
            for m in a["latents"]:
                np.testing.assert_array_equal(a["latents"][m], b["latents"][m])
    other = take(source, 12, seed=1)
    assert any(
        set(a["latents"]) != set(b["latents"]) or not np.array_equal(a["label"], b["label"])
        for a, b in zip(straight, other)
    )


def test_each_batch_holds_one_set_in_its_share(prepared):
    found = take(prepared[1].source("train"), 40)
    joint = [b for b in found if set(b["latents"]) == {"video", "audio"}]
    image = [b for b in found if set(b["latents"]) == {"image"}]
    assert len(joint) + len(image) == 40 and len(joint) == pytest.approx(30, abs=1)
    assert all(len(b["label"]) == 4 for b in joint) and all(len(b["label"]) == 5 for b in image)


def test_an_epoch_sees_every_record_once_in_an_order_of_its_own(prepared):
    source = prepared[1].source("train")
    only = {"image": Set(("image",), 1.0, 24)}
    first, second = take(source, 2, mixture=only)
    key = lambda b: [x.tobytes() for x in b["latents"]["image"]]
    assert sorted(key(first)) == sorted(key(second)) == sorted(source[i]["image"].tobytes() for i in range(24))
    assert key(first) != key(second)


def test_labels_belong_to_their_samples(prepared):
    source = prepared[1].source("train")
    labels = {source[i]["image"].tobytes(): source.index["label/material"][i] for i in range(24)}
    for batch in take(source, 4, mixture={"image": Set(("image",), 1.0, 6)}):
        assert [labels[x.tobytes()] for x in batch["latents"]["image"]] == batch["label"].tolist()
    (unlabelled,) = take(source, 1, label="")
    assert (unlabelled["label"] == -1).all()


def test_what_the_data_does_not_have_is_named(prepared, tiny_experiment, data_dir):
    builder, latents = prepared
    source = latents.source("train")
    with pytest.raises(UserError, match="no such field; it has count, material"):
        take(source, 1, label="colour")
    with pytest.raises(UserError, match="model.labels must be at least"):
        take(source, 1, classes=2)
    source.index = source.index | {"present/audio": np.zeros(24, bool)}
    with pytest.raises(UserError, match="mixture.joint: no record"):
        take(source, 1)
