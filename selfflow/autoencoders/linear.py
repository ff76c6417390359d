"""Learned linear autoencoders, fitted in seconds: PCA over patches of pixels, MDCT frames or log-mels of sound."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import scipy.fft
from safetensors.numpy import save

from selfflow.autoencoders.media import check_latents, check_media
from selfflow.autoencoders.mel import LogMel
from selfflow.errors import UserError
from selfflow.media import MEDIA, from_unit_range, to_unit_range


@dataclass(frozen=True)
class PatchPCA:
    """PCA over square patches of an image or of each frame of a video."""

    kind: Literal["patch_pca"] = "patch_pca"
    patch: int = 4
    """Side of a patch in pixels."""
    channels: int = 16
    """Latent channels kept, at most 3 patch^2; all of them lose nothing."""
    modalities: ClassVar[tuple[str, ...]] = ("image", "video")
    temporal_stride: ClassVar[int] = 1
    causal_padding: ClassVar[int] = 0

    def __post_init__(self):
        if not 1 <= self.channels <= 3 * self.patch**2:
            raise UserError(
                f"autoencoder channels {self.channels}: a patch of {self.patch} x {self.patch} pixels has "
                f"{3 * self.patch**2} components; give 1 to {3 * self.patch**2}"
            )

    def latent_shape(self, media: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latent of media [..., H, W, 3]."""
        *lead, height, width, _ = media
        if height % self.patch or width % self.patch:
            raise UserError(f"autoencoder patch {self.patch} does not divide pictures of {height} x {width}")
        return (*lead, height // self.patch, width // self.patch, self.channels)

    def frames(self, media: np.ndarray) -> np.ndarray:
        """uint8 [..., H, W, 3] -> float32 patches [..., H / p, W / p, 3 p^2] in [-1, 1].

        Raises:
          UserError: if a patch does not divide them.
        """
        self.latent_shape(media.shape)
        *lead, height, width, _ = media.shape
        p = self.patch
        x = to_unit_range(media.reshape(*lead, height // p, p, width // p, p, 3))
        return np.moveaxis(x, -4, -3).reshape(*lead, height // p, width // p, 3 * p * p)

    def media(self, frames: np.ndarray) -> np.ndarray:
        """The inverse of `frames`, rounded to uint8."""
        *lead, rows, columns, _ = frames.shape
        p = self.patch
        x = np.moveaxis(frames.reshape(*lead, rows, columns, p, p, 3), -3, -4)
        return from_unit_range(x.reshape(*lead, rows * p, columns * p, 3), MEDIA["image"])

    @property
    def companded(self) -> bool:
        """Whether latents pass through asinh before they are normalised."""
        return False

    @property
    def rotated(self) -> bool:
        """Whether latents are principal components of the frames, or the frames themselves."""
        return True


@dataclass(frozen=True)
class MdctPCA:
    """PCA over the coefficients of an orthonormal MDCT, companded by asinh: raw audio latents are heavy-tailed."""

    kind: Literal["mdct_pca"] = "mdct_pca"
    temporal_stride: int = 320
    """Samples between latent frames, an even number; 320 at 8 kHz are 40 ms."""
    channels: int = 128
    """Latent channels kept, at most `hop`."""
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    causal_padding: ClassVar[int] = 0

    def __post_init__(self):
        if self.temporal_stride < 2 or self.temporal_stride % 2:
            raise UserError(f"autoencoder hop {self.temporal_stride}: give an even number of samples")
        if not 1 <= self.channels <= self.temporal_stride:
            raise UserError(
                f"autoencoder channels {self.channels}: an MDCT of hop {self.temporal_stride} has 1 to {self.temporal_stride}"
            )

    def latent_shape(self, media: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latent of media [samples]."""
        if media[-1] % self.temporal_stride:
            raise UserError(f"autoencoder hop {self.temporal_stride} does not divide clips of {media[-1]} samples")
        return (*media[:-1], media[-1] // self.temporal_stride, self.channels)

    def frames(self, media: np.ndarray) -> np.ndarray:
        """int16 [..., samples] -> MDCT coefficients [..., samples / hop, hop] of the sound in [-1, 1].

        Samples after the last whole hop are left out.
        """
        media = media[..., : media.shape[-1] // self.temporal_stride * self.temporal_stride]
        blocks = to_unit_range(media.reshape(*media.shape[:-1], -1, self.temporal_stride))
        return scipy.fft.dst(self._lap(blocks, -1), type=4, norm="ortho", axis=-1)

    def media(self, frames: np.ndarray) -> np.ndarray:
        """The inverse of `frames`, rounded to int16."""
        blocks = self._lap(scipy.fft.dst(frames, type=4, norm="ortho", axis=-1), 1)
        return from_unit_range(blocks.reshape(*blocks.shape[:-2], -1), MEDIA["audio"])

    def _lap(self, blocks: np.ndarray, sign: int) -> np.ndarray:
        # An MDCT with a sine window is a rotation of the samples on both sides of each block boundary,
        # then a DST-IV of each block; nothing is rotated at the two ends, so that the whole is
        # orthonormal, has as many coefficients as samples, and frame i stands for block i.
        half = self.temporal_stride // 2
        angle = np.pi / (2 * self.temporal_stride) * (half + np.arange(half) + 0.5)
        inside, outside = np.sin(angle).astype(blocks.dtype), sign * np.cos(angle).astype(blocks.dtype)
        out = blocks.copy()
        after, before = blocks[..., 1:, :half], blocks[..., :-1, : half - 1 : -1]
        out[..., 1:, :half] = inside * after + outside * before
        out[..., :-1, : half - 1 : -1] = inside * before - outside * after
        return out

    @property
    def companded(self) -> bool:
        """Whether latents pass through asinh before they are normalised."""
        return True

    @property
    def rotated(self) -> bool:
        """Whether latents are principal components of the frames, or the frames themselves."""
        return True


Linear = PatchPCA | MdctPCA | LogMel


class LinearAutoencoder:
    """Media <-> latents of unit variance per channel.

    Attributes:
      config: which transform.
      together: records in one call; see `config.Autoencoder`.
      arrays: `mean` [D], `basis` [D, C], `scale` [C] (unit variance before companding),
        `shift` [C] and `deviation` [C] (normalisation after it).
    """

    batch_size = 1

    def __init__(self, config: Linear, arrays: dict[str, np.ndarray]):
        self.config, self.arrays = config, arrays

    @classmethod
    def fit(cls, config: Linear, media: Iterable[np.ndarray]) -> "LinearAutoencoder":
        """Fits mean, principal axes and normalisation to media, given in batches.

        Args:
          config: which transform.
          media: batches [B, ...] of uint8 pictures or int16 sound.

        Raises:
          UserError: if there is no media, or none as long as a latent frame.
        """
        media = list(media)

        # Batch by batch, in float64: the frames of all media at once are several times their size.
        def flat(batch: np.ndarray) -> np.ndarray:
            frames = config.frames(batch)
            return frames.reshape(-1, frames.shape[-1]).astype(np.float64)

        if not (count := sum(len(flat(batch)) for batch in media)):
            raise UserError(f"the training split has nothing to fit the {config.kind} autoencoder on")
        mean = sum(flat(batch).sum(axis=0) for batch in media) / count
        covariance = sum((x := flat(batch) - mean).T @ x for batch in media) / count
        if config.rotated:
            values, vectors = np.linalg.eigh(covariance)
            basis, values = vectors[:, ::-1][:, : config.channels], values[::-1][: config.channels]
            # eigh leaves the sign open: fix it, so that equal data give equal latents.
            basis = basis * np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(basis.shape[1])])
        else:
            values, basis = np.diag(covariance), np.eye(len(covariance))
        deviation = np.sqrt(np.maximum(values, 0))
        arrays = {"mean": mean, "basis": basis, "scale": _nonzero(deviation)}
        arrays |= {"shift": np.zeros(len(deviation)), "deviation": np.ones(len(deviation))}
        fitted = cls(config, {name: np.ascontiguousarray(a, np.float32) for name, a in arrays.items()})
        if config.companded:
            latents = np.concatenate([fitted._compress(flat(batch)) for batch in media])
            fitted.arrays["shift"] = latents.mean(axis=0).astype(np.float32)
            fitted.arrays["deviation"] = _nonzero(latents.std(axis=0)).astype(np.float32)
        return fitted

    def _compress(self, frames: np.ndarray) -> np.ndarray:
        z = (frames - self.arrays["mean"]) @ self.arrays["basis"] / self.arrays["scale"]
        z = np.arcsinh(z) if self.config.companded else z
        return (z - self.arrays["shift"]) / self.arrays["deviation"]

    def encode(self, media: np.ndarray) -> np.ndarray:
        """uint8 [..., H, W, 3] or int16 [..., samples] -> float32 latents [..., C].

        Raises:
          UserError: if a patch does not divide pictures, or media are other than data sets have them.
        """
        check_media(media, self.config.modalities[0])
        return self._compress(self.config.frames(media)).astype(np.float32)

    def encode_distribution(self, media: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Mean and standard deviation of the latents of media; a linear autoencoder is sure, which None says."""
        return self.encode(media), None

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents [..., C] -> uint8 pictures or int16 sound.

        Raises:
          UserError: if there are none.
        """
        check_latents(latents, self.config.modalities[0])
        z = np.asarray(latents, np.float32) * self.arrays["deviation"] + self.arrays["shift"]
        # A model may ask for what no recording has: sinh of it must not overflow.
        z = np.sinh(np.clip(z, -20, 20)) if self.config.companded else z
        return self.config.media((z * self.arrays["scale"]) @ self.arrays["basis"].T + self.arrays["mean"])

    @property
    def identity(self) -> str:
        """Kind and hash of the weights: equal identities mean equal latents."""
        digest = hashlib.sha256(repr(self.config).encode())
        for name in sorted(self.arrays):
            digest.update(self.arrays[name].tobytes())
        return f"{self.config.kind}-{digest.hexdigest()[:12]}"

    def save(self, path: Path) -> None:
        """Writes the arrays as safetensors."""
        path.write_bytes(save(self.arrays))


def _nonzero(deviation: np.ndarray) -> np.ndarray:
    # Fewer samples than channels leave channels without variance: they stay 0 instead of becoming noise.
    return np.where(deviation > 1e-6 * max(deviation.max(), 1e-12), deviation, 1.0)
