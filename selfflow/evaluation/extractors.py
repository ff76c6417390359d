"""Feature extractors of media, by the names of `--features`. Importing this module imports neither JAX nor torch."""

from pathlib import Path
from typing import Protocol

import numpy as np

from selfflow.errors import UserError, did_you_mean


class Extractor(Protocol):
    """Computes features of media.

    Attributes:
      name: name of the features, such as "EffNet".
      identity: name and hash of the weights: equal identities give equal features.
      distance: name of the Frechet distance of these features: "FID", "FVD", or otherwise "FD-" followed by the name.
      medium: modality of its input.
      width: channels D of a feature.
    """

    name: str
    identity: str
    distance: str
    medium: str
    width: int

    def __call__(self, media: np.ndarray, rate: float = 0) -> np.ndarray:
        """Computes features, float32 [B, D]. A row does not depend on the other samples of the batch.

        Args:
          media: uint8 images [B, H, W, 3], uint8 videos [B, T, H, W, 3], or int16 audio [B, samples].
          rate: frames or samples per second; 0 for images.
        """
        ...


# Modalities of each kind. Names with = are followed by a file or a folder.
_KINDS: dict[str, tuple[str, ...]] = {
    "effnet": ("image", "video"),
    "inception=": ("image",),
    "i3d=": ("video",),
    "logmel": ("audio",),
    "birdnet": ("audio",),
    "clap=": ("audio",),
}


def media_of(spec: str) -> tuple[str, ...]:
    """Returns the modalities that an extractor applies to.

    Raises:
      UserError: if there is no such extractor.
    """
    kind, equals, path = spec.partition("=")
    modalities = _KINDS.get(kind + equals)
    if modalities is None or (equals and not path):
        raise UserError(f"--features {spec!r}: {_remedy(kind)}")
    return modalities


def open_extractor(spec: str, medium: str) -> Extractor:
    """Opens an extractor with its weights.

    Args:
      spec: `effnet` (image, video), `logmel`, `birdnet` (audio), `inception=FILE` (image), `i3d=FILE` (video), or
        `clap=FOLDER` (audio).
      medium: modality of its input.

    Raises:
      UserError: an unknown extractor, another modality, a package that is not installed, or a file that is missing,
        damaged or for another network.
    """
    modalities = media_of(spec)
    kind, _, file = spec.partition("=")
    if medium not in modalities:
        others = [_usage(name) for name, modalities_of_kind in _KINDS.items() if medium in modalities_of_kind]
        remedy = f"give {' or '.join(others)}" if others else "no extractor does"
        raise UserError(f"--features {spec}: {kind} applies to {' and '.join(modalities)}, not to {medium}; {remedy}")
    path = Path(file).expanduser()
    match kind:
        case "effnet":
            from selfflow.encoders.effnet import EffNet

            return EffNet(medium)
        case "inception":
            from selfflow.encoders.inception import Inception

            return Inception(path)
        case "i3d":
            from selfflow.encoders.i3d import I3d
            from selfflow.encoders.torchscript import TorchScriptI3d, is_torchscript

            return TorchScriptI3d(path) if is_torchscript(path) else I3d(path)
        case "logmel":
            from selfflow.encoders.audio import LogMelStatistics

            return LogMelStatistics()
        case "birdnet":
            from selfflow.encoders.audio import BirdNet

            return BirdNet()
        case "clap":
            from selfflow.encoders.clap import Clap

            return Clap(path)
    raise AssertionError(kind)


def _remedy(kind: str) -> str:
    """Suggests a fix for an unknown name, or for a superfluous or missing path."""
    known = {name.rstrip("="): name for name in _KINDS}
    name = known.get(kind.lower())
    if name is None:
        names = ", ".join(map(_usage, _KINDS))
        return f"no such extractor; {did_you_mean(kind, known)} ({names}, and layer or layer=K of a run)"
    if name.endswith("="):
        return f"{kind} takes a path: {_usage(name)}"
    return f"give {name} alone"


def _usage(name: str) -> str:
    """Formats a name of `_KINDS` with a placeholder for its path."""
    if not name.endswith("="):
        return name
    return name + ("FOLDER" if name == "clap=" else "FILE")
