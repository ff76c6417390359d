"""Small KL autoencoders with weights that follow from their names, and recordings of them."""

import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "goldens" / "kl_small.npz"
# Two strides, a shortcut, several resnets to a block; no width equals another's number of groups.
CONFIG = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (16, 24, 32),
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
}


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random weights, each drawn from its name: scales about 1, kernels of std 1 / sqrt(inputs)."""
    found = {}
    for name, shape in shapes.items():
        noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if len(shape) > 1:
            value = noise / np.sqrt(np.prod(shape[1:]))
        elif name.endswith("running_var"):
            value = np.exp(0.3 * noise)
        elif ".norm" in name or "_norm" in name:
            value = float(name.endswith("weight")) + 0.3 * noise
        else:
            value = 0.3 * noise
        found[name] = value.astype(np.float32)
    return found


def images(height: int, width: int, count: int = 2) -> np.ndarray:
    """uint8 [count, height, width, 3]: waves of several lengths, and noise."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / (2 + i) + columns / (3 + j)) for i in range(count) for j in range(3)]
    smooth = np.moveaxis(np.reshape(waves, (count, 3, height, width)), 1, -1)
    return np.clip(127 + 90 * smooth + 20 * random.standard_normal(smooth.shape), 0, 255).astype(np.uint8)
