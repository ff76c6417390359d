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
        """{modality: latent} of clip i; raises `BadRecord` if it cannot be read."""
        ...


def readable_clips(
    clips: Clips, numbers: Iterable[int], left_out: list[int]
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yields (i, latents) of the clips of these numbers that can be read.

    Args:
      clips: the clips.
      numbers: numbers of clips.
      left_out: numbers of unreadable clips are appended to it.
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
    # The error is not kept while reading: the first clip is read once more for its reason.
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
