import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfflow.sampling.media_files import write_audio, write_sheet, write_video
from selfflow.sampling.solvers import euler, time_grid


def test_euler_agrees_with_the_closed_form():
    """dx/dtau = x has x(0) = x(1) / e; equal Euler steps give (1 - 1/n)^n of it exactly."""
    x1 = {"a": jnp.array([1.0, -2.0])}
    for n in (4, 50):
        found = euler(lambda x, tau: x, x1, time_grid(n))["a"]
        np.testing.assert_allclose(found, x1["a"] * (1 - 1 / n) ** n, rtol=1e-5)
    np.testing.assert_allclose(euler(lambda x, tau: x, x1, time_grid(4000))["a"], x1["a"] / np.e, rtol=1e-3)


def test_euler_visits_noise_first_and_never_data():
    taus = euler(lambda x, tau: (jnp.zeros(()), tau), (jnp.zeros(()), jnp.zeros(())), time_grid(4))[1]
    assert taus == pytest.approx(-(1 + 0.75 + 0.5 + 0.25) / 4)


def test_the_exact_velocity_of_one_datum_leads_to_it():
    datum = jnp.array([0.3, -1.2])
    # Given x_tau = (1 - tau) x0 + tau eps and x0 known, v = (x_tau - x0) / tau.
    found = euler(lambda x, tau: (x - datum) / tau, jax.random.normal(jax.random.key(0), (2,)), time_grid(10))
    np.testing.assert_allclose(found, datum, atol=1e-5)


def test_files_can_be_read_back(tmp_path):
    import av
    import soundfile

    frames = np.zeros((25, 32, 32, 3), np.uint8)
    frames[:, :, :16, 0] = 250  # red on the left
    time = np.arange(16_000) / 8000
    waveform = (8000 * np.sin(2 * np.pi * 440 * time)).astype(np.int16)
    write_video(tmp_path / "a.mp4", frames, 12.5, waveform, 8000)
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert float(file.streams.video[0].average_rate) == 12.5
        decoded = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
    assert len(decoded) == 25 and decoded[0][:, 10, 0].mean() > 200 > 50 > decoded[0][:, 240, 0].mean()
    with av.open(str(tmp_path / "a.mp4")) as file:
        heard = np.concatenate([f.to_ndarray().ravel() for f in file.decode(audio=0)])
    assert len(heard) == 16_000
    assert np.abs(np.fft.rfft(heard)).argmax() * 8000 / len(heard) == pytest.approx(440, rel=0.01)
    write_audio(tmp_path / "a.wav", waveform, 8000)
    back, rate = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert rate == 8000 and (back == waveform).all()
    write_sheet(
        tmp_path / "a.png",
        {"data": {"video": frames[None], "audio": waveform[None]}},
        {"video": 12.5, "audio": 8000},
        "both",
    )
    write_sheet(tmp_path / "b.png", {"data": {"image": frames[:4]}, "sample": {"image": frames[:4]}}, {}, "images")
    from PIL import Image

    page = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).reshape(-1, 3)
    assert ((page[:, 0] > 240) & (page[:, 1] < 10)).mean() > 0.02  # the red is on the page
