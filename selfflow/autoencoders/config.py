"""Configs of autoencoders. Importing this module is cheap.

Configs are frozen dataclasses with a `kind` that follow the protocol `Config`; `load_autoencoder` reads the weights of
one and returns an `Autoencoder`. Linear autoencoders are fitted once to the data of an experiment; the others have a
`path` to pretrained weights. The path is not part of an autoencoder's identity, which is a hash of its weights.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from selfflow.autoencoders.linear import MdctPCA, PatchPCA
from selfflow.autoencoders.log_mel import LogMel
from selfflow.errors import UserError, check_above_zero, check_at_least
from selfflow.serialization import to_json

AUTOENCODER_FILE = "autoencoder.safetensors"
"""Name of the file that a run which trains a convolutional autoencoder writes into its folder."""


class Autoencoder(Protocol):
    """Media <-> latents of about unit variance per channel.

    Raw media have the dtype and axes of `selfflow.media.MEDIA`: uint8 [..., H, W, 3] images, uint8 [..., T, H, W, 3]
    videos, int16 [..., samples] audio. Leading axes are kept.

    Attributes:
      config: config that it was loaded from.
      identity: kind, and hash of weights and config; equal identities imply equal latents.
      batch_size: records per call for which encoding is fastest.
    """

    config: "Config"
    identity: str
    batch_size: int

    def encode(self, media: np.ndarray) -> np.ndarray:
        """float32 latents [..., C]; the mean, if they are a distribution."""
        ...

    def encode_distribution(self, media: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Mean and standard deviation of the latents; the latter is None if the autoencoder is deterministic."""
        ...

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Raw media of latents [..., C]."""
        ...


class Config(Protocol):
    """The properties of an autoencoder that do not depend on its weights.

    Attributes:
      kind: name of the kind.
      modalities: modalities that it can encode.
      temporal_stride: frames or samples per latent frame; 1 if each frame is encoded independently.
      causal_padding: frames or samples that the first latent frame lacks; temporal_stride - 1 if the first frame of a
        video has a separate latent frame.
    """

    kind: str
    modalities: ClassVar[tuple[str, ...]]
    temporal_stride: int
    causal_padding: int

    def latent_shape(self, media: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latents of media of a shape.

        Raises:
          UserError: if a stride does not divide it.
        """
        ...


class _ImageConfig:
    """Autoencoders of images, which encode each frame of a video independently."""

    modalities: ClassVar[tuple[str, ...]] = ("image", "video")
    temporal_stride: ClassVar[int] = 1
    causal_padding: ClassVar[int] = 0

    def __post_init__(self):
        fields = [name for name in ("channels", "stride", "groups", "scale") if hasattr(self, name)]
        check_above_zero(self, f"{self.kind} autoencoder: ", *fields)

    def latent_shape(self, media: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latents of media [..., H, W, 3]."""
        return _spatial_shape(self, media)


@dataclass(frozen=True)
class SDVAE(_ImageConfig):
    """The autoencoder of Stable Diffusion (arXiv 2112.10752): AutoencoderKL of diffusers, with scaled latents."""

    kind: Literal["sd_vae"] = "sd_vae"
    path: str = ""
    """A .safetensors file in diffusers' layout, or the folder that holds diffusion_pytorch_model.safetensors."""
    channels: int = 4
    """Latent channels."""
    stride: int = 8
    """Pixels along the side of a latent position."""
    scale: float = 0.18215
    """Factor of the latents, for about unit variance; 0.13025 for SDXL."""
    shift: float = 0.0
    """Subtracted from the latents before scaling; 0.1159 for FLUX.1."""
    groups: int = 32
    """Groups of the group normalisations."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of computation."""


@dataclass(frozen=True)
class Flux2VAE(_ImageConfig):
    """The autoencoder of FLUX.2: AutoencoderKLFlux2 of diffusers.

    Latents are in the space in which FLUX.2 adds noise: 2 x 2 positions packed into one, normalised by the running
    statistics of a batch normalisation.
    """

    kind: Literal["flux2_vae"] = "flux2_vae"
    path: str = ""
    """A .safetensors file in diffusers' layout, or the folder that holds diffusion_pytorch_model.safetensors."""
    channels: int = 128
    """Latent channels, after packing."""
    stride: int = 16
    """Pixels along the side of a latent position, after packing."""
    groups: int = 32
    """Groups of the group normalisations."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of computation."""


@dataclass(frozen=True)
class TemporalConfig:
    """Autoencoders whose latent frames may span several video frames, or audio samples."""

    channels: int = 32
    """Latent channels."""
    temporal_stride: int = 1
    """Frames or samples per latent frame."""
    stride: int = 8
    """Pixels along the side of a latent position; 0 for audio."""
    images_only: bool = False
    """Whether it encodes images only, each as a video of one frame."""

    def __post_init__(self):
        name = f"the {self.kind} autoencoder"
        check_at_least(self, f"{self.kind} autoencoder: ", channels=1, temporal_stride=1)
        if self.stride < 0 or (self.images_only and not self.stride):
            raise UserError(f"stride of {name} is {self.stride}: give at least 1 for images and video, 0 for audio")
        rate = getattr(self, "sample_rate", 0)
        if rate < 0 or (self.stride and rate):
            raise UserError(f"sample_rate of {name} is {rate}: give that of the audio, 0 for images and video")

    @property
    def modalities(self) -> tuple[str, ...]:
        """The one modality that it encodes."""
        if self.images_only:
            return ("image",)
        return ("video",) if self.stride else ("audio",)

    @property
    def causal_padding(self) -> int:
        """Frames by which the first latent frame is shorter: it holds the first video frame alone."""
        return self.temporal_stride - 1 if self.stride else 0

    def latent_shape(self, media: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latents of images [..., H, W, 3], videos [..., T, H, W, 3] or audio [..., samples]."""
        if not self.stride:
            return self._audio_shape(media)
        *lead, height, width, channels = _spatial_shape(self, media)
        if not self.images_only:
            *lead, frames = lead
            lead.append(self._latent_frames(frames))
        return (*lead, height, width, channels)

    def _audio_shape(self, media: tuple[int, ...]) -> tuple[int, ...]:
        *lead, samples = media
        if samples % self.temporal_stride:
            raise UserError(
                f"the {self.kind} autoencoder has latent frames of {self.temporal_stride} samples, which do not divide "
                f"clips of {samples}: give them another length"
            )
        return (*lead, samples // self.temporal_stride, self.channels)

    def _latent_frames(self, frames: int) -> int:
        padded = frames + self.causal_padding
        latent_frames = padded // self.temporal_stride
        if padded % self.temporal_stride:
            first = ", the first of 1" if self.causal_padding else ""
            fitting = max(latent_frames, 1) * self.temporal_stride - self.causal_padding
            raise UserError(
                f"the {self.kind} autoencoder has latent frames of {self.temporal_stride} frames{first}: clips of "
                f"{frames} frames do not fit; give them {fitting}"
            )
        return latent_frames


@dataclass(frozen=True)
class Convolutional(TemporalConfig):
    """A causal convolutional KL autoencoder that is trained by `selfflow train experiments/autoencoder_video.py`."""

    kind: Literal["convolutional"] = "convolutional"
    path: str = ""
    """The autoencoder.safetensors of its run. `--autoencoder.video convolutional=PATH`, a file or the folder of a run,
    reads all other fields from it."""
    sample_rate: int = 0
    """Audio samples per second; 0 for images and video."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of computation."""


@dataclass(frozen=True)
class Diffusers(TemporalConfig):
    """Any autoencoder of diffusers, run by its own torch code (extra `diffusers`).

    For images, for video whose first frame has a separate latent frame, such as Wan's AutoencoderKLWan, or for audio,
    such as Stable Audio's AutoencoderOobleck.
    """

    kind: Literal["diffusers"] = "diffusers"
    path: str = ""
    """Its folder, or a name on the Hugging Face hub; only safetensors are read.
    `--autoencoder.video diffusers=AutoencoderKLWan:PATH` reads all other fields from it."""
    name: str = ""
    """Its class in diffusers."""
    subfolder: str = ""
    """Its folder within a pipeline, such as vae."""
    sample_rate: int = 0
    """Audio samples per second; 0 for images and video."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of computation."""


@dataclass(frozen=True)
class Precomputed(TemporalConfig):
    """The unavailable autoencoder of precomputed latents (`selfflow data build latent_files`).

    It neither encodes nor decodes.
    """

    kind: Literal["precomputed"] = "precomputed"
    name: str = ""
    """Its name in latents.json. `--autoencoder.image precomputed=FOLDER` reads all fields from there."""
    first_frame_alone: bool = False
    """Whether the first latent frame of a video holds its first frame alone."""

    @property
    def causal_padding(self) -> int:
        """Frames by which the first latent frame is shorter."""
        return (self.temporal_stride - 1) * self.first_frame_alone

    @property
    def identity(self) -> str:
        """Its name."""
        return f"precomputed: {self.name}"


AnyAutoencoder = PatchPCA | MdctPCA | LogMel | SDVAE | Flux2VAE | Convolutional | Diffusers | Precomputed
PRETRAINED = (SDVAE, Flux2VAE, Convolutional, Diffusers)


def _spatial_shape(config: SDVAE | Flux2VAE | TemporalConfig, media: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of latents of frames [..., H, W, 3], by `stride` and `channels` of an autoencoder."""
    *lead, height, width, _ = media
    if height % config.stride or width % config.stride:
        raise UserError(
            f"the {config.kind} autoencoder has a stride of {config.stride} pixels, which does not divide images of "
            f"{height} x {width}: give the data another size"
        )
    return (*lead, height // config.stride, width // config.stride, config.channels)


def uses_pretrained(config: AnyAutoencoder) -> bool:
    """Returns whether the weights are supplied by the user instead of fitted to the data."""
    return isinstance(config, PRETRAINED)


def can_decode(config: AnyAutoencoder | None) -> bool:
    """Returns whether the autoencoder itself is available, in addition to its latents."""
    return not isinstance(config, Precomputed)


def config_without_path(config: AnyAutoencoder) -> dict[str, Any]:
    """Returns a config as JSON data, without the path of the weights."""
    return {name: value for name, value in to_json(config).items() if name != "path"}
