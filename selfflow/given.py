"""Given tokens: which tokens of a sample are its conditions, held at tau = 0.

Sound for a film, a film for a sound, a film from its first frame, the continuation of a clip, a missing stretch or
region: each is a mask over tokens, and nothing else. A case names a family of masks. Training draws masks of the
cases that its table names; sampling takes one mask of a case.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from selfflow.errors import UserError
from selfflow.modality import Modality, modality_of

Masks = dict[str, Bool[Array, "N"]]

CASES = {
    "modality": "some of the modalities, whole, and not all of them",
    "first_frame": "the first frame of the video",
    "prefix": "all that ends before a moment",
    "inpaint_time": "all but a stretch of time",
    "inpaint_region": "all of each picture but a rectangle",
}


def check_table(table: dict[str, float]) -> None:
    """Raises `UserError`, naming the field, unless `table` maps cases to probabilities."""
    for case, probability in table.items():
        if case not in CASES:
            raise UserError(f"schedule.given names {case!r}; the cases are {', '.join(CASES)}")
        if not 0 <= probability <= 1:
            raise UserError(f"schedule.given.{case} is {probability}: give a probability, 0 to 1")
    if sum(table.values()) > 1 + 1e-6:
        raise UserError(f"schedule.given sums to {sum(table.values()):g}: the sum must be at most 1, the rest is none")


def draw_given(
    keys_B: Key[Array, "B"], table: dict[str, float], modalities: dict[str, Modality]
) -> dict[str, Bool[Array, "B N"]]:
    """Draws given tokens for each sample; every sample keeps a token that is not given.

    A case that a component cannot have, such as the first frame of a sound, gives nothing.

    Args:
      keys_B: a key for each sample.
      table: the probability of each case; nothing is given in the rest.
      modalities: those of the component.
    """
    bounds = jnp.asarray(np.cumsum(list(table.values())), jnp.float32)

    def one(key: Key[Array, ""]) -> Masks:
        which, *keys = jax.random.split(key, 1 + len(table))
        chosen = jnp.searchsorted(bounds, jax.random.uniform(which), side="right")
        masks = [_DRAWS[case](key, modalities) for key, case in zip(keys, table)]
        # The last one, whose number no case has, stands for none.
        masks.append({m: jnp.zeros(modality.tokens, bool) for m, modality in modalities.items()})
        return {m: jnp.stack([mask[m] for mask in masks])[chosen] for m in modalities}

    return jax.vmap(one)(keys_B)


def modality_given(modalities: dict[str, Modality], names: tuple[str, ...]) -> Masks:
    """All tokens of the named modalities."""
    return {m: jnp.full(modality.tokens, m in names) for m, modality in modalities.items()}


def first_frame_given(modalities: dict[str, Modality]) -> Masks:
    """The tokens of the video's first latent frame."""
    return {
        m: jnp.arange(x.tokens) < x.tokens // x.grid[0] * (modality_of(m) == "video") for m, x in modalities.items()
    }


def prefix_given(modalities: dict[str, Modality], moment: Float[Array, ""]) -> Masks:
    """Tokens of films and sounds whose time ends at `moment`, in units of 10 ms, or before."""
    return _timed(modalities, lambda start_N, end_N: end_N <= moment + _ROUNDING)


def stretch_given(modalities: dict[str, Modality], start: Float[Array, ""], end: Float[Array, ""]) -> Masks:
    """Tokens of films and sounds that share no time with the stretch from `start` to `end`, in units of 10 ms."""
    return _timed(modalities, lambda start_N, end_N: (end_N <= start + _ROUNDING) | (start_N >= end - _ROUNDING))


def region_given(
    modalities: dict[str, Modality], left: Float[Array, ""], top: Float[Array, ""], right: Float[Array, ""], bottom
) -> Masks:
    """Tokens of pictures and of frames that share nothing with a rectangle; its sides are parts of width and height."""
    masks = {}
    for m, modality in modalities.items():
        masks[m] = jnp.zeros(modality.tokens, bool)
        if len(modality.grid) > 1:
            rows, columns = modality.grid[-2:]
            row, column = np.mgrid[:rows, :columns].reshape(2, -1)
            across = (column / columns < right - _ROUNDING) & ((column + 1) / columns > left + _ROUNDING)
            down = (row / rows < bottom - _ROUNDING) & ((row + 1) / rows > top + _ROUNDING)
            masks[m] = jnp.tile(~(across & down), modality.tokens // (rows * columns))
    return masks


# Sides of tokens and moments are sums and quotients of floats.
_ROUNDING = 1e-4


def _timed(modalities: dict[str, Modality], given: Callable[[np.ndarray, np.ndarray], Array]) -> Masks:
    masks = {}
    for m, modality in modalities.items():
        masks[m] = jnp.zeros(modality.tokens, bool)
        if modality.period:
            lasting = modality.patch[0] * modality.period
            start = np.arange(modality.grid[0]) * lasting + modality.offset[0]
            start_N = np.repeat(start, modality.tokens // modality.grid[0])
            masks[m] = jnp.asarray(given(start_N, start_N + lasting))
    return masks


def _seconds(modalities: dict[str, Modality]) -> float:
    """How long the clips last, in units of 10 ms."""
    return max((x.latent[0] * x.period + x.offset[0] for x in modalities.values() if x.period), default=0.0)


def _draw_modality(key: Key[Array, ""], modalities: dict[str, Modality]) -> Masks:
    names = sorted(modalities)
    subsets = [subset for size in range(1, len(names)) for subset in itertools.combinations(names, size)] or [()]
    chosen = jax.random.randint(key, (), 0, len(subsets))
    return {m: jnp.full(modalities[m].tokens, jnp.asarray([m in s for s in subsets])[chosen]) for m in modalities}


def _draw_prefix(key: Key[Array, ""], modalities: dict[str, Modality]) -> Masks:
    # Below the whole length: the last token of each modality is never given.
    return prefix_given(modalities, jax.random.uniform(key, maxval=_seconds(modalities) - 2 * _ROUNDING))


def _draw_stretch(key: Key[Array, ""], modalities: dict[str, Modality]) -> Masks:
    start, end = _interval(key, _seconds(modalities))
    return stretch_given(modalities, start, end)


def _draw_region(key: Key[Array, ""], modalities: dict[str, Modality]) -> Masks:
    across, down = (_interval(k, 1.0) for k in jax.random.split(key))
    return region_given(modalities, across[0], down[0], across[1], down[1])


def _interval(key: Key[Array, ""], length: float) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """A part of [0, length] that is wide enough to touch a token."""
    low, high = jnp.sort(jax.random.uniform(key, (2,)) * length)
    return jnp.minimum(low, length - 4 * _ROUNDING), jnp.maximum(high, low + 4 * _ROUNDING)


_DRAWS: dict[str, Callable[[Key[Array, ""], dict[str, Modality]], Masks]] = {
    "modality": _draw_modality,
    "first_frame": lambda key, modalities: first_frame_given(modalities),
    "prefix": _draw_prefix,
    "inpaint_time": _draw_stretch,
    "inpaint_region": _draw_region,
}
