"""Video and audio of a file on one clock."""

import numpy as np
import pytest
import soundfile

from selfflow.data.media.audio import AudioWindow, Chunk
from tests.data.media_files import SMALL, decode, tone, write_video


@pytest.mark.parametrize(
    "name, options",
    [
        ("plain.mkv", {}),
        ("aac.mp4", {}),
        ("sixty.mkv", {"fps": 60}),
        ("cinema.mkv", {"fps": 24000 / 1001}),
        ("cd.mkv", {"sample_rate": 44100}),
        ("odd.mkv", {"sample_rate": 11025, "layout": "mono"}),
        ("fine.mkv", {"sample_rate": 96000}),
        ("surround.mkv", {"layout": "5.1"}),
        ("audio_late.mkv", {"video_at": 0.2, "audio_at": 0.5, "codec": "libx264"}),
        ("video_late.mkv", {"video_at": 0.7, "audio_at": 0.3, "codec": "libx264"}),
        ("video_late.mp4", {"video_at": 0.7, "audio_at": 0.2, "codec": "libx264"}),
    ],
)
def test_flash_and_click_land_in_the_same_frame(tmp_path, name, options):
    start = options.get("video_at", 0.0)
    path = write_video(tmp_path / name, seconds=3.0, flash=start + 1.2, **options)
    clips, _ = decode(path)
    flashes = 0
    for clip in clips:
        bright = np.flatnonzero(clip.video.mean((1, 2, 3)) > 150)
        if not len(bright) or clip.audio is None:
            continue
        loud = np.abs(clip.audio.astype(float)).reshape(SMALL.frames, -1).max(1)
        assert loud[bright[0]] > 15000 and int(np.argmax(loud > 6000)) == bright[0]
        onset = np.flatnonzero(np.abs(clip.audio) > 3000)[0] / SMALL.sample_rate
        assert abs(onset - bright[0] / 10 - 0.02) < 0.005
        flashes += 1
    assert flashes >= 2


def test_times_of_clips_and_frames(tmp_path):
    def paint(number, at):  # the level of gray is the number of the frame
        return np.full((48, 64, 3), 20 + 4 * number, np.uint8)

    path = write_video(tmp_path / "ramp.mkv", seconds=2.0, fps=20, paint=paint, sample_rate=None, codec="libx264")
    clips, _ = decode(path)
    assert [clip.start for clip in clips] == [0.0, 0.5, 1.0]
    for clip in clips:
        expected = 20 + 4 * (round(clip.start * 20) + 2 * np.arange(10))
        np.testing.assert_allclose(clip.video.mean((1, 2, 3)), expected, atol=3)
        assert clip.audio is None
        np.testing.assert_array_equal(clip.image, clip.video[5])


def test_variable_frame_rates_show_the_frames_of_a_player(tmp_path):
    times = [0.0, 0.04, 0.9, 1.0, 1.5, 1.52]

    def paint(number, at):
        return np.full((48, 64, 3), 20 + 40 * number, np.uint8)

    path = write_video(tmp_path / "vfr.mkv", times=times, paint=paint, sample_rate=None, codec="libx264")
    (clip, *_), _ = decode(path)
    shown = [max(i for i, t in enumerate(times) if t <= at + 1e-3) for at in np.arange(10) / 10]
    np.testing.assert_allclose(clip.video.mean((1, 2, 3)), [20 + 40 * i for i in shown], atol=6)


def test_audio_keeps_its_pitch_and_odd_rates_their_length(tmp_path):
    for rate in (8000, 11025, 44100, 96000):
        path = tmp_path / f"{rate}.wav"
        soundfile.write(path, np.stack([tone(rate), 0 * tone(rate)], 1), rate)
        clips, notes = decode(path)
        assert [clip.start for clip in clips] == [0.0, 0.5, 1.0] and not notes
        for clip in clips:
            assert clip.audio.shape == (8000,) and clip.video is None and clip.image is None
            spectrum = np.abs(np.fft.rfft(clip.audio * np.hanning(8000)))
            assert abs(int(spectrum.argmax()) - 440) <= 1
            assert 7500 < np.abs(clip.audio.astype(int))[200:-200].max() < 8700  # half of 0.5, the other side is silent


def test_a_file_too_loud_does_not_wrap_around(tmp_path):
    soundfile.write(tmp_path / "loud.wav", 4 * tone(8000), 8000, subtype="FLOAT")
    clips, _ = decode(tmp_path / "loud.wav")
    assert clips[0].audio.max() == 32767 and clips[0].audio.min() == -32767
    assert np.mean(np.abs(clips[0].audio.astype(int)) == 32767) > 0.5


def test_window_over_audio_with_a_gap():
    chunks = [(0, np.ones(5, np.float32)), (5, np.ones(5, np.float32)), (15, np.full(10, 2, np.float32))]
    audio = AudioWindow(Chunk(*chunk) for chunk in chunks)
    samples, covered = audio.read(2, 10)
    assert covered == 8 and samples.tolist() == [1.0] * 8 + [0.0] * 2
    assert audio.next_start(after=2) == 15
    samples, covered = audio.read(14, 20)
    assert covered == 10 and samples.tolist() == [0.0] + [2.0] * 10 + [0.0] * 9
    assert audio.next_start(after=15) is None
