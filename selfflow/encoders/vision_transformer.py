"""Patch features of vision transformers, run by transformers and torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from selfflow.encoders.config import VisionFolder
from selfflow.encoders.media import check_media
from selfflow.encoders.text.folder import fingerprint
from selfflow.errors import UserError

# Models whose last hidden states are special tokens, then patches in rows, and whether they take images of any size.
_ANY_SIZE = {"dinov2": True, "dinov2_with_registers": True, "vit": False}
_BATCH = 32


class VisionTransformerEncoder:
    """Patch features of an image or of each frame of a video, as targets of alignment; see `config.FrozenEncoder`.

    Images are resized to a square (bicubic, antialiased) and normalised by the folder's preprocessor_config.json.
    """

    ids = None

    def __init__(self, config: VisionFolder):
        folder, self.path = Path(config.path).expanduser(), config.path
        settings, preprocessor = _read_json(folder / "config.json"), _read_json(folder / "preprocessor_config.json")
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise UserError(
                f"{folder} has no model.safetensors: pickled weights are not read; convert them with save_pretrained "
                "of a current transformers"
            )
        kind = settings.get("model_type")
        if kind not in _ANY_SIZE:
            raise UserError(f"{folder} holds a model of type {kind!r}: give one of {', '.join(_ANY_SIZE)}")
        try:
            import torch
            import transformers
        except ImportError as error:
            raise UserError(
                f"{folder} is read by transformers and torch, and {error.name} is missing: "
                "pip install 'selfflow[vision]'"
            ) from None
        options = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
        try:
            model, report = transformers.AutoModel.from_pretrained(folder, output_loading_info=True, **options)
            mean, std = (torch.tensor(preprocessor[f"image_{name}"]).reshape(1, 3, 1, 1) for name in ("mean", "std"))
        except Exception as error:  # a dozen classes of errors, from missing fields to damaged files
            raise UserError(f"transformers cannot read {folder}: {' '.join(str(error).split())[:200]}") from None
        # transformers would initialise missing weights at random. A pooler is not used.
        missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
        if missing:
            raise UserError(f"the weights in {folder} lack {missing[0]}, {len(missing)} in all: copy the folder again")
        self.side, self.patch = config.side, int(model.config.patch_size)
        if self.side % self.patch:
            raise UserError(f"side {self.side} of the encoder {folder} is not a multiple of its patch, {self.patch}")
        if not _ANY_SIZE[kind] and self.side != model.config.image_size:
            raise UserError(f"side {self.side} of the encoder {folder}: its images have {model.config.image_size}")
        self._torch, self._device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        self._model, self._mean, self._std = model.float().eval().to(self._device), mean, std
        files = (weights, folder / "config.json", folder / "preprocessor_config.json")
        version = f"transformers {transformers.__version__.split('.')[0]}"
        self.identity = f"{kind}-{fingerprint(files, version, self.side)}"

    def __call__(self, media: np.ndarray, id: str = "") -> Float[np.ndarray, "... h w E"]:
        """Features [h, w, E] of an image [H, W, 3], [T, h, w, E] of a video [T, H, W, 3], with h = w = side / patch."""
        images = media[None] if media.ndim == 3 else media
        check_media(images, self.path, "image")
        maps = np.concatenate([self._maps(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)])
        return maps[0] if media.ndim == 3 else maps

    def _maps(self, images: np.ndarray) -> Float[np.ndarray, "B h w E"]:
        with self._torch.inference_mode():
            x = self._torch.as_tensor(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
            size = (self.side, self.side)
            x = self._torch.nn.functional.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)
            x = ((x - self._mean) / self._std).to(self._device)
            hidden = self._model(pixel_values=x).last_hidden_state.float().cpu().numpy()
        rows = self.side // self.patch
        return hidden[:, -(rows**2) :].reshape(len(images), rows, rows, -1)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
        return value
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}): give the folder of a vision transformer") from None
