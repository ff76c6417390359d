"""Causal convolutional KL autoencoders of images and video, or of audio.

A latent depends on media up to its time and not later, so that clips of any length are processed in chunks: each chunk
passes the last inputs of its causal convolutions on to the next. A video is padded with copies of its first frame, so
that this frame alone determines the first latent frame, and an image is a video of one frame.

Audio is a waveform with a dynamic range of about 60 dB. Its residual blocks are scale-equivariant: what they add is
proportional to their input.

Down- and upsampling move neighbouring positions into channels and back (arXiv 1609.05158), so that only the
convolutions of residual blocks have a receptive field beyond one latent position.

Parameters are a tree of arrays.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from selfflow.encoders.convolution import Convolution, convolve
from selfflow.errors import UserError

_LOG_VARIANCE = (-30.0, 20.0)
# Posterior noise far above the latents would decrease slowly, at the learning rate of a bias.
_INITIAL_LOG_VARIANCE = -12.0
# The last inputs of the causal convolutions of a network, in their order.
Cache = list[Array]


@dataclass(frozen=True)
class Network:
    """The shape of a convolutional autoencoder.

    Strides with three axes (frames, rows, columns) make it a network of images and video, those with one axis
    (samples,) a network of audio.
    """

    channels: int
    """Latent channels, C."""
    strides: tuple[tuple[int, ...], ...]
    """Stride of each level along each axis, in the order of the encoder; a latent position spans their product."""
    widths: tuple[int, ...]
    """Channels after each of these strides."""
    windows: tuple[tuple[int, ...], ...]
    """Windows of the convolutions of a residual block, in order, along each axis; causal along the first."""
    blocks: int = 1
    """Residual blocks of each level, in the encoder and in the decoder."""

    def __post_init__(self):
        ranks = {len(axes) for axes in self.strides + self.windows}
        if ranks not in ({3}, {1}):
            raise UserError(
                f"network.strides {self.strides} and network.windows {self.windows}: give (frames, rows, columns) for "
                "images and video, (samples,) for audio"
            )
        if not self.windows:
            raise UserError("network.windows is empty: give the window of at least one convolution")
        if not self.widths or len(self.widths) != len(self.strides):
            raise UserError(f"network.widths {self.widths}: give one for each of the {len(self.strides)} strides")
        counts = [self.channels, self.blocks, *self.widths]
        for axes in self.strides + self.windows:
            counts += axes
        if min(counts) < 1:
            raise UserError("network: channels, blocks, widths, strides and windows must be at least 1")
        if self.is_visual and self.downsampling[1] != self.downsampling[2]:
            raise UserError(f"network.strides {self.strides}: the products of rows and of columns must be equal")

    @property
    def downsampling(self) -> tuple[int, ...]:
        """Positions of the media per latent position, along each axis."""
        return tuple(math.prod(axis) for axis in zip(*self.strides))

    @property
    def is_visual(self) -> bool:
        """Whether it is a network of images and video instead of audio."""
        return len(self.strides[0]) == 3

    @property
    def causal_padding(self) -> int:
        """Copies of the first frame before a video."""
        return self.downsampling[0] - 1 if self.is_visual else 0

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Fresh parameters, {"encoder", "decoder"}.

        Residual blocks start as the identity. Layers between them are orthogonal, decoder layers are the transposes of
        encoder layers, and the posterior has almost no noise. A network without a widening level thus starts as a
        projection on a random subspace.
        """
        keys = iter(jax.random.split(key, (2 * self.blocks * len(self.windows) + 1) * len(self.widths) + 1))
        pointwise = (1,) * len(self.downsampling)

        def block(width: int) -> dict[str, Any]:
            kernels = []
            for window in self.windows:
                std = (width * math.prod(window)) ** -0.5
                kernels.append(std * jax.random.normal(next(keys), (*window, width, width)))
            kernels[-1] = jnp.zeros_like(kernels[-1])
            return {
                "norms": [jnp.ones(width) for _ in kernels],
                "layers": [Convolution(kernel, jnp.zeros(width)) for kernel in kernels],
            }

        def orthogonal_pair(inputs: int, outputs: int) -> tuple[Convolution, Convolution]:
            """Returns an orthogonal layer and its transpose."""
            kernel = jax.nn.initializers.orthogonal()(next(keys), (inputs, outputs)).reshape(
                *pointwise, inputs, outputs
            )
            return Convolution(kernel, jnp.zeros(outputs)), Convolution(kernel.swapaxes(-1, -2), jnp.zeros(inputs))

        encoder, decoder = [], []
        inputs = 3 if self.is_visual else 1
        for stride, width in zip(self.strides, self.widths):
            down, up = orthogonal_pair(inputs * math.prod(stride), width)
            encoder.append({"down": down, "blocks": [block(width) for _ in range(self.blocks)]})
            decoder.insert(0, {"blocks": [block(width) for _ in range(self.blocks)], "up": up})
            inputs = width
        to_mean, from_latent = orthogonal_pair(self.widths[-1], self.channels)
        # The last layer of the encoder gives mean and log variance.
        to_moments = Convolution(
            jnp.concatenate([to_mean.kernel, jnp.zeros_like(to_mean.kernel)], axis=-1),
            jnp.repeat(jnp.array([0.0, _INITIAL_LOG_VARIANCE]), self.channels),
        )
        return {"encoder": {"levels": encoder, "out": to_moments}, "decoder": {"in": from_latent, "levels": decoder}}

    def encode(
        self, params: dict[str, Any], x: Float[Array, "B ..."], cache: Cache | None = None
    ) -> tuple[Float[Array, "B ... C"], Float[Array, "B ... C"], Cache]:
        """Mean and log variance of the latents of a chunk of media, and the cache for the next chunk.

        Args:
          params: parameters of the network; their dtype is that of the arithmetic.
          x: media [B, T, H, W, 3] or [B, T, 1] in [-1, 1]; multiples of `downsampling`, a first chunk with its padding.
          cache: cache of the previous chunk; None for the first.
        """
        p, causal = params["encoder"], _CausalInputs(cache)
        x = x.astype(p["out"].kernel.dtype)
        for level, stride in zip(p["levels"], self.strides):
            x = convolve(space_to_depth(x, stride), level["down"])
            for block in level["blocks"]:
                x = self._residual_block(x, block, causal)
        # Without a normalisation, which would remove brightness or loudness.
        x = convolve(x, p["out"]).astype(jnp.float32)
        mean, log_variance = jnp.split(x, 2, axis=-1)
        return mean, jnp.clip(log_variance, *_LOG_VARIANCE), causal.next_cache

    def decode(
        self, params: dict[str, Any], z: Float[Array, "B ... C"], cache: Cache | None = None
    ) -> tuple[Float[Array, "B ..."], Cache]:
        """Media, about in [-1, 1], of a chunk of latents, and the cache for the next chunk."""
        p, causal = params["decoder"], _CausalInputs(cache)
        x = convolve(z.astype(p["in"].kernel.dtype), p["in"])
        for level, stride in zip(p["levels"], reversed(self.strides)):
            for block in level["blocks"]:
                x = self._residual_block(x, block, causal)
            x = depth_to_space(convolve(x, level["up"]), stride)
        return x.astype(jnp.float32), causal.next_cache

    def _residual_block(
        self, x: Float[Array, "B ... D"], p: dict[str, Any], causal: "_CausalInputs"
    ) -> Float[Array, "B ... D"]:
        h = x
        for norm, layer in zip(p["norms"], p["layers"]):
            h = jax.nn.silu(h / _rms(h) * norm).astype(x.dtype)
            time, *space = layer.kernel.shape[:-2]
            if time > 1:
                h = causal.prepend(h, time - 1)
            h = convolve(h, layer, padding=[(0, 0)] + [((n - 1) // 2, n // 2) for n in space])
        return x + (h if self.is_visual else (_rms(x) * h).astype(x.dtype))


class _CausalInputs:
    """Prepends the last inputs of the previous chunk to each causal convolution, and keeps those of this chunk.

    Attributes:
      next_cache: the inputs kept, in the order of the convolutions.
    """

    def __init__(self, cache: Cache | None):
        self._cache = None if cache is None else iter(cache)
        self.next_cache: Cache = []

    def prepend(self, x: Float[Array, "B T ..."], count: int) -> Float[Array, "B T+count ..."]:
        """`count` earlier inputs, then `x`; zeros before the first chunk."""
        if self._cache is None:
            earlier = jnp.zeros((x.shape[0], count, *x.shape[2:]), x.dtype)
        else:
            earlier = next(self._cache)
        x = jnp.concatenate([earlier, x], axis=1)
        self.next_cache.append(x[:, x.shape[1] - count :])
        return x


def _rms(x: Float[Array, "B ... D"]) -> Float[Array, "B ... 1"]:
    """Root mean square over channels. A mean over positions would not be causal."""
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True) + 1e-8)


def pad_causal(x: Float[Array, "B T ..."], count: int) -> Float[Array, "B count+T ..."]:
    """Media after `count` copies of their first frame."""
    return jnp.concatenate([jnp.repeat(x[:, :1], count, axis=1), x], axis=1) if count else x


def space_to_depth(x: Float[Array, "B ... C"], stride: tuple[int, ...]) -> Float[Array, "B ... D"]:
    """Moves each block of `stride` positions into channels, in the order (position in the block, channel)."""
    batch, *sizes, channels = x.shape
    axes = len(stride)
    split = [batch]
    for size, s in zip(sizes, stride):
        split += [size // s, s]
    # [B, rows, row in block, columns, column in block, ..., C] -> [B, rows, columns, ..., row and column in block, C]
    order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1]
    x = x.reshape(*split, channels).transpose(order)
    return x.reshape(batch, *split[1::2], math.prod(stride) * channels)


def depth_to_space(x: Float[Array, "B ... D"], stride: tuple[int, ...]) -> Float[Array, "B ... C"]:
    """Returns the inverse of `space_to_depth`."""
    batch, *sizes, depth = x.shape
    axes, channels = len(stride), depth // math.prod(stride)
    order = [0]
    for i in range(axes):
        order += [1 + i, 1 + axes + i]
    x = x.reshape(batch, *sizes, *stride, channels).transpose([*order, 2 * axes + 1])
    return x.reshape(batch, *(size * s for size, s in zip(sizes, stride)), channels)
