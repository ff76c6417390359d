"""Context: the tokens of a sample at tau = 0, in student and teacher, which are excluded from every loss.

Video to audio, audio to video, continuation and in-painting are masks over tokens, True for context. A case is a family
of masks: training draws from those in `schedule.context`; sampling uses one mask of one case.
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
    "modality": "one or more whole modalities, but not all of them",
    "first_frame": "the first frame of the video",
    "prefix": "everything before a point in time",
    "inpaint_time": "everything outside an interval of time",
    "inpaint_region": "everything outside a rectangle of each frame",
}

# Edges of tokens and times are sums and quotients of floats: comparisons need a margin.
_ROUNDING = 1e-4


def check_table(table: dict[str, float]) -> None:
    """Raises `UserError`, naming the field, unless `table` maps cases to probabilities."""
    for case, probability in table.items():
        if case not in CASES:
            raise UserError(f"schedule.context names {case!r}; the cases are {', '.join(CASES)}")
        if not 0 <= probability <= 1:
            raise UserError(f"schedule.context.{case} is {probability}: give a probability, 0 to 1")
    total = sum(table.values())
    if total > 1 + 1e-6:
        raise UserError(f"schedule.context sums to {total:g}: lower it to at most 1; the rest has no context")


def draw_context(
    keys_B: Key[Array, "B"], table: dict[str, float], modalities: dict[str, Modality]
) -> dict[str, Bool[Array, "B N"]]:
    """Draws the context of each sample; every sample keeps a token outside it.

    A case that does not apply to the modalities, such as the first frame of audio, gives an empty context.

    Args:
      keys_B: a key for each sample.
      table: the probability of each case; the remaining samples have no context.
      modalities: the modalities of the component.
    """
    bounds = jnp.asarray(np.cumsum(list(table.values())), jnp.float32)

    def draw_one(key: Key[Array, ""]) -> Masks:
        # All cases are computed and one is selected: under `vmap` a branch would compute all of them too.
        case_key, *keys = jax.random.split(key, 1 + len(table))
        # The index one past the last case is that of no context.
        case = jnp.searchsorted(bounds, jax.random.uniform(case_key), side="right")
        masks = [_DRAWS[name](key, modalities) for key, name in zip(keys, table)]
        masks.append({m: jnp.zeros(modality.tokens, bool) for m, modality in modalities.items()})
        return {m: jnp.stack([mask[m] for mask in masks])[case] for m in modalities}

    return jax.vmap(draw_one)(keys_B)


def modality_context(modalities: dict[str, Modality], names: tuple[str, ...]) -> Masks:
    """Returns all tokens of the named modalities."""
    return {m: jnp.full(modality.tokens, m in names) for m, modality in modalities.items()}


def first_frame_context(modalities: dict[str, Modality]) -> Masks:
    """Returns the tokens of the video's first latent frame."""
    masks = {}
    for m, modality in modalities.items():
        count = modality.tokens // modality.grid[0] if modality_of(m) == "video" else 0
        masks[m] = jnp.arange(modality.tokens) < count
    return masks


def prefix_context(modalities: dict[str, Modality], end: Float[Array, ""]) -> Masks:
    """Tokens of video and audio whose time span ends at `end` or before, in units of 10 ms."""

    def before(start_N: np.ndarray, end_N: np.ndarray) -> Array:
        return end_N <= end + _ROUNDING

    return _timed(modalities, before)


def inpaint_time_context(modalities: dict[str, Modality], start: Float[Array, ""], end: Float[Array, ""]) -> Masks:
    """Tokens of video and audio whose time span does not overlap `start` to `end`, in units of 10 ms."""

    def outside(start_N: np.ndarray, end_N: np.ndarray) -> Array:
        return (end_N <= start + _ROUNDING) | (start_N >= end - _ROUNDING)

    return _timed(modalities, outside)


def inpaint_region_context(
    modalities: dict[str, Modality],
    left: Float[Array, ""],
    top: Float[Array, ""],
    right: Float[Array, ""],
    bottom: Float[Array, ""],
) -> Masks:
    """Tokens of images and video frames that do not overlap a rectangle, in fractions of width and height."""
    masks = {}
    for m, modality in modalities.items():
        masks[m] = jnp.zeros(modality.tokens, bool)
        if len(modality.grid) > 1:
            rows, columns = modality.grid[-2:]
            row, column = np.mgrid[:rows, :columns].reshape(2, -1)
            # The tokens that overlap the rectangle; context is the others, in every frame.
            across = (column / columns < right - _ROUNDING) & ((column + 1) / columns > left + _ROUNDING)
            down = (row / rows < bottom - _ROUNDING) & ((row + 1) / rows > top + _ROUNDING)
            masks[m] = jnp.tile(~(across & down), modality.tokens // (rows * columns))
    return masks


def _timed(modalities: dict[str, Modality], inside: Callable[[np.ndarray, np.ndarray], Array]) -> Masks:
    """Returns the mask `inside(start_N, end_N)` of the tokens' time spans; empty for modalities without time."""
    masks = {}
    for m, modality in modalities.items():
        masks[m] = jnp.zeros(modality.tokens, bool)
        if modality.period:
            duration = modality.patch[0] * modality.period
            # A token spans the times [start, start + duration), also where it is one of many in a frame.
            start = np.arange(modality.grid[0]) * duration + modality.offset[0]
            start_N = np.repeat(start, modality.tokens // modality.grid[0])
            masks[m] = jnp.asarray(inside(start_N, start_N + duration))
    return masks


def _duration(modalities: dict[str, Modality]) -> float:
    """Duration of the clips, in units of 10 ms; 0 without time."""
    return max((x.latent[0] * x.period + x.offset[0] for x in modalities.values() if x.period), default=0.0)


def _draw_modality(key: Key[Array, ""], modalities: dict[str, Modality]) -> Masks:
    names = sorted(modalities)
    subsets = [()]
    if len(names) > 1:
        subsets = []
        for size in range(1, len(names)):
            subsets += itertools.combinations(names, size)
    index = jax.random.randint(key, (), 0, len(subsets))
    masks = {}
    for m, modality in modalities.items():
        whole = jnp.asarray([m in subset for subset in subsets])[index]
        masks[m] = jnp.full(modality.tokens, whole)
    return masks


def _draw_first_frame(key: Key[Array, ""], modalities: dict[str, Modality]) -> Masks:
    del key
    return first_frame_context(modalities)


def _draw_prefix(key: Key[Array, ""], modalities: dict[str, Modality]) -> Masks:
    # Below the whole duration: the last token of each modality is never context.
    return prefix_context(modalities, jax.random.uniform(key, maxval=_duration(modalities) - 2 * _ROUNDING))


def _draw_inpaint_time(key: Key[Array, ""], modalities: dict[str, Modality]) -> Masks:
    start, end = _interval(key, _duration(modalities))
    return inpaint_time_context(modalities, start, end)


def _draw_inpaint_region(key: Key[Array, ""], modalities: dict[str, Modality]) -> Masks:
    across_key, down_key = jax.random.split(key)
    left, right = _interval(across_key, 1.0)
    top, bottom = _interval(down_key, 1.0)
    return inpaint_region_context(modalities, left, top, right, bottom)


def _interval(key: Key[Array, ""], length: float) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns a random interval of [0, length], wide enough to overlap a token."""
    low, high = jnp.sort(jax.random.uniform(key, (2,)) * length)
    return jnp.minimum(low, length - 4 * _ROUNDING), jnp.maximum(high, low + 4 * _ROUNDING)


_DRAWS: dict[str, Callable[[Key[Array, ""], dict[str, Modality]], Masks]] = {
    "modality": _draw_modality,
    "first_frame": _draw_first_frame,
    "prefix": _draw_prefix,
    "inpaint_time": _draw_inpaint_time,
    "inpaint_region": _draw_inpaint_region,
}
