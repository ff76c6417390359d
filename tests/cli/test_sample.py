import hashlib
import json
import shutil

import numpy as np
import pytest
import soundfile
from PIL import Image

from selfflow.cli.sample import main
from selfflow.errors import UserError
from selfflow.run.run import open_run


@pytest.fixture
def sample(tiny_run, data_dir, tmp_path):
    def call(*flags, out="out"):
        for flag, value in (("--count", 3), ("--batch-size", 2)):
            flags += () if flag in flags else (flag, value)
        main([str(tiny_run), "--out", str(tmp_path / out), "--data-dir", str(data_dir), *map(str, flags)])
        return tmp_path / out

    return call


def latents_of(folder, number=0):
    with np.load(folder / f"{number:05d}.npz") as found:
        return {m: found[m] for m in found.files}


def test_films_with_sound_their_latents_and_a_sheet(sample, tiny_run, capsys):
    folder = sample("--modality", "video,audio")
    names = {path.name for path in folder.iterdir()}
    assert names == {f"{i:05d}.{kind}" for i in range(3) for kind in ("mp4", "wav", "npz")} | {
        "sheet.png",
        "samples.json",
    }
    assert "3 samples" in capsys.readouterr().out
    run = open_run(tiny_run)
    assert {m: x.shape for m, x in latents_of(folder).items()} == {
        m: modality.latent for m, modality in run.setup.modalities["joint"].items()
    }
    sound, rate = soundfile.read(folder / "00001.wav", dtype="int16")
    assert rate == 8000 and (sound == run.autoencoder("audio").decode(latents_of(folder, 1)["audio"])).all()
    with Image.open(folder / "sheet.png") as page:
        assert page.width > 500


def test_pictures(sample):
    folder = sample("--modality", "image")
    with Image.open(folder / "00002.png") as picture:
        assert picture.size == (32, 32)


def test_samples_that_are_there_are_not_made_again_and_more_can_follow(sample, capsys):
    folder = sample("--modality", "image")
    digest = lambda: hashlib.sha256((folder / "00001.npz").read_bytes()).hexdigest()
    before, stamp = digest(), (folder / "00001.npz").stat().st_mtime_ns
    (folder / "00000.npz").unlink()
    sample("--modality", "image", "--count", 4, "--batch-size", 3)
    assert digest() == before and (folder / "00001.npz").stat().st_mtime_ns == stamp
    assert {path.name for path in folder.glob("*.npz")} == {f"{i:05d}.npz" for i in range(4)}
    whole = sample("--modality", "image", "--count", 4, "--batch-size", 4, out="whole")
    for number in range(4):
        np.testing.assert_allclose(latents_of(folder, number)["image"], latents_of(whole, number)["image"], atol=1e-4)


def test_other_arguments_do_not_mix(sample):
    sample("--modality", "image")
    with pytest.raises(UserError, match="another seed .0, now 1."):
        sample("--modality", "image", "--seed", 1)


def test_a_film_from_the_data_keeps_and_gets_its_sound(sample, tiny_run, data_dir):
    folder = sample("--modality", "audio", "--context", "video")
    from selfflow.run.prepare_data import prepare_data

    reader = prepare_data(open_run(tiny_run).setup, data_dir)[0].reader("joint", "test")
    record = reader(int(reader.records[2]))["latents"]
    np.testing.assert_array_equal(latents_of(folder, 2)["video"], record["video"].astype(np.float32))
    assert np.abs(latents_of(folder, 2)["audio"] - record["audio"]).mean() > 0.1
    assert json.loads((folder / "samples.json").read_text())["context"] == ["video"]


def test_files_are_converted(sample, tiny_run, tmp_path):
    """A film from a larger picture, the continuation of a short sound, a picture from a noised one."""
    run = open_run(tiny_run)
    picture = np.zeros((90, 60, 3), np.uint8)
    picture[:, :30, 0] = 200
    Image.fromarray(picture).save(tmp_path / "picture.png")
    folder = sample("--modality", "video,audio", "--context", f"image={tmp_path / 'picture.png'}")
    first = run.autoencoder("video").decode(latents_of(folder)["video"])[0]
    assert first[16, 4, 0] > 150 and first[16, 28, 0] < 60
    sound = (8000 * np.sin(np.arange(44_100 // 2) * 2 * np.pi * 440 / 44_100)).astype(np.int16)
    soundfile.write(tmp_path / "sound.wav", sound, 44_100)
    with pytest.raises(UserError, match="no clip of 2 s|has? no video"):
        sample("--context", f"video={tmp_path / 'sound.wav'}", out="b")
    near = sample("--modality", "image", "--context", f"image@0.05={tmp_path / 'picture.png'}", out="c")
    kept = run.autoencoder("image").decode(latents_of(near)["image"])
    assert kept[16, 4, 0] > 150 and kept[16, 28, 0] < 60


def test_a_short_film_is_continued(sample, tiny_run, tmp_path):
    from selfflow.sampling.media_files import write_video

    frames = np.zeros((13, 64, 64, 3), np.uint8)
    frames[:, :, :32, 2] = 220
    sound = (8000 * np.sin(np.arange(8320) * 2 * np.pi * 440 / 8000)).astype(np.int16)
    write_video(tmp_path / "short.mp4", frames, 12.5, sound, 8000)
    folder = sample("--context", f"prefix:0.8={tmp_path / 'short.mp4'}")
    made = open_run(tiny_run).autoencoder("video").decode(latents_of(folder)["video"])
    assert (made[:10, 16, 4, 2] > 150).all() and (made[:10, 16, 28, 2] < 60).all()


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--modality", "smell"], "smell: this run has video, audio, image"),
        (["--modality", "video"], "trained on other components"),
        (["--context", "inpaint_region:0,0,1,0.5"], "schedule.context lacks inpaint_region"),
        (["--context", "first_frame=nowhere.png"], "nowhere.png: no such file"),
        (["--count", "0"], "--count is 0"),
        (["--context", "video="], "no file is named"),
        (["--context", "image@0.5=a.png", "--modality", "video,audio"], "not with noise"),
        (["--context", "image@0.03", "--sampler.solver", "euler_maruyama"], "euler_maruyama starts above"),
        (["--label", "3"], "--label 3: this run has no labels"),
        (["--caption", "a circle"], "without captions"),
        (["--sampler.guidance", "3"], "sampler.guidance is 3"),
        (["--step", "7"], "no checkpoint of step 7"),
    ],
)
def test_what_cannot_be_sampled(sample, flags, said):
    with pytest.raises(UserError, match=said):
        sample(*flags)


def test_the_sound_of_a_film_is_given_whatever_its_pictures(sample, tmp_path):
    film = sample("--modality", "video,audio") / "00000.mp4"
    folder = sample("--modality", "video", "--context", f"audio={film}", out="b")
    assert np.isfinite(latents_of(folder)["audio"]).all() and latents_of(folder)["audio"].any()


def test_a_flag_that_stands_twice_is_refused(sample):
    with pytest.raises(UserError, match="--context stands there twice"):
        sample("--context", "video", "--context", "audio")


def test_samples_that_are_no_numbers_are_named(tiny_run, tmp_path, monkeypatch):
    import jax

    from selfflow.run.run import Run

    broken = lambda self, *args: restored(self, *args)._replace(frozen=jax.tree.map(lambda x: x * np.nan, state.frozen))
    restored, state = Run.weights, open_run(tiny_run).weights()
    monkeypatch.setattr(Run, "weights", broken)
    with pytest.raises(UserError, match="of sample 0 holds NaN"):
        main([str(tiny_run), "--out", str(tmp_path / "out"), "--modality", "image", "--count", "2"])


def test_data_that_was_rebuilt_is_refused(tiny_run, tmp_path, data_dir):
    shutil.copytree(tiny_run, tmp_path / "run")
    told = json.loads((tmp_path / "run" / "provenance.json").read_text())
    (tmp_path / "run" / "provenance.json").write_text(json.dumps(told | {"data": "other"}))
    with pytest.raises(UserError, match="trained on other latents"):
        flags = ["--context", "video", "--data-dir", str(data_dir), "--out", str(tmp_path / "out")]
        main([str(tmp_path / "run"), *flags])


def test_a_damaged_given_file_is_named(sample, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no film at all" * 100)
    with pytest.raises(UserError, match="--context video=.*a.mp4"):
        sample("--context", f"video={tmp_path / 'a.mp4'}")


def test_a_run_without_its_autoencoder_says_so(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "autoencoders" / "audio.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="audio.safetensors is damaged"):
        main([str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    shutil.rmtree(tmp_path / "run" / "autoencoders")
    with pytest.raises(UserError, match="no autoencoder for video"):
        main([str(tmp_path / "run"), "--out", str(tmp_path / "out")])


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        main([str(tmp_path)])
    with pytest.raises(UserError, match="name a run folder first"):
        main(["--count", "3"])
