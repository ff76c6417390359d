"""CLAP (arXiv 2211.06687) from a Hugging Face folder, run by transformers and torch."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from selfflow.encoders.audio import resample
from selfflow.errors import UserError
from selfflow.serialization import digest
from selfflow.weights.read import sha256_of

_NEEDED = ("config.json", "preprocessor_config.json", "model.safetensors")
_BATCH = 8


class Clap:
    """Audio -> CLAP's normalised embedding, its mean over windows of the network's own length, mostly 10 s.

    The network's preprocessor pads the last window. It would crop longer audio at random; with windows, features
    depend on the audio alone.

    Args:
      folder: folder with config.json, preprocessor_config.json and model.safetensors; no code in it is executed.

    Raises:
      UserError: if a package or a file is missing, or transformers cannot read the folder.
    """

    name = "CLAP"
    medium = "audio"
    distance = "FAD-CLAP"

    def __init__(self, folder: Path):
        try:
            import torch
            import transformers
        except ImportError as error:
            raise UserError(
                f"--features clap needs transformers and torch, and {error.name} is missing: "
                "pip install 'selfflow[clap]'"
            ) from None
        for name in _NEEDED:
            if not (folder / name).is_file():
                raise UserError(
                    f"--features clap: {folder / name} is missing; give a folder with {', '.join(_NEEDED)}, as "
                    "save_pretrained of a current transformers writes them"
                )
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            self.prepare = transformers.ClapFeatureExtractor.from_pretrained(folder, **options)
            model, report = transformers.ClapModel.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, **options
            )
        except Exception as error:  # a dozen classes of errors, from damaged files to unknown settings
            raise UserError(f"--features clap: transformers cannot read {folder}: {_line(error)}") from None
        # transformers would initialise missing weights at random.
        missing = sorted(name for name in report["missing_keys"] if "audio" in name)
        if missing:
            raise UserError(f"--features clap: the weights in {folder} lack {missing[0]}; copy the whole folder")
        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = model.float().eval().to(self.device)
        self.width = model.config.projection_dim
        settings = "".join(sha256_of(folder / name) for name in _NEEDED[:2])
        self.identity = f"{self.name}-{sha256_of(folder / _NEEDED[2])[:12]}-{digest(settings, 8)}"

    def __call__(self, media: np.ndarray, rate: float = 0) -> Float[np.ndarray, "B D"]:
        """Features of int16 audio [B, samples] at `rate` samples per second."""
        audio = resample(media, rate, self.prepare.sampling_rate, self.name)
        length = int(self.prepare.nb_max_samples)
        windows = [audio[:, start : start + length] for start in range(0, audio.shape[1], length)]
        return np.mean([self._embed(window) for window in windows], axis=0)

    def _embed(self, window_BS: np.ndarray) -> np.ndarray:
        embeddings = []
        for start in range(0, len(window_BS), _BATCH):
            rows = list(window_BS[start : start + _BATCH])
            inputs = self.prepare(rows, sampling_rate=self.prepare.sampling_rate, return_tensors="pt").to(self.device)
            with self.torch.inference_mode():
                features = self.model.get_audio_features(**inputs)
            # Newer versions return the embedding together with the hidden states.
            features = getattr(features, "pooler_output", features)
            embeddings.append(features.float().cpu().numpy())
        return np.concatenate(embeddings)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
