"""Causal convolutional KL autoencoders of pictures, films and sounds: trained here, streamed in pieces.

Latents at a moment depend on media up to it and not after: whatever a clip's length, it passes through in pieces, and
what a piece has to know of the one before is handed on. A film is led in by copies of its first frame, so that this
stands for itself in the first latent frame, and a picture is a film of one frame. Sound is a waveform, whose blocks add
as much as they are given: its quiet is a thousand times quieter than its loud, and is heard all the same. Halving and
doubling move what is next to each other into channels and back (arXiv 1609.05158), so that only the convolutions look
beyond a cell.

A network is a tree of arrays.
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
_FIRST_LOG_VARIANCE = -12.0  # noise that drowns the latents is learned away at the rate of a bias, which is slow
# What the causal convolutions of a network have to know of what came before, in their order.
Past = list[Array]


@dataclass(frozen=True)
class Network:
    """The shape of a convolutional autoencoder: of pictures and films where strides have three axes, (frames, rows,
    columns), and of sound where they have one, (samples,)."""

    channels: int
    """Latent channels, C."""
    strides: tuple[tuple[int, ...], ...]
    """Of each level, from the media on; the product of all is a latent position's share of the media."""
    widths: tuple[int, ...]
    """Channels after each of these strides."""
    windows: tuple[tuple[int, ...], ...]
    """Of the convolutions of a residual block, in their order, along each axis; causal along the first."""
    blocks: int = 1
    """Residual blocks on each level, of the encoder and of the decoder."""

    def __post_init__(self):
        ranks = {len(axes) for axes in self.strides + self.windows}
        if ranks not in ({3}, {1}):
            raise UserError(
                f"network.strides {self.strides} and network.windows {self.windows}: give (frames, rows, columns) for "
                "pictures and films, (samples,) for sound"
            )
        if not self.windows:
            raise UserError("network.windows is empty: give that of one convolution at least")
        if not self.widths or len(self.widths) != len(self.strides):
            raise UserError(f"network.widths {self.widths}: give one for each of the {len(self.strides)} strides")
        counts = (self.channels, self.blocks, *self.widths, *(n for axes in self.strides + self.windows for n in axes))
        if min(counts) < 1:
            raise UserError("network: channels, blocks, widths, strides and windows must be at least 1")
        if len(self.cell) == 3 and self.cell[1] != self.cell[2]:
            raise UserError(f"network.strides {self.strides}: rows and columns must come out alike")

    @property
    def cell(self) -> tuple[int, ...]:
        """The share of the media that a latent position stands for, along each axis."""
        return tuple(math.prod(axis) for axis in zip(*self.strides))

    @property
    def pictures(self) -> bool:
        """Whether it is for pictures and films, and not for sound."""
        return len(self.cell) == 3

    @property
    def causal_padding(self) -> int:
        """Copies of the first frame before a film."""
        return self.cell[0] - 1 if self.pictures else 0

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Fresh parameters. Blocks hand on what they are given, what lies between them is orthogonal, the decoder's the
        transpose of the encoder's, and latents are drawn with hardly any noise: where no level widens, media are
        projected on a random subspace, and where one does, they come back fainter."""
        keys = iter(jax.random.split(key, (2 * self.blocks * len(self.windows) + 1) * len(self.widths) + 1))
        one, media = (1,) * len(self.cell), 3 if self.pictures else 1

        def block(width: int) -> dict[str, Any]:
            kernels = [
                (width * math.prod(window)) ** -0.5 * jax.random.normal(next(keys), (*window, width, width))
                for window in self.windows
            ]
            kernels[-1] = jnp.zeros_like(kernels[-1])
            return {
                "norms": [jnp.ones(width) for _ in kernels],
                "layers": [Convolution(kernel, jnp.zeros(width)) for kernel in kernels],
            }

        def there_and_back(inputs: int, outputs: int) -> tuple[Convolution, Convolution]:
            kernel = jax.nn.initializers.orthogonal()(next(keys), (inputs, outputs)).reshape(*one, inputs, outputs)
            return Convolution(kernel, jnp.zeros(outputs)), Convolution(kernel.swapaxes(-1, -2), jnp.zeros(inputs))

        encoder, decoder = [], []
        for stride, width, before in zip(self.strides, self.widths, (media, *self.widths)):
            down, up = there_and_back(before * math.prod(stride), width)
            encoder.append({"down": down, "blocks": [block(width) for _ in range(self.blocks)]})
            decoder.insert(0, {"blocks": [block(width) for _ in range(self.blocks)], "up": up})
        mean, back = there_and_back(self.widths[-1], self.channels)
        out = Convolution(
            jnp.concatenate([mean.kernel, jnp.zeros_like(mean.kernel)], axis=-1),
            jnp.repeat(jnp.array([0.0, _FIRST_LOG_VARIANCE]), self.channels),
        )
        return {"encoder": {"levels": encoder, "out": out}, "decoder": {"in": back, "levels": decoder}}

    def encode(
        self, params: dict[str, Any], x: Float[Array, "B ..."], past: Past | None = None
    ) -> tuple[Float[Array, "B ... C"], Float[Array, "B ... C"], Past]:
        """Mean and log variance of the latents of media, and what the next piece has to know.

        Args:
          params: of the network; their type is that of the arithmetic.
          x: media [B, T, H, W, 3] or [B, T, 1] in [-1, 1], led in, of sides that `cell` divides.
          past: what the piece before gave; none at the start.
        """
        p, seen = params["encoder"], _Seen(past)
        x = x.astype(p["out"].kernel.dtype)
        for level, stride in zip(p["levels"], self.strides):
            x = convolve(space_to_depth(x, stride), level["down"])
            for block in level["blocks"]:
                x = self._block(x, block, seen)
        # Without a normalisation: how bright or loud a cell is would have to go round it.
        x = convolve(x, p["out"]).astype(jnp.float32)
        mean, log_variance = jnp.split(x, 2, axis=-1)
        return mean, jnp.clip(log_variance, *_LOG_VARIANCE), seen.kept

    def decode(
        self, params: dict[str, Any], z: Float[Array, "B ... C"], past: Past | None = None
    ) -> tuple[Float[Array, "B ..."], Past]:
        """Media, about in [-1, 1], of latents, and what the next piece has to know."""
        p, seen = params["decoder"], _Seen(past)
        x = convolve(z.astype(p["in"].kernel.dtype), p["in"])
        for level, stride in zip(p["levels"], reversed(self.strides)):
            for block in level["blocks"]:
                x = self._block(x, block, seen)
            x = depth_to_space(convolve(x, level["up"]), stride)
        return x.astype(jnp.float32), seen.kept

    def _block(self, x: Float[Array, "B ... D"], p: dict[str, Any], seen: "_Seen") -> Float[Array, "B ... D"]:
        h = x
        for norm, layer in zip(p["norms"], p["layers"]):
            h, window = jax.nn.silu(h / _rms(h) * norm).astype(x.dtype), layer.kernel.shape[:-2]
            if window[0] > 1:
                h = seen.before(h, window[0] - 1)
            sides = [(0, 0)] + [((n - 1) // 2, n // 2) for n in window[1:]]
            h = convolve(h, layer, padding=sides)
        return x + (h if self.pictures else (_rms(x) * h).astype(x.dtype))


class _Seen:
    """Hands each causal convolution what it knows of the piece before, and keeps what it knows of this one."""

    def __init__(self, past: Past | None):
        self._past, self.kept = None if past is None else iter(past), []

    def before(self, x: Float[Array, "B T ..."], count: int) -> Float[Array, "B T+count ..."]:
        earlier = jnp.zeros((x.shape[0], count, *x.shape[2:]), x.dtype) if self._past is None else next(self._past)
        x = jnp.concatenate([earlier, x], axis=1)
        self.kept.append(x[:, x.shape[1] - count :])
        return x


def _rms(x: Float[Array, "B ... D"]) -> Float[Array, "B ... 1"]:
    """Over channels alone: a mean over positions would look ahead."""
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True) + 1e-8)


def pad_causal(x: Float[Array, "B T ..."], lead: int) -> Float[Array, "B lead+T ..."]:
    """Media after copies of their first frame."""
    return jnp.concatenate([jnp.repeat(x[:, :1], lead, axis=1), x], axis=1) if lead else x


def space_to_depth(x: Float[Array, "B ... C"], stride: tuple[int, ...]) -> Float[Array, "B ... D"]:
    """Moves each cell of `stride` positions into channels, (position in the cell, channel)."""
    axes = len(stride)
    sizes = [n for size, s in zip(x.shape[1:-1], stride) for n in (size // s, s)]
    split = x.reshape(x.shape[0], *sizes, x.shape[-1])
    order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1]
    return split.transpose(order).reshape(x.shape[0], *sizes[::2], math.prod(stride) * x.shape[-1])


def depth_to_space(x: Float[Array, "B ... D"], stride: tuple[int, ...]) -> Float[Array, "B ... C"]:
    """The inverse of `space_to_depth`."""
    axes, channels = len(stride), x.shape[-1] // math.prod(stride)
    split = x.reshape(*x.shape[:-1], *stride, channels)
    order = [0, *(axis for i in range(axes) for axis in (1 + i, 1 + axes + i)), 2 * axes + 1]
    sides = [size * s for size, s in zip(x.shape[1:-1], stride)]
    return split.transpose(order).reshape(x.shape[0], *sides, channels)
