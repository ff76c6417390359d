"""Layers and functions of both transformers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

# Logical axes name the axes of a parameter, such as "embed"; the experiment's rules map them to axes of the mesh.
Axes = tuple[str | None, str | None]


class Dense(nnx.Module):
    """y = x W over the last axis, plus b if `bias`; computed in `dtype`, stored in float32.

    Args:
      inputs, outputs: sizes of the last axis of x and of y.
      axes: logical axes of W [inputs, outputs]; b has the second.
      zero: initialise W to 0.
      init: initialisation of W otherwise; Xavier's uniform by default. b starts at 0.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        axes: Axes,
        *,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
        zero: bool = False,
        bias: bool = False,
        init: nnx.Initializer | None = None,
    ):
        init = nnx.initializers.zeros_init() if zero else init or nnx.initializers.xavier_uniform()
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32), out_sharding=axes)
        self.bias = nnx.Param(jnp.zeros(outputs), out_sharding=axes[1:]) if bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        kernel = self.kernel[...].astype(self.dtype)
        # Flatten tokens: with leading axes the weight gradient is slow on CPUs, and 100 times slower in bfloat16.
        y = x.astype(self.dtype).reshape(-1, x.shape[-1]) @ kernel
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype)
        return y.reshape(*x.shape[:-1], kernel.shape[-1])


def to_float32(x: jax.Array) -> jax.Array:
    """Casts `x` to float32 unless its dtype is wider, for statistics and losses."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class RMSNorm(nnx.Module):
    """x / rms(x) times a learned scale, over the last axis, in float32."""

    def __init__(self, size: int, *, rngs: nnx.Rngs):
        del rngs
        self.scale = nnx.Param(jnp.ones(size), out_sharding=(None,))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        x32 = to_float32(x)
        rms = jnp.sqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + 1e-6)
        return (x32 / rms * self.scale[...]).astype(x.dtype)


def layer_norm(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Normalises the last axis to mean 0 and variance 1, without parameters, in float32."""
    x32 = to_float32(x)
    centred = x32 - x32.mean(axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + 1e-6)).astype(x.dtype)


def swiglu(x: Float[Array, "... 2H"]) -> Float[Array, "... H"]:
    """silu(a) b for the halves a and b of x (arXiv 2002.05202)."""
    a, b = jnp.split(x, 2, axis=-1)
    return jax.nn.silu(a) * b


def sinusoids(tau: Float[Array, "..."], size: int = 256, scale: float = 1000.0) -> Float[Array, "... size"]:
    """[cos, sin] of scale tau f_i, f_i = 10000^(-2i / size): the timestep embedding of arXiv 2006.11239."""
    half = size // 2
    frequency = np.exp(-math.log(10000.0) * np.arange(half) / half).astype(np.float32)
    angle = scale * tau.astype(jnp.float32)[..., None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def rotary_angles(coordinates: Float[Array, "N 4"], channels: tuple[int, ...], theta: float) -> Float[Array, "N H/2"]:
    """Computes rotary angles; axis i of the coordinates rotates `channels[i]` channels of a head."""
    angles = []
    for axis, count in enumerate(channels):
        frequency = theta ** (-np.arange(0, count, 2, dtype=np.float32) / max(count, 1))
        angles.append(coordinates[:, axis, None] * frequency)
    return jnp.concatenate([jnp.asarray(a, jnp.float32) for a in angles], axis=-1)


def rotate(x: Float[Array, "B N A H"], angles: Float[Array, "*B N H/2"]) -> Float[Array, "B N A H"]:
    """Rotates each pair of neighbouring channels by its angle (arXiv 2104.09864), in float32.

    The angles are shared by all samples, or differ by sample.
    """
    pairs = to_float32(x).reshape(*x.shape[:-1], -1, 2)
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)


def set_gates(parts: list[jax.Array], open_gates: bool | Bool[Array, ""]) -> list[jax.Array]:
    """Returns the parts of a modulation with its gates, every third part, set to 1 if `open_gates` is true."""
    if open_gates is False:
        return parts
    # An array as `open_gates` lets one compiled program compute with open gates and with those of the network.
    return [jnp.where(open_gates, 1, part) if i % 3 == 2 else part for i, part in enumerate(parts)]


def select(modulation: Float[Array, "B K C"], assignment: Int[Array, "B N"] | None) -> Float[Array, "B N C"]:
    """Selects the modulation of each token's level; without an assignment, the single level, which broadcasts."""
    if assignment is None:
        return modulation
    levels, tokens = modulation.shape[1], assignment.shape[1]
    if levels * 4 > tokens:
        return jnp.take_along_axis(modulation, assignment[..., None], axis=1)
    # A product with a one-hot matrix gives the same result, and its gradient is a product instead of a scatter.
    one_hot = jax.nn.one_hot(assignment, levels, dtype=modulation.dtype)
    return jnp.einsum("bnk,bkc->bnc", one_hot, modulation, precision="highest")
