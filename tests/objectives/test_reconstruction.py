"""The loss of convolutional autoencoders, term by term."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from selfflow.autoencoders.convolutional import pad_causal
from selfflow.media import to_unit_range
from selfflow.objectives.reconstruction import ReconstructionLoss, ReconstructionObjective, log_mels
from tests.autoencoders.small_networks import AUDIO_NETWORK, VIDEO_NETWORK, params_of, random_video


def test_the_loss_is_its_terms():
    """Against numpy, of one sample; samples of weight 0 have no effect."""
    terms = ReconstructionLoss(squared=2.0, absolute=0.5, gradient=0.3, kl=1e-3)
    objective = ReconstructionObjective(VIDEO_NETWORK, terms)
    params = {"model": params_of(VIDEO_NETWORK)}
    media = random_video(9, count=3)
    batch = {"media": jnp.asarray(media), "weight": jnp.array([0.0, 1.0, 0.0])}
    keys = jax.random.split(jax.random.key(0), 3)
    draw = objective.draw(keys, batch)
    loss, metrics = jax.jit(lambda p, d: objective.loss(p, None, batch, keys, d))(params, draw)
    x = np.asarray(to_unit_range(jnp.asarray(media[1:2])))
    mean, log_variance, _ = jax.jit(VIDEO_NETWORK.encode)(params["model"], pad_causal(jnp.asarray(x), 3))
    z = mean + jnp.exp(0.5 * log_variance) * draw["noise"][1:2]
    decoded = np.asarray(jax.jit(VIDEO_NETWORK.decode)(params["model"], z)[0])[:, 3:]
    error = decoded - x
    expected = {
        "squared": np.mean(error**2),
        "absolute": np.mean(np.abs(error)),
        "gradient": np.mean([np.mean(np.abs(np.diff(error, axis=axis))) for axis in (1, 2, 3)]),
        "kl": np.mean(0.5 * (np.square(mean) + np.exp(log_variance) - 1 - np.asarray(log_variance))),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4)
    np.testing.assert_allclose(
        loss,
        2 * expected["squared"] + 0.5 * expected["absolute"] + 0.3 * expected["gradient"] + 1e-3 * expected["kl"],
        rtol=1e-4,
    )


def test_it_trains_in_bfloat16():
    """The loss is near that in float32, and the gradient reaches the parameters in float32."""
    full = ReconstructionObjective(VIDEO_NETWORK, ReconstructionLoss(gradient=0.3, kl=1e-3))
    half = dataclasses.replace(full, dtype="bfloat16")
    params, keys = {"model": params_of(VIDEO_NETWORK)}, jax.random.split(jax.random.key(0), 2)
    batch = {"media": jnp.asarray(random_video(9)), "weight": jnp.ones(2)}
    draw = full.draw(keys, batch)
    value = lambda objective: jax.jit(
        jax.value_and_grad(lambda params: objective.loss(params, None, batch, keys, draw)[0])
    )(params)
    (loss, gradient), (near, rough) = value(full), value(half)
    np.testing.assert_allclose(near, loss, rtol=2e-2)
    assert near != loss and all(x.dtype == jnp.float32 for x in jax.tree.leaves(rough))
    norm = lambda tree: jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))
    assert norm(jax.tree.map(lambda a, b: a - b, gradient, rough)) < 0.1 * norm(gradient)


def test_spectrograms_are_librosas():
    import librosa

    waveform = np.random.default_rng(0).standard_normal((2, 2000)).astype(np.float32) * 0.1
    mels = log_mels(jnp.asarray(waveform), 256, 20, 8000)
    power = librosa.feature.melspectrogram(y=waveform, sr=8000, n_fft=256, hop_length=64, n_mels=20, center=False)
    np.testing.assert_allclose(mels, np.log(np.moveaxis(power, -1, -2) + 1e-5), rtol=1e-3, atol=1e-3)


def test_a_spectral_term_and_clips_shorter_than_its_windows():
    terms = ReconstructionLoss(spectral=1.0, windows=(16, 64), bands=4)
    objective = ReconstructionObjective(AUDIO_NETWORK, terms, rate=8000)
    params = {"model": params_of(AUDIO_NETWORK)}
    for samples in (80, 32, 8):  # the last is shorter than every window
        media = np.random.default_rng(0).integers(-3000, 3000, (2, samples, 1)).astype(np.int16)
        batch = {"media": jnp.asarray(media), "weight": jnp.ones(2)}
        keys = jax.random.split(jax.random.key(0), 2)
        draw = objective.draw(keys, batch)
        loss, metrics = jax.jit(lambda p, d: objective.loss(p, None, batch, keys, d))(params, draw)
        assert np.isfinite(loss) and (metrics["spectral"] > 0) == (samples > 8)
