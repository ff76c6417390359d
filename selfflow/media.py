"""Descriptions of the media: dtype and axes of raw data, rate, preview, file suffix and reconstruction errors.

One entry of `MEDIA` describes a modality. "Adding a modality" in `autoencoders/README.md` lists what else it needs.
Importing this module imports numpy alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from selfflow.errors import UserError

RGB = "3"


@dataclass(frozen=True)
class Medium:
    """Raw media of one modality.

    Attributes:
      name: name of the modality.
      dtype: dtype of the raw data: "uint8" pixels, "int16" samples, "float32" values.
      axes: axes of one clip as data sets store it; a last axis "3" is red, green, blue.
      latent_axes: axes of the latent of one clip.
      rate_field: field of a data set's config that holds steps per second; "" for media without time.
      unit: name of one step of the time axis; an image is one frame.
      preview: how a figure shows a clip: an image among others in a grid, a strip of frames, a spectrogram, or a curve
        for each channel.
      suffix: suffix of the file that holds one clip.
      metrics: names of the reconstruction errors, from `autoencoders/quality.py:METRICS`; the first is used where a
        single error is reported.
    """

    name: str
    dtype: str
    axes: tuple[str, ...]
    latent_axes: tuple[str, ...]
    rate_field: str
    unit: str
    preview: Literal["grid", "strip", "spectrogram", "curves"]
    suffix: str
    metrics: tuple[str, ...]

    @property
    def is_visual(self) -> bool:
        """Whether a clip consists of RGB frames."""
        return self.axes[-1] == RGB

    @property
    def is_audio(self) -> bool:
        """Whether a clip is a waveform of one channel."""
        return self.axes == ("samples",)

    @property
    def has_time(self) -> bool:
        """Whether a clip has a time axis, which is then its first."""
        return bool(self.rate_field)

    def rate(self, data: Any) -> float:
        """Steps per second in a data set, by its config; 0 for media without time."""
        return getattr(data, self.rate_field) if self.has_time else 0

    def matches(self, media: Any) -> bool:
        """Returns whether an array [..., *axes] has this medium's dtype, axes and, for RGB, its 3 channels."""
        if not isinstance(media, np.ndarray) or media.dtype != self.dtype or media.ndim < len(self.axes):
            return False
        return not self.is_visual or media.shape[-1] == 3

    def to_sequence(self, media: np.ndarray) -> np.ndarray:
        """Clips with a time and a channel axis: images as [..., 1, H, W, 3], mono audio as [..., samples, 1].

        Other media have both already.
        """
        if not self.has_time:
            return media[..., None, :, :, :]
        return media[..., None] if len(self.axes) == 1 else media

    def from_sequence(self, media: np.ndarray) -> np.ndarray:
        """Returns the inverse of `to_sequence`."""
        if not self.has_time:
            return media[..., 0, :, :, :]
        return media[..., 0] if len(self.axes) == 1 else media


MEDIA: dict[str, Medium] = {
    medium.name: medium
    for medium in (
        Medium(
            name="image",
            dtype="uint8",
            axes=("H", "W", RGB),
            latent_axes=("H", "W", "C"),
            rate_field="",
            unit="frames",
            preview="grid",
            suffix=".png",
            metrics=("psnr_db",),
        ),
        Medium(
            name="video",
            dtype="uint8",
            axes=("T", "H", "W", RGB),
            latent_axes=("T", "H", "W", "C"),
            rate_field="frames_per_second",
            unit="frames",
            preview="strip",
            suffix=".mp4",
            metrics=("psnr_db",),
        ),
        Medium(
            name="audio",
            dtype="int16",
            axes=("samples",),
            latent_axes=("T", "C"),
            rate_field="sample_rate",
            unit="samples",
            preview="spectrogram",
            suffix=".wav",
            metrics=("snr_db", "log_mel_distance"),
        ),
        # One vector of controls per video frame. No data set has it as a modality and no autoencoder encodes it yet:
        # the features `action` of Collisions and Atari are stored beside the media.
        Medium(
            name="action",
            dtype="float32",
            axes=("T", "channels"),
            latent_axes=("T", "C"),
            rate_field="frames_per_second",
            unit="frames",
            preview="curves",
            suffix=".npy",
            metrics=("rmse",),
        ),
    )
}


def medium_of(stream: str) -> Medium:
    """Returns the medium of a stream: of `image:reference` that of `image`.

    Raises:
      UserError: if there is no such medium.
    """
    name = stream.partition(":")[0]
    if name not in MEDIA:
        raise UserError(f"no medium is called {name!r}: give one of {', '.join(MEDIA)}")
    return MEDIA[name]


def images_only(modalities: Iterable[str]) -> bool:
    """Returns whether none of the modalities has a time axis, so that a sheet shows all of a clip."""
    return not any(medium_of(m).has_time for m in modalities)


def to_unit_range(media: Any) -> Any:
    """uint8 pixels or int16 samples, a numpy or JAX array, as float32 in [-1, 1]; floats as they are."""
    if media.dtype == np.uint8:
        return media.astype(np.float32) / 127.5 - 1
    if media.dtype == np.int16:
        return media.astype(np.float32) / 32768
    return media


def from_unit_range(x: np.ndarray, medium: Medium) -> np.ndarray:
    """Returns the inverse of `to_unit_range`, rounded; values outside of [-1, 1] are clipped."""
    if medium.dtype == "uint8":
        return np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8)
    if medium.dtype == "int16":
        return np.clip(np.rint(x * 32768), -32768, 32767).astype(np.int16)
    return x.astype(medium.dtype)
