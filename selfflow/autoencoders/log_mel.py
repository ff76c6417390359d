"""Log-mel spectrograms as latents: loudness by pitch and time, without the phase."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float

from selfflow.autoencoders.media import block_shape, check_block, whole_blocks
from selfflow.errors import check_at_least
from selfflow.media import MEDIA, from_unit_range, to_unit_range

_FLOOR = 1e-4  # power below which there is silence, of a signal in [-1, 1]


@dataclass(frozen=True)
class LogMel:
    """The bands of a log-mel spectrogram, inverted by Griffin-Lim (librosa).

    A video predicts the time and the loudness of a sound, but hardly its phase. Given the video, coefficients that
    carry the phase, such as those of an MDCT, have a mean near 0, which a velocity model then predicts.
    """

    kind: Literal["log_mel"] = "log_mel"
    temporal_stride: int = 320
    """Samples between latent frames, an even number; windows are twice as long."""
    bands: int = 40
    """Mel bands, each a latent channel."""
    sample_rate: int = 8000
    """Audio samples per second, as the data has them: mel bands are defined in Hz."""
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    causal_padding: ClassVar[int] = 0
    companded: ClassVar[bool] = False
    # Whitening principal components would weight nearly constant ones as much as loudness.
    rotated: ClassVar[bool] = False

    def __post_init__(self):
        check_block(self)
        check_at_least(self, "log_mel autoencoder: ", bands=1)

    def latent_shape(self, media: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latents of media [..., samples].

        Raises:
          UserError: if the temporal stride does not divide the samples.
        """
        return block_shape(self, media, self.bands)

    def frames(self, media: np.ndarray) -> Float[np.ndarray, "... T bands"]:
        """int16 [..., samples] -> float32 log powers [..., samples / stride, bands]; frame i is centred on block i.

        Samples after the last whole stride are left out.
        """
        import librosa  # seconds to import

        media = whole_blocks(self, media)
        if not media.size:
            return np.zeros((*media.shape[:-1], 0, self.bands), np.float32)
        # Half a window of silence at both ends centres the frames on their blocks.
        sides = [(0, 0)] * (media.ndim - 1) + [(self.temporal_stride // 2, self.temporal_stride // 2)]
        signal = np.pad(to_unit_range(media), sides)
        power = librosa.feature.melspectrogram(y=signal, sr=self.sample_rate, n_mels=self.bands, **self._windows)
        return np.moveaxis(np.log(power + _FLOOR), -1, -2)

    def media(self, frames: Float[np.ndarray, "... T bands"]) -> np.ndarray:
        """int16 audio of log powers, with the phase of 32 iterations of Griffin-Lim."""
        import librosa

        # A model may produce powers that no recording has: their exp must not overflow.
        power = np.maximum(np.exp(np.minimum(np.moveaxis(frames, -1, -2), 20)) - _FLOOR, 0)
        filters = librosa.filters.mel(sr=self.sample_rate, n_fft=2 * self.temporal_stride, n_mels=self.bands)
        # Least squares clipped at 0 is much faster than constrained least squares, and Griffin-Lim smooths the
        # difference.
        magnitude = np.sqrt(np.maximum(np.linalg.pinv(filters) @ power, 0))
        samples = frames.shape[-2] * self.temporal_stride
        signal = librosa.griffinlim(magnitude, random_state=0, length=samples + self.temporal_stride, **self._windows)
        signal = signal[..., self.temporal_stride // 2 : self.temporal_stride // 2 + samples]
        return from_unit_range(np.nan_to_num(signal), MEDIA["audio"])

    @property
    def _windows(self) -> dict[str, int | bool]:
        return {"n_fft": 2 * self.temporal_stride, "hop_length": self.temporal_stride, "center": False}
