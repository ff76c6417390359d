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
from tests.conftest import mentions


@pytest.fixture
def sample(tiny_run, data_dir, tmp_path):
    def call(*flags, out="out"):
        for flag, value in (("--count", 3), ("--batch-size", 2)):
            flags += () if flag in flags else (flag, value)
        main([str(tiny_run), "--out", str(tmp_path / out), "--data-dir", str(data_dir), *map(str, flags)])
        return tmp_path / out

    return call


def latents_of(folder, number=0):
    with np.load(folder / f"{number:05d}.npz") as latents:
        return dict(latents)


def test_videos_with_audio_their_latents_and_a_sheet(sample, tiny_run, capsys):
    folder = sample("--modality", "video,audio")
    names = {path.name for path in folder.iterdir()}
    assert names == {f"{i:05d}.{kind}" for i in range(3) for kind in ("mp4", "wav", "npz")} | {
        "sheet.png",
        "samples.json",
    }
    assert mentions("3 samples", folder, "samples.json sheet.png").search(capsys.readouterr().out)
    run = open_run(tiny_run)
    assert {m: x.shape for m, x in latents_of(folder).items()} == {
        m: modality.latent for m, modality in run.setup.modalities["joint"].items()
    }
    audio, rate = soundfile.read(folder / "00001.wav", dtype="int16")
    assert rate == 8000 and (audio == run.autoencoder("audio").decode(latents_of(folder, 1)["audio"])).all()
    with Image.open(folder / "sheet.png") as page:
        assert page.width > 500


def test_images(sample):
    folder = sample("--modality", "image")
    with Image.open(folder / "00002.png") as image:
        assert image.size == (32, 32)


def test_samples_that_exist_are_not_made_again_and_more_can_follow(sample, capsys):
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


def test_samples_of_other_arguments_do_not_mix(sample):
    folder = sample("--modality", "image")
    with pytest.raises(UserError, match=mentions("--out", folder, "seed 0 1")):
        sample("--modality", "image", "--seed", 1)


def test_a_video_of_the_data_is_kept_and_gets_audio(sample, tiny_run, data_dir):
    folder = sample("--modality", "audio", "--context", "video")
    from selfflow.run.prepare_data import prepare_data

    reader = prepare_data(open_run(tiny_run).setup, data_dir)[0].reader("joint", "test")
    record = reader(int(reader.records[2]))["latents"]
    np.testing.assert_array_equal(latents_of(folder, 2)["video"], record["video"].astype(np.float32))
    assert np.abs(latents_of(folder, 2)["audio"] - record["audio"]).mean() > 0.1
    assert json.loads((folder / "samples.json").read_text())["context"] == ["video"]


def test_files_are_converted(sample, tiny_run, tmp_path):
    """A video from a larger image, the continuation of short audio, an image from a noised one."""
    run = open_run(tiny_run)
    file = tmp_path / "image.png"
    image = np.zeros((90, 60, 3), np.uint8)
    image[:, :30, 0] = 200
    Image.fromarray(image).save(file)
    folder = sample("--modality", "video,audio", "--context", f"image={file}")
    first = run.autoencoder("video").decode(latents_of(folder)["video"])[0]
    assert first[16, 4, 0] > 150 and first[16, 28, 0] < 60
    audio = (8000 * np.sin(np.arange(44_100 // 2) * 2 * np.pi * 440 / 44_100)).astype(np.int16)
    soundfile.write(tmp_path / "audio.wav", audio, 44_100)
    with pytest.raises(UserError, match=mentions("--context", f"video={tmp_path}/audio.wav", "2 s")):
        sample("--context", f"video={tmp_path / 'audio.wav'}", out="b")
    near = sample("--modality", "image", "--context", f"image@0.05={file}", out="c")
    kept = run.autoencoder("image").decode(latents_of(near)["image"])
    assert kept[16, 4, 0] > 150 and kept[16, 28, 0] < 60


def test_a_short_video_is_continued(sample, tiny_run, tmp_path):
    from selfflow.sampling.media_files import write_video

    frames = np.zeros((13, 64, 64, 3), np.uint8)
    frames[:, :, :32, 2] = 220
    audio = (8000 * np.sin(np.arange(8320) * 2 * np.pi * 440 / 8000)).astype(np.int16)
    write_video(tmp_path / "short.mp4", frames, 12.5, audio, 8000)
    folder = sample("--context", f"prefix:0.8={tmp_path / 'short.mp4'}")
    video = open_run(tiny_run).autoencoder("video").decode(latents_of(folder)["video"])
    assert (video[:10, 16, 4, 2] > 150).all() and (video[:10, 16, 28, 2] < 60).all()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--modality", "smell"], "--modality smell video, audio, image"),
        (["--modality", "video"], "trained on other components"),
        (["--context", "inpaint_region:0,0,1,0.5"], "schedule.context lacks inpaint_region"),
        (["--context", "first_frame=nowhere.png"], "nowhere.png"),
        (["--count", "0"], "--count 0"),
        (["--context", "video="], "no file is named"),
        (["--context", "image@0.5=a.png", "--modality", "video,audio"], "noise level"),
        (["--context", "image@0.03", "--sampler.solver", "euler_maruyama"], "euler_maruyama starts above"),
        (["--label", "3"], "--label 3"),
        (["--caption", "a circle"], "without captions"),
        (["--sampler.guidance", "3"], "sampler.guidance 3.0"),
        (["--step", "7"], "checkpoint 7"),
    ],
)
def test_what_cannot_be_sampled(sample, flags, words):
    with pytest.raises(UserError, match=mentions(words)):
        sample(*flags)


def test_the_audio_of_a_video_file_is_context_whatever_its_frames(sample, tmp_path):
    file = sample("--modality", "video,audio") / "00000.mp4"
    folder = sample("--modality", "video", "--context", f"audio={file}", out="b")
    assert np.isfinite(latents_of(folder)["audio"]).all() and latents_of(folder)["audio"].any()


def test_a_repeated_flag_is_refused(sample):
    with pytest.raises(UserError, match=mentions("--context repeated")):
        sample("--context", "video", "--context", "audio")


def test_samples_that_are_not_finite_are_named(tiny_run, tmp_path, monkeypatch):
    import jax

    from selfflow.run.run import Run

    broken = lambda self, *args: restored(self, *args)._replace(frozen=jax.tree.map(lambda x: x * np.nan, state.frozen))
    restored, state = Run.weights, open_run(tiny_run).weights()
    monkeypatch.setattr(Run, "weights", broken)
    with pytest.raises(UserError, match=mentions("image sample 0 NaN 2")):
        main([str(tiny_run), "--out", str(tmp_path / "out"), "--modality", "image", "--count", "2"])


def test_data_that_was_rebuilt_is_refused(tiny_run, tmp_path, data_dir):
    shutil.copytree(tiny_run, tmp_path / "run")
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    (tmp_path / "run" / "provenance.json").write_text(json.dumps(provenance | {"data": "other"}))
    with pytest.raises(UserError, match=mentions(tmp_path / "run", "latents other", provenance["data"], "--data-dir")):
        flags = ["--context", "video", "--data-dir", str(data_dir), "--out", str(tmp_path / "out")]
        main([str(tmp_path / "run"), *flags])


def test_a_damaged_context_file_is_named(sample, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video at all" * 100)
    with pytest.raises(UserError, match=mentions("--context", f"video={tmp_path}/a.mp4", "Invalid data")):
        sample("--context", f"video={tmp_path / 'a.mp4'}")


def test_a_damaged_and_a_missing_autoencoder_are_named(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "autoencoders" / "audio.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=mentions("audio.safetensors damaged")):
        main([str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    shutil.rmtree(tmp_path / "run" / "autoencoders")
    with pytest.raises(UserError, match=mentions("no autoencoder video.safetensors")):
        main([str(tmp_path / "run"), "--out", str(tmp_path / "out")])


def test_no_run(tmp_path):
    with pytest.raises(UserError, match=mentions(tmp_path, "experiment.json")):
        main([str(tmp_path)])
    with pytest.raises(UserError, match=mentions("run selfflow sample")):
        main(["--count", "3"])
