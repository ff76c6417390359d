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

# Those whose last hidden states are some special tokens, then the patches in rows; and whether any side will do.
_ANY_SIDE = {"dinov2": True, "dinov2_with_registers": True, "vit": False}
_BATCH = 32


class VisionMaps:
    """uint8 pictures [H, W, 3] -> [side / patch, side / patch, E], films [T, H, W, 3] -> [T, ...]; see `Frozen`.

    Pictures are resized to a square (bicubic, smoothed where they shrink) and normalised as the folder says.
    """

    ids = None

    def __init__(self, settings: VisionFolder):
        folder, self.path = Path(settings.path).expanduser(), settings.path
        config, normal = (self._json(folder / name) for name in ("config.json", "preprocessor_config.json"))
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise UserError(
                f"{folder} has no model.safetensors: pickled weights are not read; convert them with save_pretrained "
                "of a current transformers"
            )
        if (kind := config.get("model_type")) not in _ANY_SIDE:
            raise UserError(f"{folder} holds a model of type {kind!r}: give one of {', '.join(_ANY_SIDE)}")
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
            mean, std = (torch.tensor(normal[f"image_{name}"]).reshape(1, 3, 1, 1) for name in ("mean", "std"))
        except Exception as error:  # a dozen classes, from missing fields to damaged files
            raise UserError(f"transformers cannot read {folder}: {' '.join(str(error).split())[:200]}") from None
        # transformers would draw them at random. A pooler is not used.
        missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
        if missing:
            raise UserError(f"the weights in {folder} lack {missing[0]}, {len(missing)} in all: copy the folder again")
        self.side, self.patch = settings.side, int(model.config.patch_size)
        if self.side % self.patch:
            raise UserError(f"side {self.side} of the encoder {folder} is not a multiple of its patch, {self.patch}")
        if not _ANY_SIDE[kind] and self.side != model.config.image_size:
            raise UserError(f"side {self.side} of the encoder {folder}: it sees pictures of {model.config.image_size}")
        self._torch, self._device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        self._model, self._mean, self._std = model.float().eval().to(self._device), mean, std
        files = (weights, folder / "config.json", folder / "preprocessor_config.json")
        version = f"transformers {transformers.__version__.split('.')[0]}"
        self.identity = f"{kind}-{fingerprint(files, version, self.side)}"

    def __call__(self, media: np.ndarray, id: str = "") -> Float[np.ndarray, "... h w E"]:
        """Features of one picture or film."""
        pictures = media[None] if media.ndim == 3 else media
        check_media(pictures, self.path, "image")
        maps = np.concatenate([self._maps(pictures[i : i + _BATCH]) for i in range(0, len(pictures), _BATCH)])
        return maps[0] if media.ndim == 3 else maps

    def _maps(self, pictures: np.ndarray) -> Float[np.ndarray, "B h w E"]:
        with self._torch.inference_mode():
            x = self._torch.as_tensor(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
            size = (self.side, self.side)
            x = self._torch.nn.functional.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)
            x = ((x - self._mean) / self._std).to(self._device)
            hidden = self._model(pixel_values=x).last_hidden_state.float().cpu().numpy()
        rows = self.side // self.patch
        return hidden[:, -(rows**2) :].reshape(len(pictures), rows, rows, -1)

    @staticmethod
    def _json(path: Path) -> dict[str, Any]:
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(value, dict):
                raise ValueError("no JSON object")
            return value
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path} ({error}): give the folder of a vision transformer") from None
