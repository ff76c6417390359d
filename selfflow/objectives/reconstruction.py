"""Training of convolutional autoencoders: the reconstruction error of the media, and the KL divergence of the latents.

Every term is a mean over a sample, so that weights do not depend on the size of the media. The KL divergence is a mean
over latent elements, too, whereas arXiv 2112.10752 sums it.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from selfflow.autoencoders.convolutional import Network, pad_causal
from selfflow.errors import UserError, check_at_least
from selfflow.media import to_unit_range
from selfflow.training.objective import Axes
from selfflow.training.state import flat_by_name, init_ema, update_ema

_FLOOR = 1e-5  # added to the power of a mel band; waveforms are in [-1, 1]


@dataclass(frozen=True)
class ReconstructionLoss:
    """Weights of the terms of the loss."""

    squared: float = 1.0
    """Mean squared error of pixels or audio samples, which are in [-1, 1]."""
    absolute: float = 0.0
    """Mean absolute error of pixels or audio samples."""
    gradient: float = 0.0
    """Mean absolute error of the differences between neighbouring pixels, and between frames."""
    spectral: float = 0.0
    """Mean absolute error of log-mel spectrograms, over `windows`: audio only (as in arXiv 2210.13438, which takes mel
    spectra without the logarithm, too)."""
    windows: tuple[int, ...] = (128, 256, 512)
    """Samples in the windows of those spectrograms; the hop is a quarter of the window."""
    bands: int = 40
    """Mel bands of the widest window; narrower windows have proportionally fewer."""
    kl: float = 1e-6
    """Kullback-Leibler divergence of the latents' distribution from N(0, 1), per latent element."""

    def __post_init__(self):
        check_at_least(self, "loss.", squared=0, absolute=0, gradient=0, spectral=0, kl=0)
        if not self.squared and not self.absolute:
            raise UserError("loss.squared and loss.absolute are both 0: give one of them a weight")
        if self.spectral and (not self.windows or min(self.windows) < 8 or any(n % 4 for n in self.windows)):
            raise UserError(f"loss.windows is {self.windows}: give multiples of 4, from 8 on")
        if self.spectral:
            check_at_least(self, "loss.", bands=1)


@dataclass(frozen=True)
class ReconstructionObjective:
    """Reconstruction through the bottleneck of an autoencoder.

    Attributes:
      network: shape of the network.
      weights: weights of the terms.
      rate: audio samples per second; 0 for images and video.
      dtype: dtype of the network's arithmetic.
    """

    network: Network
    weights: ReconstructionLoss
    rate: float = 0.0
    dtype: str = "float32"

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Initialises the trainable parameters: {"model": ...}."""
        return {"model": self.network.init(key)}

    def logical_axes(self) -> Axes:
        """Returns the logical axes of each parameter by name: the outputs of a layer inside a block are "embed"."""
        axes = {}
        for name, shape in flat_by_name(jax.eval_shape(self.init, jax.random.key(0))).items():
            last = "embed" if ".blocks." in name and name.endswith("kernel") else None
            axes[name] = (None,) * (shape.ndim - 1) + (last,)
        return axes

    def init_frozen(self, params: dict[str, Any], key: Key[Array, ""]) -> dict[str, Any]:
        """Initialises the frozen tree {"ema": ...}, the EMA of all parameters."""
        return {"ema": init_ema(params["model"])}

    def frozen_axes(self) -> dict[str, Axes]:
        """Returns the logical axes of the EMA, which are those of the parameters."""
        return {"ema": {name.removeprefix("model."): axes for name, axes in self.logical_axes().items()}}

    def update_frozen(self, frozen: dict[str, Any], params: dict[str, Any], ema_decay: float) -> dict[str, Any]:
        """Updates the EMA."""
        return {"ema": update_ema(frozen["ema"], params["model"], ema_decay)}

    def draw(self, keys_B: Key[Array, "B"], batch: dict[str, Any], step: Int[Array, ""] | int = 0) -> dict[str, Array]:
        """Draws the `noise` of the latents [B, ...]; also returns sample weights `weight` [B] with sum 1."""
        del step
        shape = self.latent_shape(batch["media"].shape[1:])
        weight_B = jnp.asarray(batch["weight"], jnp.float32)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys_B)
        return {"noise": noise, "weight": weight_B / jnp.maximum(weight_B.sum(), 1)}

    def latent_shape(self, media: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the latent shape of one sample [T, H, W, 3] or [T, 1]."""
        sizes = (media[0] + self.network.causal_padding, *media[1:-1])
        return (*(size // n for size, n in zip(sizes, self.network.downsampling, strict=True)), self.network.channels)

    def loss(
        self, params: dict[str, Any], frozen: Any, batch: dict[str, Any], keys_B: Any, draw: dict[str, Array]
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Returns the weighted sum of the terms, and each term.

        Args:
          params: parameters from `init`.
          batch: `media`, uint8 [B, T, H, W, 3] or int16 [B, T, 1], and `weight` [B], 0 for unreadable samples.
          draw: result of `draw`, or the part of it for a part of a batch.
        """
        del frozen, keys_B
        # z = mean + std noise with std^2 = exp(log_variance): the reparameterisation of arXiv 1312.6114.
        x, cast = to_unit_range(batch["media"]), jax.tree.map(lambda p: p.astype(self.dtype), params["model"])
        mean, log_variance, _ = self.network.encode(cast, pad_causal(x, self.network.causal_padding))
        z = mean + jnp.exp(0.5 * log_variance) * draw["noise"]
        decoded = self.network.decode(cast, z)[0][:, self.network.causal_padding :]

        terms = self.terms(x, decoded)
        # KL(N(mean, std^2) || N(0, 1)) per latent element.
        terms["kl"] = _mean(0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance))
        metrics = {name: jnp.sum(draw["weight"] * term_B) for name, term_B in terms.items()}
        return sum(getattr(self.weights, name) * value for name, value in metrics.items()), metrics

    def terms(self, x: Float[Array, "B ..."], decoded: Float[Array, "B ..."]) -> dict[str, Float[Array, "B"]]:
        """Computes each term of the reconstruction error of media in [-1, 1]."""
        error = decoded - x
        terms = {"squared": _mean(jnp.square(error)), "absolute": _mean(jnp.abs(error))}
        if self.network.is_visual and self.weights.gradient:
            axes = [axis for axis in (1, 2, 3) if x.shape[axis] > 1]
            total_B = sum(_mean(jnp.abs(jnp.diff(error, axis=axis))) for axis in axes)
            terms["gradient"] = total_B / max(len(axes), 1)
        if not self.network.is_visual and self.weights.spectral:
            terms["spectral"] = self._spectral(x, decoded)
        return terms

    def _spectral(self, x: Float[Array, "B S 1"], decoded: Float[Array, "B S 1"]) -> Float[Array, "B"]:
        """Mean absolute error of log-mel spectrograms over all windows that fit into the clips."""
        windows = [n for n in self.weights.windows if n <= x.shape[1]]
        total_B = jnp.zeros(x.shape[0])
        for n in windows:
            bands = max(1, self.weights.bands * n // max(self.weights.windows))
            decoded_mels = log_mels(decoded[..., 0], n, bands, self.rate)
            total_B = total_B + _mean(jnp.abs(decoded_mels - log_mels(x[..., 0], n, bands, self.rate)))
        return total_B / max(len(windows), 1)


def log_mels(waveform: Float[Array, "B S"], window: int, bands: int, rate: float) -> Float[Array, "B F M"]:
    """Computes log-mel power (natural logarithm) in Hann windows with a hop of a quarter window."""
    import librosa  # seconds to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # narrow windows have empty low bands
        filters = librosa.filters.mel(sr=rate, n_fft=window, n_mels=bands)
    starts = np.arange(0, waveform.shape[1] - window + 1, window // 4)
    frames = waveform[:, starts[:, None] + np.arange(window)] * np.hanning(window + 1)[:-1].astype(np.float32)
    power = jnp.square(jnp.abs(jnp.fft.rfft(frames)))
    return jnp.log(power @ filters.T + _FLOOR)


def _mean(x: Float[Array, "B ..."]) -> Float[Array, "B"]:
    return x.reshape(x.shape[0], -1).mean(axis=1)
