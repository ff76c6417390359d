"""PCA initialisation of a convolutional autoencoder.

From random layers a network first has to learn what a linear autoencoder is fitted to in seconds, which takes most
of its steps. Here each layer between blocks is fitted to the outputs of the layers before it on some media, level by
level (arXiv 1511.06856), while residual blocks are the identity.
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

_BATCH_SIZE = 32
_MIN_VARIANCE = 1e-6  # relative to the largest variance; directions below it count as empty


def init_from_pca(network: Network, params: dict[str, Any], sets: Sequence[np.ndarray], seed: int) -> dict[str, Any]:
    """Parameters of a network with principal components in the layers between blocks, and their inverse in the decoder.

    Args:
      network: shape of the network.
      params: fresh parameters, of which the blocks are kept.
      sets: media of each set, uint8 [B, T, H, W, 3] or int16 [B, T, 1]; all sets have equal weight.
      seed: seed of the random rotations and of the weights of empty directions.
    """
    rng = np.random.default_rng(seed)
    fitted: list[_LinearPair] = []
    for width in (*network.widths, network.channels):
        mean, covariance = _moments(network, fitted, sets)
        fitted.append(_principal_components(mean, covariance, width, rng))
    *levels, latent = fitted

    # Encoder layers are z = (x - mean) analysis, decoder layers x = z synthesis + mean.
    encoder, decoder = params["encoder"], params["decoder"]
    encoder_levels, decoder_levels = [], []
    for level, pair in zip(encoder["levels"], levels):
        encoder_levels.append(level | {"down": _pointwise(network, pair.analysis, -pair.mean @ pair.analysis)})
    for level, pair in zip(decoder["levels"], reversed(levels)):
        decoder_levels.append(level | {"up": _pointwise(network, pair.synthesis, pair.mean)})

    # The last encoder layer gives the mean in its first channels; those of the log variance are kept.
    to_mean = _pointwise(network, latent.analysis, -latent.mean @ latent.analysis)
    out, channels = encoder["out"], network.channels
    out = Convolution(out.kernel.at[..., :channels].set(to_mean.kernel), out.bias.at[:channels].set(to_mean.bias))
    return {
        "encoder": {"levels": encoder_levels, "out": out},
        "decoder": {"in": _pointwise(network, latent.synthesis, latent.mean), "levels": decoder_levels},
    }


def _pointwise(network: Network, kernel: np.ndarray, bias: np.ndarray) -> Convolution:
    """Returns a convolution whose window is one position."""
    window = (1,) * len(network.downsampling)
    return Convolution(jnp.asarray(kernel.reshape(window + kernel.shape)), jnp.asarray(bias))


class _LinearPair(NamedTuple):
    """A linear layer z = (x - mean) analysis, and its approximate inverse x = z synthesis + mean."""

    analysis: Float[np.ndarray, "D width"]
    synthesis: Float[np.ndarray, "width D"]
    mean: Float[np.ndarray, "D"]


def _moments(
    network: Network, fitted: list[_LinearPair], sets: Sequence[np.ndarray]
) -> tuple[Float[np.ndarray, "D"], Float[np.ndarray, "D D"]]:
    """Mean and covariance of the input of the first layer that is not fitted yet."""

    @jax.jit
    def layer_input(media: jax.Array) -> jax.Array:
        x = pad_causal(to_unit_range(media), network.causal_padding)
        for stride, pair in zip(network.strides, fitted):
            x = (space_to_depth(x, stride) - pair.mean) @ pair.analysis
        is_level = len(fitted) < len(network.strides)
        return space_to_depth(x, network.strides[len(fitted)]) if is_level else x

    mean = second = 0.0
    for media in sets:
        count, total, squares = 0, 0.0, 0.0
        for start in range(0, len(media), _BATCH_SIZE):
            x = np.asarray(layer_input(media[start : start + _BATCH_SIZE]))
            x = x.reshape(-1, x.shape[-1])
            count += len(x)
            total = total + x.sum(axis=0, dtype=np.float64)
            squares = squares + x.T @ x
        mean = mean + total / count / len(sets)
        second = second + squares.astype(np.float64) / count / len(sets)
    return mean, second - np.outer(mean, mean)


def _principal_components(
    mean: Float[np.ndarray, "D"], covariance: Float[np.ndarray, "D D"], width: int, rng: np.random.Generator
) -> _LinearPair:
    """Returns the directions of largest variance in a random rotation, since blocks treat all channels alike.

    Empty directions of the input and free channels of the output get random weights: with zeros a layer would never
    learn to use what a block adds there, since its gradient would be zero, too.
    """
    variance, directions = np.linalg.eigh(covariance)
    variance, directions = variance[::-1], directions[:, ::-1]
    rank = int(np.sum(variance > _MIN_VARIANCE * variance[0]))
    kept, empty = min(width, max(1, rank)), directions[:, rank:]
    rotation = np.linalg.qr(rng.standard_normal((width, width)))[0]
    rotation, free = rotation[:, :kept], rotation[:, kept:]
    size = max(covariance.shape[0], width) ** -0.5
    analysis, synthesis = directions[:, :kept] @ rotation.T, rotation @ directions[:, :kept].T
    analysis = analysis + size * empty @ rng.standard_normal((empty.shape[1], width))
    synthesis = synthesis + size * free @ rng.standard_normal((free.shape[1], len(covariance)))
    return _LinearPair(*(x.astype(np.float32) for x in (analysis, synthesis, mean)))
