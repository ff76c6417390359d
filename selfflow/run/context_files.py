"""Context from files: reads media at the size, rates and length of a run, and encodes them."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from selfflow.autoencoders.config import Autoencoder
from selfflow.data.media import Media
from selfflow.data.media.read import read_clip, read_image
from selfflow.errors import UserError
from selfflow.media import medium_of
from selfflow.modality import Modality, modality_of
from selfflow.sampling.context_spec import ContextRequest, merge_requests

if TYPE_CHECKING:
    from selfflow.config.shapes import MediaSpec


def conditioned_modalities(request: ContextRequest, modalities: Mapping[str, Modality]) -> tuple[str, ...]:
    """Returns the modalities whose clean latents a request requires, as context or as the start of sampling.

    Args:
      request: a context request.
      modalities: streams of the component to sample.
    """
    return (request.name,) if request.level else tuple(merge_requests((request,), modalities))


def encode_files(
    requests: Sequence[ContextRequest],
    modalities: Mapping[str, Modality],
    media: Mapping[str, "MediaSpec"],
    autoencoders: Mapping[str, Autoencoder],
) -> dict[str, np.ndarray]:
    """Encodes the files of context requests.

    Args:
      requests: context requests; those without a file are ignored.
      modalities: streams of the component to sample.
      media: shape and rate of the media of each modality that has an autoencoder.
      autoencoders: autoencoders by modality.

    Returns:
      Latents {modality: [...]} of one clip.

    Raises:
      UserError: naming the request, if its file cannot be read or a modality has no autoencoder.
    """
    latents: dict[str, np.ndarray] = {}
    for request in requests:
        if request.file is None:
            continue
        names = conditioned_modalities(request, modalities)
        for m in names:
            if m not in media:
                raise UserError(f"--context {request.text}: this run has no autoencoder that encodes {m}")
            if not (medium_of(m).is_visual or medium_of(m).is_audio):
                raise UserError(f"--context {request.text}: files of {m} are not read: give image, video or audio")
        try:
            clips = _read_media(request, names, media)
        except UserError as error:
            raise UserError(f"--context {request.text}: {error}") from error
        for m, clip in clips.items():
            latents[m] = autoencoders[m].encode(clip[None])[0]
    return latents


def _read_media(
    request: ContextRequest, names: tuple[str, ...], media: Mapping[str, "MediaSpec"]
) -> dict[str, np.ndarray]:
    """Reads one clip of each modality in `names` from the file of a request.

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
        # Only the first frame is context; its copies fill the rest of the clip, which is generated.
        frame = read_image(request.file, _side(m, media))
        return clips | {m: np.stack([frame] * media[m].shape[0])}
    try:
        return clips | read_clip(request.file, timed, _clip_settings(timed, media))
    except UserError:
        if request.case != "prefix":
            raise
    # The file may be shorter than a clip if it contains the prefix: everything after the prefix is generated.
    prefix = read_clip(request.file, timed, _clip_settings(timed, media, request.numbers[0]))
    for m, x in prefix.items():
        padding = [(0, media[m].shape[0] - len(x))] + [(0, 0)] * (x.ndim - 1)
        clips[m] = np.pad(x, padding, mode="edge" if medium_of(m).is_visual else "constant")
    return clips


def _side(m: str, media: Mapping[str, "MediaSpec"]) -> int:
    """Returns the height, equal to the width, of a visual modality."""
    height, width, _ = media[m].shape[-3:]
    if height != width:
        raise UserError(f"this run's {m} is {width} x {height}: only square images and video are read from a file")
    return height


def _clip_settings(timed: tuple[str, ...], media: Mapping[str, "MediaSpec"], seconds: float | None = None) -> Media:
    """Returns size, rates and length of a clip of at most `seconds` seconds."""
    by_modality = {modality_of(m): media[m] for m in timed}
    audio = by_modality.get("audio")
    # The length is counted in video frames, or in audio samples if there is no video.
    clock = by_modality.get("video") or audio
    frames = clock.shape[0]
    if seconds is not None:
        # The tolerance keeps a rounding error such as 1.1 * 10 = 11.000000000000002 from adding a frame.
        frames = min(frames, math.ceil(seconds * clock.rate - 1e-6))
    visual = next((m for m in timed if medium_of(m).is_visual), None)
    return Media(
        frames=frames,
        frames_per_second=clock.rate,
        size=_side(visual, media) if visual else 1,
        sample_rate=(audio or clock).rate,
    )
