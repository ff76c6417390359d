"""What is told of latents, and what is drawn as lost."""

import numpy as np
import scipy.stats

from selfflow.autoencoders.latent_statistics import channel_statistics, difference


def test_statistics_of_channels():
    random = np.random.default_rng(0)
    latents = np.stack([random.standard_normal(5000), random.laplace(2, 3, 5000), np.full(5000, 0.5)], axis=1)
    found = channel_statistics([latents[:7].astype(np.float32), latents[7:].reshape(1, -1, 3).astype(np.float32)])
    np.testing.assert_allclose(found["mean"], latents.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["std"], latents.std(0), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found["largest"], np.abs(latents).max(0), rtol=1e-6)
    np.testing.assert_allclose(found["kurtosis"][:2], scipy.stats.kurtosis(latents[:, :2]), rtol=1e-4)
    assert np.isnan(found["kurtosis"][2])  # of what never varies there is none


def test_what_is_lost():
    a, b = np.array([[0, 255, 100]], np.uint8), np.array([[255, 0, 102]], np.uint8)
    np.testing.assert_array_equal(difference(a, b), [[254, 0, 128]])
    a, b = np.array([-30000, 5], np.int16), np.array([30000, 2], np.int16)
    np.testing.assert_array_equal(difference(a, b), [32767, -3])
