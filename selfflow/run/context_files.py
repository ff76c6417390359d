"""Media files as context of samples: converted to the size, rates and length of a run's media."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from selfflow.data.media import Media
from selfflow.data.media.read import read_clip, read_image
from selfflow.errors import UserError
from selfflow.media import medium_of
from selfflow.modality import modality_of
from selfflow.sampling.context_spec import ContextRequest

if TYPE_CHECKING:
    from selfflow.config.shapes import MediaSpec


def read_context(
    request: ContextRequest, names: tuple[str, ...], media: Mapping[str, "MediaSpec"]
) -> dict[str, np.ndarray]:
    """Reads the file of a request.

    Args:
      request: with a file.
      names: modalities to read.
      media: shape and rate of each modality of the run.

    Returns:
      {modality: one clip}.

    Raises:
      UserError: if the file is missing, damaged, shorter than a clip or lacks a modality.
    """
    images = tuple(m for m in names if not medium_of(m).has_time)
    timed = tuple(m for m in names if m not in images)
    clips = {m: read_image(request.file, _side(m, media)) for m in images}
    if not timed:
        return clips
    if request.case == "first_frame":
        (m,) = timed
        # The other frames are generated, whatever they are here.
        frame = read_image(request.file, _side(m, media))
        return clips | {m: np.stack([frame] * media[m].shape[0])}
    try:
        return clips | read_clip(request.file, timed, _clip_settings(timed, media))
    except UserError:
        if request.case != "prefix":
            raise
    # The file may be no longer than the prefix that is to be continued.
    prefix = read_clip(request.file, timed, _clip_settings(timed, media, request.numbers[0]))
    for m, x in prefix.items():
        padding = [(0, media[m].shape[0] - len(x))] + [(0, 0)] * (x.ndim - 1)
        clips[m] = np.pad(x, padding, mode="edge" if medium_of(m).is_visual else "constant")
    return clips


def _side(m: str, media: Mapping[str, "MediaSpec"]) -> int:
    height, width, _ = media[m].shape[-3:]
    if height != width:
        raise UserError(f"this run's {m} is {width} x {height}: only square images can be read from a file")
    return height


def _clip_settings(timed: tuple[str, ...], media: Mapping[str, "MediaSpec"], seconds: float | None = None) -> Media:
    """Size, rates and length of a clip, at most `seconds` long."""
    by_modality = {modality_of(m): media[m] for m in timed}
    audio = by_modality.get("audio")
    # Clips are counted in frames; without video a sample is a frame.
    clock = by_modality.get("video") or audio
    frames = clock.shape[0]
    if seconds is not None:
        frames = min(frames, math.ceil(seconds * clock.rate - 1e-6))
    visual = next((m for m in timed if medium_of(m).is_visual), None)
    return Media(
        frames=frames,
        frames_per_second=clock.rate,
        size=_side(visual, media) if visual else 1,
        sample_rate=(audio or clock).rate,
    )
