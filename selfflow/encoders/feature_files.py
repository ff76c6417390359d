"""Precomputed features, by the ids of their samples."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from selfflow.encoders.config import FeatureFiles
from selfflow.errors import UserError
from selfflow.weights.read import sha256_of

_OPEN_FILES = 64
_FLOATS = ("F16", "BF16", "F32", "F64")


class FeatureFileReader:
    """Random access to the features of `FeatureFiles`; see `config.FrozenEncoder`.

    Attributes:
      ids: the file that holds the features of each sample.
    """

    def __init__(self, config: FeatureFiles):
        self.path = Path(config.path).expanduser()
        files = [self.path]
        if self.path.is_dir():
            files = sorted(path for path in self.path.iterdir() if path.suffix.lower() == ".safetensors")
        if not files or not files[0].is_file():
            raise UserError(
                f"{self.path} is neither a .safetensors file nor a folder of them: give the path of your features"
            )
        self.ids: dict[str, Path] = {}
        digest = hashlib.sha256()
        for file in files:
            for name in _opened(file).keys():
                if name in self.ids:
                    raise UserError(f"{self.path}: {name!r} is in {self.ids[name].name} and in {file.name}: keep one")
                self.ids[name] = file
            digest.update(f"{file.name if self.path.is_dir() else ''} {sha256_of(file)}\n".encode())
        self.identity = f"files-{digest.hexdigest()[:12]}"
        self._opened = lru_cache(maxsize=_OPEN_FILES)(_opened)  # a folder may hold more than may be open at once

    def __call__(self, media: np.ndarray, id: str) -> np.ndarray:
        """Features of one sample as stored; media are ignored."""
        file = self.ids.get(id)
        if file is None:
            raise UserError(f"{self.path} lacks features of {id!r}: add them")
        try:
            tensor = self._opened(file)
            kind = tensor.get_slice(id).get_dtype()
            if kind not in _FLOATS:
                raise UserError(f"{file}: {id!r} is {kind}: save features as one of {', '.join(_FLOATS)}")
            return tensor.get_tensor(id).astype(np.float32)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: {id!r} cannot be read ({error}): copy the file again") from error


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, "np")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read as safetensors ({error}): copy it again") from error
