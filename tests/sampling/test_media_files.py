"""Files that are written, decoded again: times, lengths and colours."""

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from selfflow.data.media import Media
from selfflow.data.media.read import read_clip
from selfflow.sampling.media_files import write_audio, write_media, write_sheet, write_video

COLOURS = ((250, 20, 20), (20, 250, 20), (20, 20, 250), (250, 250, 20), (128, 128, 128), (0, 0, 0), (255, 255, 255))


def read_video(path):
    """Times of the frames (s), frames as RGB, and what the file declares."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        declared = (
            float(file.duration / av.time_base),
            stream.codec_context.colorspace,
            stream.codec_context.color_range,
        )
        # PyAV converts with the file's own colour matrix, as players do.
        frames = [
            (float(frame.pts * frame.time_base), frame.to_ndarray(format="rgb24")) for frame in file.decode(stream)
        ]
    return np.array([time for time, _ in frames]), np.stack([pixels for _, pixels in frames]), declared


def read_track(path):
    """Time of the first sample (s), the samples in [-1, 1], and their rate."""
    with av.open(str(path)) as file:
        blocks = list(file.decode(audio=0))
    samples = np.concatenate([block.to_ndarray().ravel() for block in blocks])
    return float(blocks[0].pts * blocks[0].time_base), samples / 32768, blocks[0].sample_rate


def flash_and_click(frames, fps, rate, size=(16, 16)):
    """A clip whose first, middle and last frame are white, with a click for the length of each of them."""
    video = np.full((frames, *size, 3), 20, np.uint8)
    audio = np.zeros(round(frames / fps * rate), np.int16)
    for number in (0, frames // 2, frames - 1):
        video[number] = 235
        audio[round(number / fps * rate) : round((number + 1) / fps * rate)] = 20_000
    return video, audio


@pytest.mark.parametrize("fps", [12.5, 5, 29.97, 60, 0.5, 1 / 3])
@pytest.mark.parametrize("rate", [8000, 44_100])
def test_video_and_audio_are_in_step_at_every_frame_rate(tmp_path, fps, rate):
    check_step(tmp_path, fps, rate)


@pytest.mark.parametrize(
    "rate",
    [1000, 4000, 6000, 7350, 10_000, 11_025, 16_000, 20_000, 22_050, 24_000, 32_000, 48_000, 96_000, 100_001, 192_000,
     250_000, 8000.5],
)  # fmt: skip
def test_video_and_audio_are_in_step_at_every_sample_rate(tmp_path, rate):
    check_step(tmp_path, 12.5, rate)


def check_step(folder, fps, rate, frames=13):
    video, audio = flash_and_click(frames, fps, rate)
    write_video(folder / "a.mp4", video, fps, audio, rate)
    times, pixels, (seconds, *_) = read_video(folder / "a.mp4")
    np.testing.assert_allclose(times, np.arange(frames) / fps, atol=1e-3 / fps)
    assert seconds == pytest.approx(frames / fps, rel=0.01)
    start, samples, track_rate = read_track(folder / "a.mp4")
    assert start == 0
    assert len(samples) / track_rate == pytest.approx(frames / fps, abs=max(0.01 / fps, 2 / rate))
    # Each frame is as bright as its audio is loud, and edges of clicks are where those of frames are.
    white = pixels.mean((1, 2, 3)) > 128
    middles = ((np.arange(frames) + 0.5) / fps * track_rate).astype(int)
    assert white.tolist() == (samples[middles] > 0.3).tolist() and white.sum() == 3
    edges = np.flatnonzero(np.diff(samples > 0.3)) / track_rate
    wanted = np.array([1, frames // 2, frames // 2 + 1, frames - 1]) / fps
    np.testing.assert_allclose(edges, wanted, atol=max(0.02 / fps, 3 / min(rate, track_rate)))


@pytest.mark.parametrize(
    "size",
    [(1, 1), (2, 2), (3, 5), (15, 17), (32, 32), (101, 64), (64, 129), (255, 255), (257, 300), (1, 300), (720, 12)],
)
def test_colours_at_every_size(tmp_path, size):
    frames = np.stack([np.broadcast_to(np.array(colour, np.uint8), (*size, 3)) for colour in COLOURS])
    write_video(tmp_path / "a.mp4", frames, 10, None, 0)
    times, pixels, (_, *tags) = read_video(tmp_path / "a.mp4")
    assert len(times) == len(COLOURS) and tags == [1, 1]
    assert max(pixels.shape[1:3]) >= 128 and pixels.shape[1] * size[1] == pixels.shape[2] * size[0]
    for colour, image in zip(COLOURS, pixels):  # noqa: B905
        assert np.abs(image.astype(int) - colour).max() <= 6, colour


def test_pixels_keep_their_places(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (4, 15, 9, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mp4", frames, 10, None, 0)
    _, pixels, _ = read_video(tmp_path / "a.mp4")
    zoom = pixels.shape[1] // 15
    back = pixels.reshape(4, 15, zoom, 9, zoom, 3)[:, :, zoom // 2, :, zoom // 2]
    assert np.abs(back.astype(int) - frames).mean() < 6


def test_a_written_file_is_read_back_as_the_clip_that_it_was(tmp_path):
    media = Media(frames=25, frames_per_second=12.5, size=16, sample_rate=8000)
    video, audio = flash_and_click(25, 12.5, 8000)
    write_video(tmp_path / "a.mp4", video, 12.5, audio, 8000)
    clip = read_clip(tmp_path / "a.mp4", ("video", "audio"), media)
    assert np.abs(clip["video"].astype(int) - video).max() <= 3
    assert np.abs(clip["audio"].astype(int) - audio).max() <= 1


def test_a_file_for_each_stream(tmp_path):
    image = np.full((8, 8, 3), 200, np.uint8)
    stem = tmp_path / "model.v1_00"
    files = write_media(stem, {"image": image, "image:reference": image // 2, "audio": np.zeros(80, np.int16)},
                        {"audio": 8000})  # fmt: skip
    assert [file.name for file in files] == ["model.v1_00.png", "model.v1_00_reference.png", "model.v1_00.wav"]
    assert sorted(tmp_path.iterdir()) == sorted(files)


@pytest.mark.parametrize("rate", [4000, 22_050, 192_000, 400_000, 8000.5])
def test_wav_files_keep_duration_and_pitch(tmp_path, rate):
    tone = (16_000 * np.sin(2 * np.pi * 440 * np.arange(round(rate / 2)) / rate)).astype(np.int16)
    write_audio(tmp_path / "a.wav", tone, rate)
    samples, whole_rate = soundfile.read(tmp_path / "a.wav")
    assert len(samples) / whole_rate == pytest.approx(0.5, abs=1e-3)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    assert spectrum.argmax() * whole_rate / len(samples) == pytest.approx(440, abs=2)
    if rate == round(rate) <= 192_000:
        np.testing.assert_array_equal(np.rint(samples * 32768), tone)


def test_odd_names_and_types(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video, audio = flash_and_click(5, 12.5, 8000)
    for name in ("a:b.mp4", "file:c.mp4", "%03d.mp4", "é [1] $x$.mp4"):
        write_video(Path(name), video, np.float32(12.5), audio, np.int64(8000))
        assert read_track(tmp_path / name)[2] == 8000
        clip = read_clip(Path(name), ("video",), Media(frames=5, size=16))
        assert len(clip["video"]) == 5
    # Titles and labels are no formulas, and audio may be shorter than a window of the spectrogram.
    groups = {"$a_{b$": {"video": video[None], "audio": audio[None, :5]}}
    write_sheet(Path("sheet.png"), groups, {"video": 12.5, "audio": 8000}, "runs/$a_{b$")
