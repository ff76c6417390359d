"""Iteration over clips some of which may be unreadable."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from selfflow.data.shards import BadRecord


class Clips(Protocol):
    """Clips by number, such as the clips of a split of a run's data."""

    ids: Sequence[str]

    def latents(self, i: int) -> dict[str, np.ndarray]:
        """Returns the latents of clip i, {modality: [...]}; raises `BadRecord` if it cannot be read."""
        ...


def readable_clips(
    clips: Clips, numbers: Iterable[int], left_out: list[int]
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yields (i, latents) for each readable clip of the given numbers.

    Args:
      clips: the clips.
      numbers: numbers of clips.
      left_out: list to which the numbers of unreadable clips are appended.
    """
    for i in numbers:
        try:
            latents = clips.latents(i)
        except BadRecord:
            left_out.append(i)
            continue
        yield i, latents


def warn_left_out(clips: Clips, left_out: list[int]) -> None:
    """Prints to stderr how many clips were left out, with the reason for the first; nothing if there are none."""
    if not left_out:
        return
    # Errors are not kept while reading, so the first clip is read again for its reason.
    first, reason = left_out[0], "it is readable now"
    try:
        clips.latents(first)
    except BadRecord as error:
        reason = str(error)
    print(
        f"warning: {len(left_out)} clips cannot be read and are left out, the first is {clips.ids[first]!r} "
        f"({reason}); `selfflow data verify` lists all",
        file=sys.stderr,
    )
