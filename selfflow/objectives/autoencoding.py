"""What a convolutional autoencoder minimises: its reconstruction, in the terms of the media, and the KL of its latents.

Every term is a mean over a sample, so that weights mean the same whatever the media's size; the KL is per latent
element (arXiv 2112.10752 sums it).
"""

import warnings
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from selfflow.autoencoders.convolutional import Network, pad_causal
from selfflow.errors import UserError
from selfflow.media import to_unit_range

_FLOOR = 1e-5  # of the power of a band; sound is in [-1, 1]


@dataclass(frozen=True)
class Reconstruction:
    """Weights of the terms of the loss."""

    squared: float = 1.0
    """Mean squared error of pixels or samples, which are in [-1, 1]."""
    absolute: float = 0.0
    """Mean absolute error of pixels or samples."""
    gradient: float = 0.0
    """Mean absolute error of the differences between neighbouring pixels, and between frames."""
    spectral: float = 0.0
    """Mean absolute error of log-mel spectrograms, over `windows`: sound alone (as in arXiv 2210.13438, which takes
    them linear, too)."""
    windows: tuple[int, ...] = (128, 256, 512)
    """Samples in the windows of those spectrograms; they move by a quarter of it."""
    bands: int = 40
    """Mel bands of the widest window; narrower ones have as many fewer as they are narrower."""
    kl: float = 1e-6
    """Kullback-Leibler divergence of the latents' distribution from N(0, 1), per latent element."""

    def __post_init__(self):
        for name in ("squared", "absolute", "gradient", "spectral", "kl"):
            if not getattr(self, name) >= 0:
                raise UserError(f"loss.{name} is {getattr(self, name)}: give 0 or more")
        if not self.squared and not self.absolute:
            raise UserError("loss.squared and loss.absolute are both 0: give one of them a weight")
        if self.spectral and (not self.windows or min(self.windows) < 8 or any(n % 4 for n in self.windows)):
            raise UserError(f"loss.windows is {self.windows}: give multiples of 4, from 8 on")
        if self.spectral and self.bands < 1:
            raise UserError(f"loss.bands is {self.bands}: give at least 1")


@dataclass(frozen=True)
class AutoencodingObjective:
    """Reconstruction through a network's bottleneck.

    Attributes:
      network: its shape.
      reconstruction: weights of the terms.
      rate: samples of sound a second; 0 for pictures.
      dtype: of the network's arithmetic.
    """

    network: Network
    reconstruction: Reconstruction
    rate: float = 0.0
    dtype: str = "float32"

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Fresh trainable parameters: {"model": ...}."""
        return {"model": self.network.init(key)}

    def teacher_of(self, params: dict[str, Any]) -> dict[str, Any]:
        """What the EMA follows: all of it."""
        return params["model"]

    def logical_axes(self) -> dict[str, tuple[str | None, ...]]:
        """What each axis of each parameter stands for: what comes out of a layer of a block is "embed"."""
        shapes = jax.tree_util.tree_leaves_with_path(jax.eval_shape(self.init, jax.random.key(0)))
        named = {jax.tree_util.keystr(at, simple=True, separator="."): x for at, x in shapes}
        split = lambda name: ".blocks." in name and name.endswith("kernel")
        return {name: (None,) * (x.ndim - 1) + ("embed" if split(name) else None,) for name, x in named.items()}

    def draw(self, keys_B: Key[Array, "B"], batch: dict[str, Any], step: Int[Array, ""] | int = 0) -> dict[str, Array]:
        """`noise` that latents are drawn with [B, ...], and the `weight` of each sample [B], which sum to 1."""
        del step
        shape = self.latent_shape(batch["media"].shape[1:])
        weight_B = jnp.asarray(batch["weight"], jnp.float32)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys_B)
        return {"noise": noise, "weight": weight_B / jnp.maximum(weight_B.sum(), 1)}

    def latent_shape(self, media: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latent of one sample [T, H, W, 3] or [T, 1]."""
        sizes = (media[0] + self.network.causal_padding, *media[1:-1])
        return (*(size // n for size, n in zip(sizes, self.network.cell, strict=True)), self.network.channels)

    def loss(
        self, params: dict[str, Any], frozen: Any, batch: dict[str, Any], keys_B: Any, draw: dict[str, Array]
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The weighted sum of the terms, and each of them.

        Args:
          params: as `init` gives them.
          batch: `media`, uint8 [B, T, H, W, 3] or int16 [B, T, 1], and `weight` [B], 0 for what could not be read.
          draw: as `draw` gives it; of a part of a batch, that part of it.
        """
        del frozen, keys_B
        x, cast = to_unit_range(batch["media"]), jax.tree.map(lambda p: p.astype(self.dtype), params["model"])
        mean, log_variance, _ = self.network.encode(cast, pad_causal(x, self.network.causal_padding))
        z = mean + jnp.exp(0.5 * log_variance) * draw["noise"]
        made = self.network.decode(cast, z)[0][:, self.network.causal_padding :]
        terms = self.terms(x, made)
        terms["kl"] = _mean(0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance))
        metrics = {name: jnp.sum(draw["weight"] * term_B) for name, term_B in terms.items()}
        return sum(getattr(self.reconstruction, name) * value for name, value in metrics.items()), metrics

    def terms(self, x: Float[Array, "B ..."], made: Float[Array, "B ..."]) -> dict[str, Float[Array, "B"]]:
        """Each term of the reconstruction, of media in [-1, 1]."""
        found = {"squared": _mean(jnp.square(made - x)), "absolute": _mean(jnp.abs(made - x))}
        if self.network.pictures and self.reconstruction.gradient:
            axes = [axis for axis in (1, 2, 3) if x.shape[axis] > 1]
            found["gradient"] = sum(_mean(jnp.abs(jnp.diff(made - x, axis=axis))) for axis in axes) / max(len(axes), 1)
        if not self.network.pictures and self.reconstruction.spectral:
            windows = [n for n in self.reconstruction.windows if n <= x.shape[1]]
            bands = {n: max(1, self.reconstruction.bands * n // max(self.reconstruction.windows)) for n in windows}
            mels = [[log_mels(a[..., 0], n, bands[n], self.rate) for a in (made, x)] for n in windows]
            found["spectral"] = sum((_mean(jnp.abs(a - b)) for a, b in mels), jnp.zeros(x.shape[0])) / max(len(mels), 1)
        return found


def log_mels(sound: Float[Array, "B S"], window: int, bands: int, rate: float) -> Float[Array, "B F M"]:
    """Natural logarithm of the power of sound in mel bands, in Hann windows that move by a quarter of their length."""
    import librosa  # seconds to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a narrow window leaves low bands empty
        filters = librosa.filters.mel(sr=rate, n_fft=window, n_mels=bands)
    starts = np.arange(0, sound.shape[1] - window + 1, window // 4)
    frames = sound[:, starts[:, None] + np.arange(window)] * np.hanning(window + 1)[:-1].astype(np.float32)
    power = jnp.square(jnp.abs(jnp.fft.rfft(frames)))
    return jnp.log(power @ filters.T + _FLOOR)


def _mean(x: Float[Array, "B ..."]) -> Float[Array, "B"]:
    return x.reshape(x.shape[0], -1).mean(axis=1)
