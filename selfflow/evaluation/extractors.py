"""Networks that turn media into features; which are there, and how a flag names them.

Importing this brings neither JAX nor torch.
"""

from pathlib import Path
from typing import Protocol

import numpy as np

from selfflow.errors import UserError, did_you_mean


class Extractor(Protocol):
    """What evaluation needs of any source of features, also of a run's own layers.

    Attributes:
      name: of the features, such as "EffNet".
      identity: name and hash of weights: equal identities mean equal features.
      distance: what a Frechet distance on these features is called: "FID" and "FVD" on theirs, else "FD-" and the name.
      medium: what it looks at or listens to.
      width: channels D of a feature.
    """

    name: str
    identity: str
    distance: str
    medium: str
    width: int

    def __call__(self, media: np.ndarray, rate: float = 0) -> np.ndarray:
        """Features float32 [B, D], one row a sample, whatever the other samples are.

        Args:
          media: uint8 images [B, H, W, 3], uint8 videos [B, T, H, W, 3], or int16 audio [B, samples].
          rate: frames per second of videos, samples per second of audio; 0 for images.
        """
        ...


# Media of each kind; those that end with = take a file or a folder.
_KINDS: dict[str, tuple[str, ...]] = {
    "effnet": ("image", "video"),
    "inception=": ("image",),
    "i3d=": ("video",),
    "logmel": ("audio",),
    "birdnet": ("audio",),
    "clap=": ("audio",),
}


def media_of(spec: str) -> tuple[str, ...]:
    """What the extractor that a flag names can look at.

    Raises:
      UserError: if there is no such extractor.
    """
    kind, equals, where = spec.partition("=")
    if (medias := _KINDS.get(kind + equals)) is None or (equals and not where):
        raise UserError(f"--features {spec!r}: {_remedy(kind)}")
    return medias


def open_extractor(spec: str, medium: str) -> Extractor:
    """The extractor that a flag names, with its weights.

    Args:
      spec: `effnet` (images, videos), `logmel`, `birdnet` (audio), `inception=FILE` (images), `i3d=FILE` (videos), or
        `clap=FOLDER` (audio).
      medium: "image", "video" or "audio": what it is to look at.

    Raises:
      UserError: if there is no such extractor, it does not suit the medium, its package is not installed, or its file
        is missing, damaged or not what it should be.
    """
    medias = media_of(spec)
    kind, _, where = spec.partition("=")
    if medium not in medias:
        fitting = [_shown(kind) for kind, medias in _KINDS.items() if medium in medias]
        offer = f"give {' or '.join(fitting)}" if fitting else "no extractor does"
        raise UserError(f"--features {spec}: {kind} looks at {' and '.join(medias)}, not at {medium}; {offer}")
    path = Path(where).expanduser()
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
    known = {name.rstrip("="): name for name in _KINDS}
    if (name := known.get(kind.lower())) is None:
        names = ", ".join(map(_shown, _KINDS))
        return f"no such extractor; {did_you_mean(kind, known)} ({names}, and layer or layer=K of a run)"
    if name.endswith("="):
        return f"{kind} takes a path: {_shown(name)}"
    return f"give {name} alone"


def _shown(name: str) -> str:
    return name + ("FOLDER" if name == "clap=" else "FILE") if name.endswith("=") else name
