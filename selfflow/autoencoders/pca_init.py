"""A convolutional autoencoder begins as a linear one: what lies between its blocks, as principal components of data.

From random layers a network has to learn first what a linear autoencoder is fitted to in seconds, and most of its steps
go into that. Here each layer is fitted to what the layers before make of some media, level by level (arXiv 1511.06856),
while blocks hand on what they are given.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from selfflow.autoencoders.convolutional import Network, pad_causal, space_to_depth
from selfflow.encoders.convolution import Convolution
from selfflow.media import to_unit_range

_TOGETHER = 32
_EMPTY = 1e-6  # of the largest variance: directions below it are said to hold nothing


def init_from_pca(network: Network, params: dict[str, Any], sets: Sequence[np.ndarray], seed: int) -> dict[str, Any]:
    """Parameters of a network whose layers between blocks are principal components, and its decoder's the way back.

    Args:
      network: its shape.
      params: fresh ones, of which the blocks are kept.
      sets: media of each set, [B, T, H, W, 3] or [B, T, 1]; all sets count alike.
      seed: of the rotations and of what lies where data has nothing.
    """
    rng, rank, channels = np.random.default_rng(seed), len(network.cell), network.channels
    fitted: list[_Fitted] = []
    for width in (*network.widths, channels):
        fitted.append(_components(*_moments(network, fitted, sets), width, rng))

    def layer(kernel: np.ndarray, bias: np.ndarray) -> Convolution:
        return Convolution(jnp.asarray(kernel.reshape((1,) * rank + kernel.shape)), jnp.asarray(bias))

    *levels, latent = fitted
    there = [layer(f.there, -f.mean @ f.there) for f in levels]
    back = [layer(f.back, f.mean) for f in reversed(levels)]
    out, mean = params["encoder"]["out"], layer(latent.there, -latent.mean @ latent.there)
    # The rest of it tells the variance.
    out = Convolution(out.kernel.at[..., :channels].set(mean.kernel), out.bias.at[:channels].set(mean.bias))
    old_encoder, old_decoder = params["encoder"]["levels"], params["decoder"]["levels"]
    return {
        "encoder": {"levels": [old | {"down": new} for old, new in zip(old_encoder, there)], "out": out},
        "decoder": {
            "in": layer(latent.back, latent.mean),
            "levels": [old | {"up": new} for old, new in zip(old_decoder, back)],
        },
    }


class _Fitted(NamedTuple):
    """A layer, x -> (x - mean) there, and its way back, z -> z back + mean."""

    there: Float[np.ndarray, "D width"]
    back: Float[np.ndarray, "width D"]
    mean: Float[np.ndarray, "D"]


def _moments(
    network: Network, fitted: list[_Fitted], sets: Sequence[np.ndarray]
) -> tuple[Float[np.ndarray, "D"], Float[np.ndarray, "D D"]]:
    """Mean and covariance of what reaches the layer that comes after those that are fitted."""

    @jax.jit
    def reaching(media: jax.Array) -> jax.Array:
        x = pad_causal(to_unit_range(media), network.causal_padding)
        for stride, f in zip(network.strides, fitted):
            x = (space_to_depth(x, stride) - f.mean) @ f.there
        return space_to_depth(x, network.strides[len(fitted)]) if len(fitted) < len(network.strides) else x

    mean = second = 0.0
    for media in sets:
        count, first, square = 0, 0.0, 0.0
        for start in range(0, len(media), _TOGETHER):
            x = np.asarray(reaching(media[start : start + _TOGETHER]))
            x = x.reshape(-1, x.shape[-1])
            count, first, square = count + len(x), first + x.sum(axis=0, dtype=np.float64), square + x.T @ x
        mean, second = mean + first / count / len(sets), second + square.astype(np.float64) / count / len(sets)
    return mean, second - np.outer(mean, mean)


def _components(
    mean: Float[np.ndarray, "D"], covariance: Float[np.ndarray, "D D"], width: int, rng: np.random.Generator
) -> _Fitted:
    """The directions of the largest variances, turned at random, for blocks are alike on all channels.

    Where nothing comes in, random numbers stand: of zeros a layer would never learn what a block may bring there, for
    nothing came of it.
    """
    variance, directions = np.linalg.eigh(covariance)
    variance, directions = variance[::-1], directions[:, ::-1]
    something = int(np.sum(variance > _EMPTY * variance[0]))
    kept, empty = min(width, max(1, something)), directions[:, something:]
    turned = np.linalg.qr(rng.standard_normal((width, width)))[0]
    turned, free = turned[:, :kept], turned[:, kept:]
    size = max(covariance.shape[0], width) ** -0.5
    there, back = directions[:, :kept] @ turned.T, turned @ directions[:, :kept].T
    there = there + size * empty @ rng.standard_normal((empty.shape[1], width))
    back = back + size * free @ rng.standard_normal((free.shape[1], len(covariance)))
    return _Fitted(*(x.astype(np.float32) for x in (there, back, mean)))
