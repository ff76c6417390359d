"""Log-mel spectrograms as latents: loudness by pitch and time, without the phase that nobody sees coming."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from selfflow.errors import UserError
from selfflow.media import MEDIA, from_unit_range, to_unit_range

if TYPE_CHECKING:
    pass

_FLOOR = 1e-4  # power below which there is silence; sound is in [-1, 1]


@dataclass(frozen=True)
class LogMel:
    """The bands of a log-mel spectrogram; sound is made of it by Griffin-Lim (librosa).

    A film tells when and how loud something sounds, and hardly ever with which phase: of coefficients that carry the
    phase, such as those of an MDCT, it tells variances alone, and a velocity is a mean.
    """

    kind: Literal["log_mel"] = "log_mel"
    temporal_stride: int = 320
    """Samples between latent frames, an even number; windows are twice as long."""
    bands: int = 40
    """Mel bands, each a latent channel."""
    sample_rate: int = 8000
    """Samples of sound per second, as the data has them: mel bands are a matter of Hz."""
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    causal_padding: ClassVar[int] = 0

    def __post_init__(self):
        if self.temporal_stride < 2 or self.temporal_stride % 2:
            raise UserError(f"autoencoder hop {self.temporal_stride}: give an even number of samples")
        if self.bands < 1:
            raise UserError(f"autoencoder bands {self.bands}: give at least 1")

    def latent_shape(self, media: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latent of media [samples]."""
        if media[-1] % self.temporal_stride:
            raise UserError(f"autoencoder hop {self.temporal_stride} does not divide clips of {media[-1]} samples")
        return (*media[:-1], media[-1] // self.temporal_stride, self.bands)

    def frames(self, media: np.ndarray) -> np.ndarray:
        """int16 [..., samples] -> float32 log powers [..., samples / hop, bands]; frame i is centred on block i.

        Samples after the last whole hop are left out.
        """
        import librosa  # seconds to import

        media = media[..., : media.shape[-1] // self.temporal_stride * self.temporal_stride]
        if not media.size:
            return np.zeros((*media.shape[:-1], 0, self.bands), np.float32)
        sides = [(0, 0)] * (media.ndim - 1) + [(self.temporal_stride // 2, self.temporal_stride // 2)]
        sound = np.pad(to_unit_range(media), sides)
        power = librosa.feature.melspectrogram(y=sound, sr=self.sample_rate, n_mels=self.bands, **self._windows)
        return np.moveaxis(np.log(power + _FLOOR), -1, -2)

    def media(self, frames: np.ndarray) -> np.ndarray:
        """int16 sound of log powers; its phase is what 32 rounds of Griffin-Lim find."""
        import librosa

        # Louder than any recording a model may ask for; exp of it must not overflow.
        power = np.maximum(np.exp(np.minimum(np.moveaxis(frames, -1, -2), 20)) - _FLOOR, 0)
        filters = librosa.filters.mel(sr=self.sample_rate, n_fft=2 * self.temporal_stride, n_mels=self.bands)
        # Least squares, cut off at 0: much faster than with the constraint, and Griffin-Lim smooths what differs.
        magnitude = np.sqrt(np.maximum(np.linalg.pinv(filters) @ power, 0))
        samples = frames.shape[-2] * self.temporal_stride
        sound = librosa.griffinlim(magnitude, random_state=0, length=samples + self.temporal_stride, **self._windows)
        sound = sound[..., self.temporal_stride // 2 : self.temporal_stride // 2 + samples]
        return from_unit_range(np.nan_to_num(sound), MEDIA["audio"])

    @property
    def _windows(self) -> dict[str, int | bool]:
        return {"n_fft": 2 * self.temporal_stride, "hop_length": self.temporal_stride, "center": False}

    @property
    def companded(self) -> bool:
        """Whether latents pass through asinh before they are normalised."""
        return False

    @property
    def rotated(self) -> bool:
        """Whether latents are principal components of the frames, or the frames themselves.

        Whitened, components that hardly vary would count as much as when something sounds, and how loud.
        """
        return False
