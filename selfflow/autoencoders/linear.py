"""Linear autoencoders, fitted in seconds: PCA of image patches or MDCT frames, and normalised log-mel bands."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import scipy.fft
from jaxtyping import Float
from safetensors.numpy import save

from selfflow.autoencoders.log_mel import LogMel
from selfflow.autoencoders.media import block_shape, check_block, check_latents, check_media, whole_blocks
from selfflow.errors import UserError
from selfflow.media import MEDIA, from_unit_range, to_unit_range


@dataclass(frozen=True)
class PatchPCA:
    """PCA of square patches of an image, or of each frame of a video."""

    kind: Literal["patch_pca"] = "patch_pca"
    patch: int = 4
    """Side of a patch in pixels."""
    channels: int = 16
    """Latent channels, at most 3 patch^2; with all of them the autoencoder is lossless."""
    modalities: ClassVar[tuple[str, ...]] = ("image", "video")
    temporal_stride: ClassVar[int] = 1
    causal_padding: ClassVar[int] = 0
    companded: ClassVar[bool] = False
    rotated: ClassVar[bool] = True

    def __post_init__(self):
        components = 3 * self.patch**2
        if not 1 <= self.channels <= components:
            raise UserError(
                f"autoencoder channels {self.channels}: a patch of {self.patch} x {self.patch} pixels has {components} "
                f"components; give 1 to {components}"
            )

    def latent_shape(self, media: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latents of media [..., H, W, 3].

        Raises:
          UserError: if the patch does not divide height and width.
        """
        *lead, height, width, _ = media
        if height % self.patch or width % self.patch:
            raise UserError(
                f"autoencoder patch {self.patch} does not divide images of {height} x {width}: give another patch"
            )
        return (*lead, height // self.patch, width // self.patch, self.channels)

    def frames(self, media: np.ndarray) -> Float[np.ndarray, "... rows columns D"]:
        """uint8 [..., H, W, 3] -> float32 patches [..., H / p, W / p, 3 p^2] in [-1, 1].

        Raises:
          UserError: if the patch does not divide height and width.
        """
        self.latent_shape(media.shape)
        *lead, height, width, _ = media.shape
        p = self.patch
        x = to_unit_range(media.reshape(*lead, height // p, p, width // p, p, 3))
        return np.moveaxis(x, -4, -3).reshape(*lead, height // p, width // p, 3 * p * p)

    def media(self, frames: np.ndarray) -> np.ndarray:
        """Returns the inverse of `frames`, rounded to uint8."""
        *lead, rows, columns, _ = frames.shape
        p = self.patch
        x = np.moveaxis(frames.reshape(*lead, rows, columns, p, p, 3), -3, -4)
        return from_unit_range(x.reshape(*lead, rows * p, columns * p, 3), MEDIA["image"])


@dataclass(frozen=True)
class MdctPCA:
    """PCA of the coefficients of an orthonormal MDCT, companded by asinh, since audio is heavy-tailed."""

    kind: Literal["mdct_pca"] = "mdct_pca"
    temporal_stride: int = 320
    """Samples between latent frames, an even number; 320 at 8 kHz are 40 ms."""
    channels: int = 128
    """Latent channels, at most `temporal_stride`."""
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    causal_padding: ClassVar[int] = 0
    companded: ClassVar[bool] = True
    rotated: ClassVar[bool] = True

    def __post_init__(self):
        check_block(self)
        stride = self.temporal_stride
        if not 1 <= self.channels <= stride:
            raise UserError(
                f"autoencoder channels {self.channels}: an MDCT of temporal_stride {stride} has 1 to {stride}"
            )

    def latent_shape(self, media: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latents of media [..., samples].

        Raises:
          UserError: if the temporal stride does not divide the samples.
        """
        return block_shape(self, media, self.channels)

    def frames(self, media: np.ndarray) -> Float[np.ndarray, "... T D"]:
        """int16 [..., samples] -> MDCT coefficients [..., samples / stride, stride] of the signal in [-1, 1].

        Samples after the last whole stride are left out.
        """
        media = whole_blocks(self, media)
        blocks = to_unit_range(media.reshape(*media.shape[:-1], -1, self.temporal_stride))
        return scipy.fft.dst(self._lap(blocks, -1), type=4, norm="ortho", axis=-1)

    def media(self, frames: np.ndarray) -> np.ndarray:
        """Returns the inverse of `frames`, rounded to int16."""
        blocks = self._lap(scipy.fft.dst(frames, type=4, norm="ortho", axis=-1), 1)
        return from_unit_range(blocks.reshape(*blocks.shape[:-2], -1), MEDIA["audio"])

    def _lap(self, blocks: np.ndarray, sign: int) -> np.ndarray:
        # An MDCT with a sine window is a rotation of the samples on both sides of each block boundary, then a DST-IV
        # of each block. Nothing is rotated at the two ends, so that the whole is orthonormal, has as many coefficients
        # as samples, and frame i corresponds to block i.
        half = self.temporal_stride // 2
        angle = np.pi / (2 * self.temporal_stride) * (half + np.arange(half) + 0.5)
        inside, outside = np.sin(angle).astype(blocks.dtype), sign * np.cos(angle).astype(blocks.dtype)
        out = blocks.copy()
        after, before = blocks[..., 1:, :half], blocks[..., :-1, : half - 1 : -1]
        out[..., 1:, :half] = inside * after + outside * before
        out[..., :-1, : half - 1 : -1] = inside * before - outside * after
        return out


LinearConfig = PatchPCA | MdctPCA | LogMel
"""Each has `frames` and its inverse `media`, and two constants:

  companded: whether latents pass through asinh before they are normalised.
  rotated: whether latents are principal components of the frames, or the frames themselves.
"""


class LinearAutoencoder:
    """Raw media <-> latents of unit variance per channel.

    Attributes:
      config: the transform.
      batch_size: as of `config.Autoencoder`.
      arrays: `mean` [D], `basis` [D, C], `scale` [C] (unit variance before companding), `shift` [C] and `deviation` [C]
        (normalisation after it).
    """

    batch_size = 1

    def __init__(self, config: LinearConfig, arrays: dict[str, np.ndarray]):
        self.config, self.arrays = config, arrays

    @classmethod
    def fit(cls, config: LinearConfig, media: Iterable[np.ndarray]) -> "LinearAutoencoder":
        """Fits mean, principal axes and normalisation to media in batches.

        Args:
          config: the transform.
          media: batches [B, ...] of uint8 images or videos, or int16 audio.

        Raises:
          UserError: if there are no media, or none as long as a latent frame.
        """
        media = list(media)

        def rows(batch: np.ndarray) -> Float[np.ndarray, "N D"]:
            # In float64 and batch by batch: the frames of all media at once are several times their size.
            frames = config.frames(batch)
            return frames.reshape(-1, frames.shape[-1]).astype(np.float64)

        count = sum(len(rows(batch)) for batch in media)
        if not count:
            raise UserError(f"the training split has nothing to fit the {config.kind} autoencoder on")
        mean = sum(rows(batch).sum(axis=0) for batch in media) / count
        covariance = 0
        for batch in media:
            x = rows(batch) - mean
            covariance = covariance + x.T @ x
        variance, basis = _principal_axes(config, covariance / count)
        std = np.sqrt(np.maximum(variance, 0))
        arrays = {"mean": mean, "basis": basis, "scale": _nonzero(std)}
        arrays |= {"shift": np.zeros(len(std)), "deviation": np.ones(len(std))}
        fitted = cls(config, {name: np.ascontiguousarray(a, np.float32) for name, a in arrays.items()})
        if config.companded:
            # Companding changes mean and variance: latents are normalised again after it.
            latents = np.concatenate([fitted._latents(rows(batch)) for batch in media])
            fitted.arrays["shift"] = latents.mean(axis=0).astype(np.float32)
            fitted.arrays["deviation"] = _nonzero(latents.std(axis=0)).astype(np.float32)
        return fitted

    def _latents(self, frames: np.ndarray) -> np.ndarray:
        z = (frames - self.arrays["mean"]) @ self.arrays["basis"] / self.arrays["scale"]
        z = np.arcsinh(z) if self.config.companded else z
        return (z - self.arrays["shift"]) / self.arrays["deviation"]

    def encode(self, media: np.ndarray) -> Float[np.ndarray, "... C"]:
        """uint8 [..., H, W, 3] or int16 [..., samples] -> float32 latents [..., C].

        Raises:
          UserError: if a patch does not divide images, or media have another dtype or other axes.
        """
        check_media(media, self.config.modalities[0])
        return self._latents(self.config.frames(media)).astype(np.float32)

    def encode_distribution(self, media: np.ndarray) -> tuple[Float[np.ndarray, "... C"], None]:
        """Returns the latents, and None for their standard deviation: a linear autoencoder is deterministic."""
        return self.encode(media), None

    def decode(self, latents: Float[np.ndarray, "... C"]) -> np.ndarray:
        """Latents -> uint8 images or videos, or int16 audio.

        Raises:
          UserError: if latents have other axes or are empty.
        """
        check_latents(latents, self.config.modalities[0])
        z = np.asarray(latents, np.float32) * self.arrays["deviation"] + self.arrays["shift"]
        # A model may produce values that no recording has: their sinh must not overflow.
        z = np.sinh(np.clip(z, -20, 20)) if self.config.companded else z
        return self.config.media((z * self.arrays["scale"]) @ self.arrays["basis"].T + self.arrays["mean"])

    @property
    def identity(self) -> str:
        """Kind and hash of config and weights: equal identities mean equal latents."""
        digest = hashlib.sha256(repr(self.config).encode())
        for name in sorted(self.arrays):
            digest.update(self.arrays[name].tobytes())
        return f"{self.config.kind}-{digest.hexdigest()[:12]}"

    def save(self, path: Path) -> None:
        """Writes the arrays as safetensors."""
        path.write_bytes(save(self.arrays))


def _principal_axes(
    config: LinearConfig, covariance: Float[np.ndarray, "D D"]
) -> tuple[Float[np.ndarray, "C"], Float[np.ndarray, "D C"]]:
    """Variances and axes of the latent channels, of largest variance first; the identity if they are not rotated."""
    if not config.rotated:
        return np.diag(covariance), np.eye(len(covariance))
    values, vectors = np.linalg.eigh(covariance)
    basis, values = vectors[:, ::-1][:, : config.channels], values[::-1][: config.channels]
    # eigh leaves the sign of an axis open. Fixed, equal data give equal latents.
    return values, basis * np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(basis.shape[1])])


def _nonzero(std: np.ndarray) -> np.ndarray:
    # With fewer samples than channels some channels have no variance: they stay 0 instead of becoming noise.
    return np.where(std > 1e-6 * max(std.max(), 1e-12), std, 1.0)
