"""I3D as TorchScript, the form in which the weights of FVD are mostly distributed; it needs torch."""

import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Float

from selfflow.encoders.config import FVD
from selfflow.encoders.i3d import CLASSES, MIN_FRAMES
from selfflow.encoders.media import check_media
from selfflow.errors import UserError
from selfflow.weights.read import sha256_of

# i3d_torchscript.pt of StyleGAN-V (arXiv 2112.14683), made of the weights that FVD's reference implementation loads.
SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"
_BATCH = 4


def is_torchscript(path: Path) -> bool:
    """Returns whether a file holds a TorchScript program beside weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


class TorchScriptI3d:
    """Videos -> 400 logits of i3d_torchscript.pt, by which StyleGAN-V and most later work computes FVD.

    The program itself resizes to 224 x 224 and scales. A distance is called FVD with the published file, known by its
    hash; with another program it is FD-I3D. Torch executes the program: give files that you trust.

    Args:
      path: path of the program.

    Raises:
      UserError: if torch is not installed, or cannot read the file.
    """

    medium = "video"
    width = CLASSES
    name = "I3D"

    def __init__(self, path: Path):
        try:
            import torch
        except ImportError:
            raise UserError(
                f"--features i3d: {path} is TorchScript and needs torch: pip install 'selfflow[torchscript]', or give "
                "a plain state dict"
            ) from None
        digest = sha256_of(path)
        self.distance = FVD if digest == SHA256 else "FD-I3D"
        self.identity = f"{self.name}-torchscript-{digest[:12]}"
        self.torch, self.path = torch, path
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.network = torch.jit.load(str(path), map_location=self.device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{path}: torch cannot read it ({_line(error)}); copy it again") from None

    def __call__(self, media: np.ndarray, rate: float = 0) -> Float[np.ndarray, "B 400"]:
        """Features of uint8 videos [B, T, H, W, 3].

        Raises:
          UserError: if videos have fewer than 9 frames, or the program is not that of StyleGAN-V's I3D.
        """
        check_media(media, self.name, "video")
        if media.shape[1] < MIN_FRAMES:
            raise UserError(f"{self.name} takes videos of at least {MIN_FRAMES} frames, and got {media.shape[1]}")
        torch, features = self.torch, []
        for start in range(0, len(media), _BATCH):
            videos = np.ascontiguousarray(media[start : start + _BATCH].transpose(0, 4, 1, 2, 3))
            with torch.inference_mode():
                x = torch.from_numpy(videos).to(self.device, torch.float32)
                try:
                    logits = self.network(x, rescale=True, resize=True, return_features=True)
                    features.append(logits.float().cpu().numpy().reshape(len(videos), self.width))
                except (RuntimeError, TypeError, ValueError, AttributeError) as error:
                    raise UserError(f"{self.path} is not StyleGAN-V's I3D ({_line(error)}); give that file") from None
        return np.concatenate(features)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1][:200] if lines else type(error).__name__
