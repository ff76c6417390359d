"""Features, media and weights that tests and the recordings in tests/goldens draw from seeds."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from selfflow.encoders.effnet import _STAGES
from selfflow.encoders.i3d import layout as i3d_layout
from selfflow.encoders.inception import layout as inception_layout

GOLDENS = Path(__file__).parents[1] / "goldens"

# Real and generated samples, channels: many samples; fewer than channels; of unequal scale; unequal numbers.
CASES = {"many": (80, 80, 16), "few": (24, 24, 64), "scaled": (60, 60, 12), "unequal": (70, 40, 8)}


def feature_sets(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Real and generated features, float64."""
    m, n, width = CASES[case]
    rng = np.random.default_rng(list(CASES).index(case))
    mixing = rng.standard_normal((width, width)) / np.sqrt(width)
    if case == "scaled":
        mixing = mixing * np.logspace(-2, 1, width)
    real = np.maximum(rng.standard_normal((m, width)) @ mixing + 0.5, 0)
    generated = np.maximum(rng.standard_normal((n, width)) @ mixing * 0.8 + 0.6, 0)
    return real, generated


def images(count: int, side: int = 32, seed: int = 0) -> np.ndarray:
    """uint8 [count, side, side + 3, 3]: smooth shades and noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : 1 : side * 1j, 0 : 1 : (side + 3) * 1j]
    waves = rng.uniform(1, 9, (count, 3, 2))
    shades = np.sin(waves[..., 0, None, None] * rows + waves[..., 1, None, None] * columns)
    noise = rng.standard_normal((count, side, side + 3, 3)) * 20
    return (127.5 + 100 * shades.transpose(0, 2, 3, 1) + noise).clip(0, 255).astype(np.uint8)


def videos(count: int, frames: int, side: int = 32) -> np.ndarray:
    """uint8 [count, frames, side, side + 3, 3]."""
    return images(count * frames, side, seed=1).reshape(count, frames, side, side + 3, 3)


def audio(count: int, samples: int, rate: int, seed: int = 0) -> np.ndarray:
    """int16 [count, samples]: tones that fade."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(samples) / rate
    tones = np.sin(2 * np.pi * rng.uniform(200, 3000, (count, 1)) * seconds) * np.exp(-seconds * 3)
    return (20_000 * tones + 300 * rng.standard_normal((count, samples))).astype(np.int16)


def _normalised(rng: np.random.Generator, conv: str, norm: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    tensors = {f"{conv}.weight": rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))}
    tensors |= {f"{norm}.{name}": rng.uniform(0.6, 1.4, shape[0]) for name in ("weight", "running_var")}
    tensors |= {f"{norm}.{name}": 0.1 * rng.standard_normal(shape[0]) for name in ("bias", "running_mean")}
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def inception_weights() -> dict[str, np.ndarray]:
    """Drawn weights of FID's Inception, with its classifier, which has no part in features."""
    rng, weights = np.random.default_rng(0), {}
    for name, shape in inception_layout().items():
        weights |= _normalised(rng, f"{name}.conv", f"{name}.bn", shape)
    return weights | {"fc.weight": np.zeros((1008, 2048), np.float32), "fc.bias": np.zeros(1008, np.float32)}


def i3d_weights() -> dict[str, np.ndarray]:
    """Drawn weights of I3D, as pytorch-i3d names them."""
    rng, weights = np.random.default_rng(1), {}
    for name, shape in i3d_layout().items():
        weights |= _normalised(rng, f"{name}.conv3d", f"{name}.bn", shape)
    weights["logits.conv3d.weight"] = (rng.standard_normal((400, 1024, 1, 1, 1)) / 32).astype(np.float32)
    return weights | {"logits.conv3d.bias": rng.standard_normal(400).astype(np.float32)}


def effnet_weights() -> dict[str, np.ndarray]:
    """Drawn weights of the blocks of EfficientNet-Lite0 up to 112 channels."""
    rng, inputs, number = np.random.default_rng(2), 32, 0
    weights = _normalised(rng, "_conv_stem", "_bn0", (32, 3, 3, 3))
    for count, kernel, _, expansion, outputs in _STAGES:
        for _ in range(count):
            at, inner = f"_blocks.{number}", inputs * expansion
            if expansion > 1:
                weights |= _normalised(rng, f"{at}._expand_conv", f"{at}._bn0", (inner, inputs, 1, 1))
            weights |= _normalised(rng, f"{at}._depthwise_conv", f"{at}._bn1", (inner, 1, kernel, kernel))
            weights |= _normalised(rng, f"{at}._project_conv", f"{at}._bn2", (outputs, inner, 1, 1))
            inputs, number = outputs, number + 1
    return weights


def saved(path: Path, weights: dict[str, np.ndarray]) -> Path:
    """Writes safetensors."""
    save_file(weights, path)
    return path
