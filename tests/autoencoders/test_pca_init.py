"""Networks that begin as linear autoencoders of data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

from selfflow.autoencoders.convolutional import Network, pad_causal, space_to_depth
from selfflow.autoencoders.pca_init import init_from_pca
from selfflow.media import to_unit_range
from selfflow.objectives.reconstruction import ReconstructionLoss, ReconstructionObjective


def smooth(count: int, frames: int, side: int, seed: int = 0) -> np.ndarray:
    """Videos of colours that change little between neighbours."""
    x = np.random.default_rng(seed).standard_normal((count, frames, side, side, 3)).cumsum(1).cumsum(2).cumsum(3)
    return np.clip(127 + 4 * x, 0, 255).astype(np.uint8)


def through(network, params, media):
    x = pad_causal(to_unit_range(jnp.asarray(media)), network.causal_padding)
    z = network.encode(params, x)[0]
    return np.asarray(z), np.asarray(network.decode(params, z)[0])[:, network.causal_padding :]


def test_it_is_the_principal_components_where_no_level_loses_anything():
    network = Network(6, ((1, 2, 2), (1, 2, 2)), (12, 48), ((1, 3, 3), (1, 3, 3)))
    params = init_from_pca(network, network.init(jax.random.key(0)), [smooth(40, 1, 16)], seed=0)
    held_out = smooth(10, 1, 16, seed=1)
    cells = lambda media: np.asarray(space_to_depth(to_unit_range(jnp.asarray(media)), (1, 4, 4))).reshape(-1, 48)
    found, (_, made) = PCA(6).fit(cells(smooth(40, 1, 16))), through(network, params, held_out)
    expected = found.inverse_transform(found.transform(cells(held_out)))
    got = np.asarray(space_to_depth(jnp.asarray(made), (1, 4, 4))).reshape(-1, 48)
    np.testing.assert_allclose(got, expected, atol=2e-3)
    seen, _ = through(network, params, smooth(40, 1, 16))
    np.testing.assert_allclose(seen.reshape(-1, 6).mean(0), 0, atol=1e-3)


@pytest.mark.parametrize("widths", [(16, 40), (24, 160)])
def test_wider_levels_lose_nothing_and_learn_everywhere(widths):
    """Videos and images, through levels that widen: the blocks of what they leave free get a gradient, too."""
    network = Network(20, ((1, 2, 2), (2, 2, 2)), widths, ((1, 3, 3), (2, 1, 1)))
    sets = [smooth(20, 5, 8), smooth(30, 1, 8, seed=2)]
    params = init_from_pca(network, network.init(jax.random.key(0)), sets, seed=0)
    videos = smooth(6, 5, 8, seed=3)
    x = np.asarray(to_unit_range(jnp.asarray(videos)))
    _, made = through(network, params, videos)
    assert np.mean((made - x) ** 2) < 0.1 * x.var()
    objective, keys = ReconstructionObjective(network, ReconstructionLoss()), jax.random.split(jax.random.key(1), 6)
    batch = {"media": jnp.asarray(videos), "weight": jnp.ones(6)}
    draw = objective.draw(keys, batch)
    gradient = jax.jit(jax.grad(lambda p: objective.loss({"model": p}, None, batch, keys, draw)[0]))(params)
    # What the first level leaves free of its channels.
    free = np.linalg.svd(np.asarray(params["encoder"]["levels"][0]["down"].kernel).reshape(12, -1))[2][12:]
    for level in (gradient["encoder"]["levels"][0], gradient["decoder"]["levels"][-1]):
        last = np.asarray(level["blocks"][0]["layers"][-1].kernel)
        assert np.linalg.norm(last @ free.T) > 0.05 * np.linalg.norm(last)


def test_audio():
    network = Network(5, ((4,), (2,)), (6, 8), ((5,), (1,)))
    t = np.arange(400) / 8000
    random = np.random.default_rng(0)
    tones = [np.sin(2 * np.pi * (200 * t * f + p)) for f, p in zip(random.uniform(1, 2, 30), random.random(30))]
    media = (8000 * np.stack(tones))[..., None].astype(np.int16)
    params = init_from_pca(network, network.init(jax.random.key(0)), [media[:20]], seed=0)
    x, (_, made) = np.asarray(to_unit_range(jnp.asarray(media[20:]))), through(network, params, media[20:])
    assert np.mean((made - x) ** 2) < 0.02 * np.mean(x**2)  # five numbers of eight, of tones that are slow
