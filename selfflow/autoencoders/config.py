"""Which autoencoder makes the latents of a modality; cheap to import.

Configs are frozen dataclasses with a `kind` that share the protocol `Config`; `load_autoencoder` reads the weights
of one and returns an `Autoencoder`. Some are fitted to the data of an experiment, once (`fit`); the others have a `path` to
pretrained weights. The path is not part of an autoencoder's identity, which is a hash of its weights.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from selfflow.autoencoders.linear import MdctPCA, PatchPCA
from selfflow.autoencoders.mel import LogMel
from selfflow.autoencoders.temporal_config import Convolutional, Diffusers, Precomputed, patch_grid_shape
from selfflow.errors import check_above_zero
from selfflow.serialization import to_json


class Autoencoder(Protocol):
    """Media <-> latents of about unit variance per channel.

    Pictures are uint8 [..., H, W, 3], films [..., T, H, W, 3], sounds int16 [..., samples].

    Attributes:
      config: its settings.
      identity: kind, and hash of weights and settings: equal identities mean equal latents.
      batch_size: how many records are best encoded in one call.
    """

    config: "Config"
    identity: str
    batch_size: int

    def encode(self, media: np.ndarray) -> np.ndarray:
        """float32 latents [..., C]; the mean, where they are drawn from a distribution."""
        ...

    def encode_distribution(self, media: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Mean and standard deviation of the latents; None for that of an autoencoder that is sure."""
        ...

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Media of latents [..., C]."""
        ...


class Config(Protocol):
    """What settings of an autoencoder tell without its weights.

    Attributes:
      kind: its name.
      modalities: those that it is for.
      hop: frames or samples of the media in one latent frame; 1 where each is encoded by itself.
      lead: how many of those the first latent frame lacks: hop - 1 where a film's first frame stands alone.
    """

    kind: str
    modalities: ClassVar[tuple[str, ...]]
    temporal_stride: int
    causal_padding: int

    def latent_shape(self, media: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latents of media of a shape.

        Raises:
          UserError: if its strides do not divide it.
        """
        ...


class _KL:
    """What SD-VAE and FLUX.2's have in common: each picture, or frame of a film, is encoded by itself."""

    modalities: ClassVar[tuple[str, ...]] = ("image", "video")
    temporal_stride: ClassVar[int] = 1
    causal_padding: ClassVar[int] = 0

    def __post_init__(self):
        fields = [name for name in ("channels", "stride", "groups", "scale") if hasattr(self, name)]
        check_above_zero(self, f"{self.kind} autoencoder: ", *fields)

    def latent_shape(self, media: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latents of pictures [..., H, W, 3]."""
        return patch_grid_shape(self, media)


@dataclass(frozen=True)
class SDVAE(_KL):
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
    shift: float = 0.0
    """What is subtracted from them before; 0.1159 for FLUX.1."""
    groups: int = 32
    """Of the group normalisations."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic."""


@dataclass(frozen=True)
class Flux2VAE(_KL):
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


AnyAutoencoder = PatchPCA | MdctPCA | LogMel | SDVAE | Flux2VAE | Convolutional | Diffusers | Precomputed


def uses_pretrained(config: AnyAutoencoder) -> bool:
    """Whether the weights are a user's, and not fitted to the data."""
    return hasattr(config, "path")


def can_decode(config: AnyAutoencoder | None) -> bool:
    """Whether there is more of it than its latents."""
    return getattr(config, "kind", None) != "precomputed"


def config_without_path(config: AnyAutoencoder) -> dict[str, Any]:
    """Settings as JSON data, without where weights lie."""
    return {name: value for name, value in to_json(config).items() if name != "path"}
