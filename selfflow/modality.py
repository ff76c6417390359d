"""Modalities: the shapes of latents, and the conversion of latents to tokens with coordinates and back."""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from selfflow.errors import UserError

_AXES = {3: "hw", 4: "thw", 2: "t"}


@dataclass(frozen=True)
class Modality:
    """The latents of one modality and how they become tokens.

    Attributes:
      latent: shape of one latent, channels last: [H, W, C], [T, H, W, C] or [T, C].
      patch: number of latent positions that a token spans along each axis except the channels.
      period: time between two latent frames, in units of 10 ms; 0 where there is no time axis.
      offset: added to the coordinates (t, h, w, l) of every token. With it one modality can occur twice in a
        component, as in `image` and `image:reference`: two streams, whose names begin with that of their modality.
    """

    latent: tuple[int, ...]
    patch: tuple[int, ...]
    period: float = 0.0
    offset: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def __post_init__(self):
        if len(self.latent) not in _AXES or len(self.patch) != len(self.latent) - 1:
            raise UserError(
                f"patch {self.patch} does not fit a latent of shape {self.latent}: give one number "
                "for each axis but the channels"
            )
        if min(self.latent) < 1:
            raise UserError(f"a latent of shape {self.latent} has an axis without elements")
        for size, patch in zip(self.latent, self.patch):
            if patch < 1 or size % patch:
                raise UserError(
                    f"patch {self.patch} does not divide a latent of shape {self.latent}: each number "
                    "must divide its axis"
                )

    def lasting(self, frames: int) -> "Modality":
        """Returns the modality with another number of latent frames.

        Raises:
          ValueError: if there is no time axis.
        """
        if not self.period:
            raise ValueError(f"a latent of shape {self.latent} has no time axis")
        return dataclasses.replace(self, latent=(frames, *self.latent[1:]))

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of tokens along each axis."""
        return tuple(size // patch for size, patch in zip(self.latent, self.patch))

    @property
    def tokens(self) -> int:
        """N, the number of tokens of one latent."""
        return math.prod(self.grid)

    @property
    def token_size(self) -> int:
        """P, the number of latent elements in one token."""
        return math.prod(self.patch) * self.latent[-1]

    def to_tokens(self, latent: Float[Array, "B ... C"]) -> Float[Array, "B N P"]:
        """Cuts latents into tokens in row-major order; a token is flattened as (channel, *patch)."""
        batch, axes = latent.shape[0], len(self.patch)
        # [B, H, W, C] -> [B, h, p, w, q, C] -> [B, h, w, C, p, q] -> [B, h w, C p q], and likewise with other axes.
        split = latent.reshape(batch, *_interleave(self.grid, self.patch), self.latent[-1])
        grid_axes = [1 + 2 * i for i in range(axes)]
        patch_axes = [2 + 2 * i for i in range(axes)]
        tokens = split.transpose(0, *grid_axes, 1 + 2 * axes, *patch_axes)
        return tokens.reshape(batch, self.tokens, self.token_size)

    def from_tokens(self, tokens_BNP: Float[Array, "B N P"]) -> Float[Array, "B ... C"]:
        """Returns the inverse of `to_tokens`."""
        batch, axes = tokens_BNP.shape[0], len(self.patch)
        split = tokens_BNP.reshape(batch, *self.grid, self.latent[-1], *self.patch)
        # [B, h, w, C, p, q] -> [B, h, p, w, q, C]
        order = _interleave(range(1, 1 + axes), range(2 + axes, 2 + 2 * axes))
        return split.transpose(0, *order, 1 + axes).reshape(batch, *self.latent)

    def of_tokens(self, count: int) -> "Modality":
        """Returns the modality of latents with `count` tokens: clips may be shorter or longer than the nominal
        length."""
        return self if count == self.tokens else self.lasting(count // math.prod(self.grid[1:]) * self.patch[0])

    def valid_tokens(self, frames_B: Int[Array, "B"]) -> Bool[Array, "B N"]:
        """Which tokens are data and not padding, if sample i has `frames_B[i]` latent frames of data."""
        # A token of several latent frames is data if all of them are.
        last = (np.arange(self.grid[0]) + 1) * self.patch[0]
        return jnp.asarray(np.repeat(last, self.tokens // self.grid[0])) <= frames_B[:, None]

    def coordinates(self) -> Float[np.ndarray, "N 4"]:
        """(t, h, w, l) of every token, float32.

        t is the centre of the token's time support in units of 10 ms, so that tokens of one moment
        share it whatever their modality; h and w count tokens; l, the index in a text, is 0. The offset is added.
        """
        place = {axis: np.arange(count, dtype=np.float32) for axis, count in zip(_AXES[len(self.latent)], self.grid)}
        if "t" in place:
            place["t"] = (place["t"] + 0.5) * self.patch[0] * self.period
        grids = np.meshgrid(*place.values(), indexing="ij")
        place_N4 = np.zeros((self.tokens, 4), np.float32)
        for axis, grid in zip(place, grids):
            place_N4[:, "thwl".index(axis)] = grid.ravel()
        return (place_N4 + np.asarray(self.offset)).astype(np.float32)


def _interleave(first: Iterable[int], second: Iterable[int]) -> list[int]:
    return list(itertools.chain.from_iterable(zip(first, second)))


def modality_of(stream: str) -> str:
    """Returns the name of a stream's modality: the part before the colon, such as "image" of "image:reference"."""
    return stream.partition(":")[0]


def frames_of_tokens(frames: int, tokens: int) -> Int[np.ndarray, "tokens+1"]:
    """Bounds of a video's tokens in frames: tokens of time step i cover the frames from bound i to bound i + 1.

    If the tokens do not divide the frames evenly the first covers fewer, as in causal autoencoders, which encode the
    first frame alone.
    """
    each = -(-frames // tokens)
    return np.maximum(np.arange(tokens + 1) * each - (each * tokens - frames), 0)


def of_latents(modalities: dict[str, Modality], latents: dict[str, jax.Array]) -> dict[str, Modality]:
    """Returns the modalities of latents [B, ...], whose number of latent frames may differ from the nominal one.

    Raises:
      ValueError: if a shape differs in more than its length.
    """
    fitted = {}
    for name, latent in latents.items():
        modality, shape = modalities[name], latent.shape[1:]
        if shape != modality.latent:
            if not modality.period or shape[1:] != modality.latent[1:]:
                raise ValueError(f"{name}: latents of shape {shape}, expected {modality.latent}")
            modality = modality.lasting(shape[0])
        fitted[name] = modality
    return fitted


def to_tokens(modalities: dict[str, Modality], latents: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Latents [B, ...] of a component as float32 tokens [B, N, P], by modality.

    Raises:
      ValueError: if a shape differs from that of its modality in more than its length.
    """
    tokens = {}
    for name, modality in of_latents(modalities, latents).items():
        tokens[name] = modality.to_tokens(jnp.asarray(latents[name], jnp.float32))
    return tokens
