"""Which autoencoder makes the latents of a modality; cheap to import.

Settings are frozen dataclasses with a `kind`, and what they have in common is `Config`; what they load is an
`Autoencoder`. Some are fitted to the data of an experiment, once (`fit`); the others have a `path` to weights that the
user brings. Where these lie is no part of what they are: identities are made of the weights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from selfflow.autoencoders.linear import MdctPCA, PatchPCA
from selfflow.autoencoders.mel import LogMel
from selfflow.errors import UserError
from selfflow.tree import to_json


class Autoencoder(Protocol):
    """Media <-> latents of about unit variance per channel.

    Pictures are uint8 [..., H, W, 3], films [..., T, H, W, 3], sounds int16 [..., samples].

    Attributes:
      config: its settings.
      identity: kind, and hash of weights and settings: equal identities mean equal latents.
      together: how many records are best encoded in one call.
    """

    config: "Config"
    identity: str
    together: int

    def encode(self, media: np.ndarray) -> np.ndarray:
        """float32 latents [..., C]; the mean, where they are drawn from a distribution."""
        ...

    def moments(self, media: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Mean and standard deviation of the latents; None for that of an autoencoder that is sure."""
        ...

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Media of latents [..., C]."""
        ...


class Config(Protocol):
    """What settings of an autoencoder tell without its weights.

    Attributes:
      kind: its name.
      suits: the modalities that it is for.
      hop: frames or samples of the media in one latent frame; 1 where each is encoded by itself.
      lead: how many of those the first latent frame lacks: hop - 1 where a film's first frame stands alone.
    """

    kind: str
    suits: ClassVar[tuple[str, ...]]
    hop: int
    lead: int

    def latent_shape(self, media: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latents of media of a shape.

        Raises:
          UserError: if its strides do not divide it.
        """
        ...

    def load(self, path: Path) -> Autoencoder:
        """Reads weights.

        Raises:
          UserError: naming file and key, if they are missing, damaged or of another model.
        """
        ...


@dataclass(frozen=True)
class SDVAE:
    """The autoencoder of Stable Diffusion (arXiv 2112.10752): diffusers' AutoencoderKL, its latents times a scale."""

    kind: Literal["sd_vae"] = "sd_vae"
    path: str = ""
    """A .safetensors file in diffusers' layout, or the folder that holds diffusion_pytorch_model.safetensors."""
    channels: int = 4
    """Latent channels."""
    stride: int = 8
    """Pixels along the side of a latent position."""
    scale: float = 0.18215
    """What latents are multiplied by for about unit variance; 0.13025 for SDXL."""
    groups: int = 32
    """Of the group normalisations."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic."""
    suits: ClassVar[tuple[str, ...]] = ("image", "video")
    hop: ClassVar[int] = 1
    lead: ClassVar[int] = 0

    def __post_init__(self):
        _check_sizes(self)

    def latent_shape(self, media: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latents of pictures [..., H, W, 3]."""
        return _in_cells(self, media)

    def load(self, path: Path) -> Autoencoder:
        """Reads the weights."""
        from selfflow.autoencoders.pretrained import KLAutoencoder  # brings JAX

        return KLAutoencoder(self, path)


@dataclass(frozen=True)
class Flux2VAE:
    """The autoencoder of FLUX.2: diffusers' AutoencoderKLFlux2, in the space in which noise is added, 2 x 2 positions
    packed to one and normalised by the statistics of its batch normalisation."""

    kind: Literal["flux2_vae"] = "flux2_vae"
    path: str = ""
    """A .safetensors file in diffusers' layout, or the folder that holds diffusion_pytorch_model.safetensors."""
    channels: int = 128
    """Latent channels, after packing."""
    stride: int = 16
    """Pixels along the side of a latent position, after packing."""
    groups: int = 32
    """Of the group normalisations."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic."""
    suits: ClassVar[tuple[str, ...]] = ("image", "video")
    hop: ClassVar[int] = 1
    lead: ClassVar[int] = 0

    def __post_init__(self):
        _check_sizes(self)

    def latent_shape(self, media: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latents of pictures [..., H, W, 3]."""
        return _in_cells(self, media)

    def load(self, path: Path) -> Autoencoder:
        """Reads the weights."""
        from selfflow.autoencoders.pretrained import KLAutoencoder

        return KLAutoencoder(self, path)


@dataclass(frozen=True)
class Convolutional:
    """A causal convolutional KL autoencoder that was trained here (`selfflow train experiments/autoencoder_video.py`),
    of pictures and films, or of sound."""

    kind: Literal["convolutional"] = "convolutional"
    path: str = ""
    """The autoencoder.safetensors of its run; by name and file, as --autoencoder.video convolutional=PATH, all other
    settings are read from it."""
    channels: int = 32
    """Latent channels."""
    hop: int = 1
    """Frames or samples of the media in one latent frame."""
    stride: int = 8
    """Pixels along the side of a latent position; 0 for sound."""
    stills: bool = False
    """Whether it is given pictures, each a film of one frame, and no films."""
    sample_rate: int = 0
    """Samples of sound per second; 0 for pictures."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic."""

    def __post_init__(self):
        _check_clock(self)

    @property
    def suits(self) -> tuple[str, ...]:
        """The modality that it is for."""
        return ("image",) if self.stills else ("video",) if self.stride else ("audio",)

    @property
    def lead(self) -> int:
        """How many frames the first latent frame lacks: a film's first frame stands for itself."""
        return self.hop - 1 if self.stride else 0

    def latent_shape(self, media: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latents of pictures [..., H, W, 3], films [..., T, H, W, 3] or sounds [..., samples]."""
        return _causal_shape(self, media)

    def load(self, path: Path) -> Autoencoder:
        """Reads the file."""
        from selfflow.autoencoders.trained import ConvolutionalAutoencoder

        return ConvolutionalAutoencoder(self, path)


@dataclass(frozen=True)
class Diffusers:
    """Any autoencoder of diffusers, run by its own code in torch (extra `diffusers`): pictures, films whose first frame
    stands alone, such as Wan's AutoencoderKLWan, or sound, such as Stable Audio's AutoencoderOobleck."""

    kind: Literal["diffusers"] = "diffusers"
    path: str = ""
    """Its folder, or a name on the Hugging Face hub; only safetensors are read. By name and file, as
    --autoencoder.video diffusers=AutoencoderKLWan:PATH, all other settings are read from it."""
    name: str = ""
    """Its class in diffusers."""
    subfolder: str = ""
    """Where it lies within a pipeline, such as vae."""
    channels: int = 48
    """Latent channels."""
    hop: int = 1
    """Frames or samples of the media in one latent frame."""
    stride: int = 8
    """Pixels along the side of a latent position; 0 for sound."""
    stills: bool = False
    """Whether it is given pictures, and no films."""
    sample_rate: int = 0
    """Samples of sound per second; 0 for pictures."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the arithmetic."""

    def __post_init__(self):
        _check_clock(self)

    @property
    def suits(self) -> tuple[str, ...]:
        """The modality that it is for."""
        return ("image",) if self.stills else ("video",) if self.stride else ("audio",)

    @property
    def lead(self) -> int:
        """How many frames the first latent frame lacks: a film's first frame stands for itself."""
        return self.hop - 1 if self.stride else 0

    def latent_shape(self, media: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latents of pictures [..., H, W, 3], films [..., T, H, W, 3] or sounds [..., samples]."""
        return _causal_shape(self, media)

    def load(self, path: Path) -> Autoencoder:
        """Reads the weights from where they lie; `path` tells their identity.

        Raises:
          UserError: if diffusers or torch is not installed, or there is no such autoencoder.
        """
        from selfflow.autoencoders.adapter import DiffusersAutoencoder

        return DiffusersAutoencoder(self, path)


def _check_clock(config: Convolutional | Diffusers) -> None:
    who = f"the {config.kind} autoencoder"
    for name in ("channels", "hop"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} of {who} is {getattr(config, name)}: give at least 1")
    if config.stride < 0 or (config.stills and not config.stride):
        raise UserError(f"stride of {who} is {config.stride}: give at least 1 for pictures, 0 for sound")
    if config.sample_rate < 0 or (config.stride and config.sample_rate):
        raise UserError(f"sample_rate of {who} is {config.sample_rate}: give that of the sound, 0 for pictures")


def _causal_shape(config: Convolutional | Diffusers, media: tuple[int, ...]) -> tuple[int, ...]:
    who = f"the {config.kind} autoencoder"
    if not config.stride:
        if media[-1] % config.hop:
            raise UserError(
                f"{who} has latent frames of {config.hop} samples, which do not divide clips of {media[-1]}: give them "
                "another length"
            )
        return (*media[:-1], media[-1] // config.hop, config.channels)
    *before, height, width, channels = _in_cells(config, media)
    if not config.stills:
        *before, frames = before
        if (frames + config.lead) % config.hop:
            raise UserError(
                f"{who} has latent frames of {config.hop} frames after the first, which stands for itself: clips of "
                f"{frames} frames do not fit; give them "
                f"{max((frames + config.lead) // config.hop, 1) * config.hop - config.lead}"
            )
        before.append((frames + config.lead) // config.hop)
    return (*before, height, width, channels)


def _check_sizes(config: SDVAE | Flux2VAE) -> None:
    for name in ("channels", "stride", "groups", "scale"):
        if not getattr(config, name, 1) > 0:
            raise UserError(f"{name} of the {config.kind} autoencoder is {getattr(config, name)}: it must be above 0")


def _in_cells(config: SDVAE | Flux2VAE | Convolutional | Diffusers, media: tuple[int, ...]) -> tuple[int, ...]:
    *lead, height, width, _ = media
    if height % config.stride or width % config.stride:
        raise UserError(
            f"the {config.kind} autoencoder has a stride of {config.stride} pixels, which does not divide pictures of "
            f"{height} x {width}: give the data another size"
        )
    return (*lead, height // config.stride, width // config.stride, config.channels)


AnyAutoencoder = PatchPCA | MdctPCA | LogMel | SDVAE | Flux2VAE | Convolutional | Diffusers


def brought(config: AnyAutoencoder) -> bool:
    """Whether the weights are a user's, and not fitted to the data."""
    return hasattr(config, "path")


def described(config: AnyAutoencoder) -> dict[str, Any]:
    """Settings as JSON data, without where weights lie."""
    return {name: value for name, value in to_json(config).items() if name != "path"}
