"""Settings of autoencoders whose latent frames may span several frames of a film, or samples of sound."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from selfflow.errors import UserError, check_at_least

if TYPE_CHECKING:
    pass

AUTOENCODER_FILE = "autoencoder.safetensors"
"""What a run that trained a convolutional autoencoder leaves in its folder."""


@dataclass(frozen=True)
class _Causal:
    """What they have in common."""

    channels: int = 32
    """Latent channels."""
    temporal_stride: int = 1
    """Frames or samples of the media in one latent frame."""
    stride: int = 8
    """Pixels along the side of a latent position; 0 for sound."""
    images_only: bool = False
    """Whether it is given pictures, each a film of one frame, and no films."""

    def __post_init__(self):
        who = f"the {self.kind} autoencoder"
        check_at_least(self, f"{self.kind} autoencoder: ", channels=1, temporal_stride=1)
        if self.stride < 0 or (self.images_only and not self.stride):
            raise UserError(f"stride of {who} is {self.stride}: give at least 1 for pictures, 0 for sound")
        rate = getattr(self, "sample_rate", 0)
        if rate < 0 or (self.stride and rate):
            raise UserError(f"sample_rate of {who} is {rate}: give that of the sound, 0 for pictures")

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modality that it is for."""
        return ("image",) if self.images_only else ("video",) if self.stride else ("audio",)

    @property
    def causal_padding(self) -> int:
        """How many frames the first latent frame lacks: a film's first frame stands for itself."""
        return self.temporal_stride - 1 if self.stride else 0

    def latent_shape(self, media: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latents of pictures [..., H, W, 3], films [..., T, H, W, 3] or sounds [..., samples]."""
        who = f"the {self.kind} autoencoder"
        if not self.stride:
            if media[-1] % self.temporal_stride:
                raise UserError(
                    f"{who} has latent frames of {self.temporal_stride} samples, which do not divide clips of {media[-1]}: give "
                    "them another length"
                )
            return (*media[:-1], media[-1] // self.temporal_stride, self.channels)
        *before, height, width, channels = patch_grid_shape(self, media)
        if not self.images_only:
            *before, frames = before
            if (frames + self.causal_padding) % self.temporal_stride:
                raise UserError(
                    f"{who} has latent frames of {self.temporal_stride} frames{', the first of 1' if self.causal_padding else ''}: clips of "
                    f"{frames} frames do not fit; give them "
                    f"{max((frames + self.causal_padding) // self.temporal_stride, 1) * self.temporal_stride - self.causal_padding}"
                )
            before.append((frames + self.causal_padding) // self.temporal_stride)
        return (*before, height, width, channels)


@dataclass(frozen=True)
class Convolutional(_Causal):
    """A causal convolutional KL autoencoder that was trained here (`selfflow train experiments/autoencoder_video.py`),
    of pictures and films, or of sound."""

    kind: Literal["convolutional"] = "convolutional"
    path: str = ""
    """The autoencoder.safetensors of its run; by name and file, or folder of the run, as
    --autoencoder.video convolutional=PATH, all other settings are read from it."""
    sample_rate: int = 0
    """Samples of sound per second; 0 for pictures."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic."""


@dataclass(frozen=True)
class Diffusers(_Causal):
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
    sample_rate: int = 0
    """Samples of sound per second; 0 for pictures."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the arithmetic."""


@dataclass(frozen=True)
class Precomputed(_Causal):
    """An autoencoder of which only the latents are there (`selfflow data build latents`): it neither encodes nor
    decodes."""

    kind: Literal["precomputed"] = "precomputed"
    name: str = ""
    """Which, as latents.json names it; by name and folder, as --autoencoder.image precomputed=FOLDER, all settings are read
    from there."""
    first_frame_alone: bool = False
    """Whether the first latent frame of a film holds its first frame alone."""

    @property
    def causal_padding(self) -> int:
        """How many frames the first latent frame lacks."""
        return (self.temporal_stride - 1) * self.first_frame_alone

    @property
    def identity(self) -> str:
        """Its name."""
        return f"precomputed: {self.name}"


def patch_grid_shape(config: Any, media: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of latents of pictures [..., H, W, 3], by `stride` and `channels` of an autoencoder."""
    *lead, height, width, _ = media
    if height % config.stride or width % config.stride:
        raise UserError(
            f"the {config.kind} autoencoder has a stride of {config.stride} pixels, which does not divide pictures of "
            f"{height} x {width}: give the data another size"
        )
    return (*lead, height // config.stride, width // config.stride, config.channels)
