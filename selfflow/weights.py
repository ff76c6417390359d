"""Weights by their keys, from a file of torch or of safetensors."""

import hashlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from selfflow.errors import UserError
from selfflow.torch_file import read_torch_file

_TORCH = (".pt", ".pth", ".bin", ".ckpt")
_FLOATS = ("float32", "float16", "bfloat16")
# How many batches a normalisation has seen: what its momentum could depend on, and nothing that it computes.
_COUNTER = "num_batches_tracked"
# What a model wrapped for data parallelism puts before each key.
_WRAPPED = "module."


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file, as it stores them, without the prefix `module.` and without counters of batches.

    Args:
      path: `.safetensors`, or what torch.save wrote (`.pt`, `.pth`, `.bin`, `.ckpt`), of which nothing is run.

    Returns:
      {key: array} in float32, float16 or bfloat16.

    Raises:
      UserError: if the file is missing, damaged, cut short or of another format, or a tensor is of another type or has
        an element that is not finite.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: give the weights as .pt or .safetensors")
    if path.suffix == ".safetensors":
        weights = _read_safetensors(path)
    elif path.suffix in _TORCH:
        weights = read_torch_file(path)
    else:
        raise UserError(f"{path} is neither .safetensors nor {', '.join(_TORCH)}: give weights in one of these formats")
    if weights and all(key.startswith(_WRAPPED) for key in weights):
        weights = {key.removeprefix(_WRAPPED): tensor for key, tensor in weights.items()}
    weights = {key: tensor for key, tensor in weights.items() if key.rpartition(".")[2] != _COUNTER}
    # Tensors may share storage; where all do, a small file could fill the memory.
    if sum(tensor.nbytes for tensor in weights.values()) > path.stat().st_size:
        raise UserError(f"{path}: its tensors have more elements than the file; save them as .safetensors")
    for key, tensor in weights.items():
        if tensor.dtype.name not in _FLOATS:
            raise UserError(f"{path}: {key} is {tensor.dtype.name}; convert it to one of {', '.join(_FLOATS)}")
        if not np.isfinite(tensor).all():
            raise UserError(f"{path}: {key} holds NaN or infinity; take an earlier checkpoint")
    return weights


def check_keys(path: Path, weights: Collection[str], expected: Collection[str], model: str) -> None:
    """Raises `UserError`, which names a key, unless a file holds the weights of a model, all and no others."""
    if missing := sorted(set(expected) - set(weights)):
        raise UserError(f"{path} lacks {_some(missing)}: give the weights of the whole of {model}")
    if extra := sorted(set(weights) - set(expected)):
        raise UserError(f"{path} has {_some(extra)}, which {model} does not have: remove what is not of the model")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _some(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more"


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, "np") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}
    # TypeError, ValueError, KeyError: a type of elements that numpy does not have.
    except (OSError, SafetensorError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); copy it again") from None
