"""Audio: clocks that start again, channels and levels."""

import io

import numpy as np
import pytest
import soundfile

from selfflow.data.media.decode import clips
from selfflow.data.report import Notes, Unusable
from tests.data.media_files import SMALL, decode, reason, tone, write_video


def encoded(frequency, rate, format, subtype, channels=1):
    file = io.BytesIO()
    samples = np.repeat(tone(rate, 2.0, frequency)[:, None], channels, 1)
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize(
    "format, subtype, rate",
    [("OGG", "VORBIS", 44_100), ("OGG", "OPUS", 48_000), ("FLAC", "PCM_16", 44_100), ("MP3", "MPEG_LAYER_III", 44_100)],
)
def test_joined_audio_files_play_on(tmp_path, format, subtype, rate):
    parts = [encoded(frequency, rate, format, subtype) for frequency in (400, 900, 1500)]
    (tmp_path / "joined").write_bytes(b"".join(parts))
    decoded, notes = decode(tmp_path / "joined")
    assert len(decoded) >= 11 and not notes
    for clip in decoded:
        part, within = divmod(clip.start, 2.0)
        # Clips over a joint, and the padding of MP3, have two tones.
        if 0.2 < within < 0.8:
            pitch = np.abs(np.fft.rfft(clip.audio * np.hanning(8000))).argmax()
            assert abs(int(pitch) - (400, 900, 1500)[int(part)]) <= 1


def test_what_cannot_be_read_of_joined_files_is_counted(tmp_path):
    other = encoded(900, 22_050, "OGG", "VORBIS", channels=2)
    (tmp_path / "a.ogg").write_bytes(encoded(400, 44_100, "OGG", "VORBIS") + other)
    decoded, notes = decode(tmp_path / "a.ogg")
    assert len(decoded) == 6 or (len(decoded) >= 2 and notes)
    wav = encoded(400, 44_100, "WAV", "PCM_16")
    (tmp_path / "a.wav").write_bytes(wav + wav)
    assert decode(tmp_path / "a.wav")[1] == {"joined files": "the first is used"}
    mp4 = write_video(tmp_path / "one.mp4").read_bytes()
    (tmp_path / "two.mp4").write_bytes(mp4 + mp4)
    assert len(decode(tmp_path / "two.mp4")[0]) == 3 and "joined files" in decode(tmp_path / "two.mp4")[1]
    assert not decode(tmp_path / "one.mp4")[1]
    flv = write_video(tmp_path / "one.flv", codec="libx264", sample_rate=44_100).read_bytes()
    (tmp_path / "two.flv").write_bytes(flv + flv)
    assert decode(tmp_path / "two.flv")[1] == {"joined files": "the first is used"}
    assert not decode(tmp_path / "one.flv")[1]
    mkv = write_video(tmp_path / "one.mkv").read_bytes()
    (tmp_path / "two.mkv").write_bytes(mkv + mkv)
    decoded, notes = decode(tmp_path / "two.mkv")
    assert len(decoded) == 3 and {"timestamps that run backwards", "audio timestamps that run backwards"} <= set(notes)


@pytest.mark.parametrize("name", ["opposite.wav", "opposite.flac", "opposite.ogg", "opposite.mp3"])
def test_channels_of_opposite_phase_are_named(tmp_path, name):
    wave = tone(44_100)
    soundfile.write(tmp_path / name, np.stack([wave, -wave], 1), 44_100)
    assert reason(tmp_path / name) == "digital silence"
    notes = Notes()
    with pytest.raises(Unusable):
        list(clips(tmp_path / name, SMALL, notes))
    assert [remark.reason for remark in notes.remarks("")] == ["channels of opposite phase, silence in one channel"]
    # Of two thirds that do not cancel, one stays.
    soundfile.write(tmp_path / name, np.stack([wave, -wave / 3], 1), 44_100)
    decoded, notes = decode(tmp_path / name)
    assert not notes and np.abs(decoded[0].audio.astype(int))[2000:6000].max() == pytest.approx(32767 / 6, rel=0.05)


def test_the_mean_of_surround_channels_without_the_subwoofer(tmp_path):
    wave = tone(48_000)
    channels = np.zeros((len(wave), 6))
    channels[:, 2] = wave  # the centre
    soundfile.write(tmp_path / "centre.wav", channels, 48_000, format="WAVEX")
    assert np.abs(decode(tmp_path / "centre.wav")[0][0].audio.astype(int)).max() == pytest.approx(32767 / 10, rel=0.02)
    channels[:] = 0
    channels[:, 3] = wave  # the subwoofer
    soundfile.write(tmp_path / "low.wav", channels, 48_000, format="WAVEX")
    assert reason(tmp_path / "low.wav") == "digital silence"


@pytest.mark.parametrize("rate", [4000, 6000, 8000, 10_000, 16_000, 20_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_a_click_keeps_its_time_at_every_rate(tmp_path, rate):
    samples = np.zeros(2 * rate)
    samples[round(0.7 * rate) : round(0.75 * rate)] = 0.5
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, samples, rate)
        (clip, *_), _ = decode(tmp_path / name)
        loud = np.flatnonzero(np.abs(clip.audio) > 8000)
        np.testing.assert_allclose([loud[0], loud[-1] + 1], [5600, 6000], atol=1 + 8000 / rate)
