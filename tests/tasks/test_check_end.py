"""What a run needs after its last step is an error, or a warning, before its first."""

import dataclasses
from collections import namedtuple
from types import SimpleNamespace

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from selfflow.config.resolve import resolve
from selfflow.config.shapes import MediaSpec
from selfflow.data.media import Media
from selfflow.errors import UserError
from selfflow.input.mixture import Component
from selfflow.run.prepare_data import prepare_data
from selfflow.tasks import check_end
from selfflow.tasks.check_end import (
    check_decoders,
    check_files,
    check_latents,
    check_probes,
    check_sample_files,
    kept_checkpoints,
    warn_of_space,
)
from selfflow.tasks.train import train
from selfflow.training.loop import Cadence
from tests.conftest import mentions


def images_alone(experiment, folder):
    """The experiment on a folder of images, as the README of experiments makes it: without its component `joint`."""
    return dataclasses.replace(
        experiment,
        data={"media": Media(source=str(folder), size=16)},
        mixture={"image": dataclasses.replace(experiment.mixture["image"], data="media", weight=1.0)},
        schedule=dataclasses.replace(experiment.schedule, context={}),
        steps=2,
    )


@pytest.mark.parametrize("count", [1, 5])
def test_an_experiment_of_images_alone_encodes_images_alone(tiny_experiment, tmp_path, count):
    (tmp_path / "images").mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    setup = resolve(images_alone(tiny_experiment, tmp_path / "images"))
    source, built = prepare_data(setup, tmp_path / "data")
    assert built["media"].modalities() == {"image"}
    assert list(source.latents["media"].manifest["modalities"]) == ["image"]
    check_latents(source)
    check_probes(setup, source, built)
    check_sample_files(setup)
    check_decoders(setup, source)


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_one_modality_trains_from_its_folder_to_its_samples(tiny_experiment, tmp_path, modality):
    from selfflow.sampling.media_files import write_media

    settings = Media(source=str(tmp_path / "files"), size=16, frames=5, validation_fraction=0.0, test_fraction=0.0)
    (tmp_path / "files").mkdir()
    random = np.random.default_rng(0)
    for i in range(4):
        shape = (1, 16, 16, 3) if modality == "image" else (20, 16, 16, 3)
        values = random.integers(0, 256, shape, np.uint8)
        clip = values[0] if modality == "image" else values
        if modality == "audio":
            clip = random.integers(-9999, 9999, 16000).astype(np.int16)
        write_media(tmp_path / "files" / str(i), {modality: clip}, {"audio": 8000, "video": 12.5})
    mixture = {"alone": Component((modality,), 1.0, 2, data="media")}
    experiment = dataclasses.replace(
        images_alone(tiny_experiment, tmp_path / "files"), data={"media": settings}, mixture=mixture
    )
    summary = train(experiment, tmp_path / "run", tmp_path / "data")
    assert list(summary["flow_loss"]) == [f"alone/{modality}"]
    assert np.isfinite(summary["flow_loss"][f"alone/{modality}"]["normalised_loss"])
    assert [path.name for path in (tmp_path / "run" / "autoencoders").iterdir()] == [f"{modality}.safetensors"]
    assert len(summary["files"]) == (1 if modality == "image" else 3)


def test_latents_that_never_vary_are_an_error_before_the_folder_is_a_run(tiny_experiment, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.new("RGB", (16, 16), (200, 30, 30)).save(tmp_path / "images" / f"{i}.png")
    with pytest.raises(UserError, match=mentions("mixture.image data.media")):
        train(images_alone(tiny_experiment, tmp_path / "images"), tmp_path / "run", tmp_path / "data")
    assert not (tmp_path / "run" / "experiment.json").exists()


def test_files_that_cannot_be_written_name_component_size_and_rate(monkeypatch):
    media = {"video": MediaSpec((5, 8, 8, 3), 12.5), "audio": MediaSpec((3200,), 8000.0)}
    check_files("joint", media)

    def no_codec(stem, clips, rates):
        assert clips["video"].shape == (2, 8, 8, 3) and clips["audio"].shape == (3200,)
        raise ValueError("no encoder for h264\nmore")

    monkeypatch.setattr(check_end, "write_media", no_codec)
    with pytest.raises(UserError, match=mentions("mixture.joint video 12.5 audio 8000 h264")):
        check_files("joint", media)
    check_files("joint", media, clips=False)
    check_files("image", {"image": MediaSpec((8, 8, 3), 0.0)})  # a sheet alone


@pytest.mark.parametrize("missing", ["validation", "test"])
def test_a_missing_split_of_the_probes_is_named(missing):
    clips = {
        split: SimpleNamespace(indices_with=lambda modalities: [0, 1]) for split in ("train", "validation", "test")
    }
    clips[missing] = SimpleNamespace(indices_with=lambda modalities: [])
    setup = SimpleNamespace(
        experiment=SimpleNamespace(final_evaluation=SimpleNamespace(probe_clips=64)),
        objective=SimpleNamespace(modalities={"video": None, "audio": None}),
    )
    source = SimpleNamespace(latents={"a": SimpleNamespace(records=clips, open_split=clips.get)})
    built = {
        "a": SimpleNamespace(
            settings=SimpleNamespace(
                ground_truth=SimpleNamespace(columns=("count",)), media_shapes=lambda: ("video", "audio")
            )
        )
    }
    with pytest.raises(UserError, match=mentions("final_evaluation.probe_clips 64 data.a", missing)):
        check_probes(setup, source, built)
    setup.experiment.final_evaluation.probe_clips = 0
    check_probes(setup, source, built)


@pytest.mark.parametrize(
    "cadence, steps, kept",
    [
        (Cadence(checkpoint_every=3, keep_last=2), 12, 3),
        (Cadence(checkpoint_every=3, keep_last=2), 4, 2),  # steps 3 and 4
        (Cadence(checkpoint_every=100, keep_last=2), 12, 1),
        (Cadence(checkpoint_every=10, keep_last=2, keep_every=50), 1000, 23),
    ],
)
def test_too_little_space_for_the_kept_checkpoints_is_a_warning(cadence, steps, kept, tmp_path, monkeypatch, capsys):
    assert kept_checkpoints(cadence, steps) == kept
    state = {"a": jax.ShapeDtypeStruct((250, 10**6), jnp.float32)}  # 1 GB
    free = kept * 10**9
    monkeypatch.setattr(check_end.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(free))
    warn_of_space(tmp_path, state, cadence, steps, [])
    assert capsys.readouterr().err == ""
    free -= 1
    warn_of_space(tmp_path, state, cadence, steps, [3])  # one is there already
    assert capsys.readouterr().err == ""
    warn_of_space(tmp_path, state, cadence, steps, [])
    assert mentions(tmp_path, kept, "GB cadence.keep_last cadence.keep_every").search(capsys.readouterr().err)


def test_a_missing_encoder_shows_before_the_run(monkeypatch):
    for size in ((1, 1), (31, 33), (1080, 1920)):
        check_files("joint", {"video": MediaSpec((25, *size, 3), 12.5)})
    with pytest.raises(UserError, match=mentions("mixture.joint 17000 2 av")):
        check_files("joint", {"video": MediaSpec((25, 2, 17_000, 3), 12.5)})
    add_stream = av.container.OutputContainer.add_stream

    class WithoutFlac:
        def __init__(self, container):
            self._container = container

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self._container.close()

        def add_stream(self, codec, **options):
            if codec == "flac":
                raise av.codec.codec.UnknownCodecError(codec)
            return add_stream(self._container, codec, **options)

        def mux(self, packets):
            self._container.mux(packets)

    real_open = av.open
    monkeypatch.setattr(av, "open", lambda *arguments, **options: WithoutFlac(real_open(*arguments, **options)))
    with pytest.raises(UserError, match=mentions("mixture.joint flac 32")):
        check_files("joint", {"video": MediaSpec((25, 32, 32, 3), 12.5), "audio": MediaSpec((16_000,), 8000)})
