"""Weights by key, from a file of torch or safetensors."""

import hashlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from selfflow.errors import UserError
from selfflow.weights.torch_file import read_torch_file

_TORCH = (".pt", ".pth", ".bin", ".ckpt")
_FLOATS = ("float32", "float16", "bfloat16")
_COUNTER = "num_batches_tracked"  # counter of a batch normalisation, which inference does not use
_PARALLEL = "module."  # the prefix of DataParallel and DistributedDataParallel


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a file, without the prefix `module.` and without the counters of batch normalisations.

    Args:
      path: `.safetensors`, or a file of torch.save (`.pt`, `.pth`, `.bin`, `.ckpt`), which is read without executing
        code.

    Returns:
      {key: array} in float32, float16 or bfloat16, as stored.

    Raises:
      UserError: if the file is missing, damaged, cut short or of another format, or a tensor is of another type or has
        an element that is not finite.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: give the weights as .pt or .safetensors")
    if path.suffix.lower() == ".safetensors":
        weights = _read_safetensors(path)
    elif path.suffix.lower() in _TORCH:
        weights = read_torch_file(path)
    else:
        raise UserError(f"{path} is neither .safetensors nor {', '.join(_TORCH)}: give weights in one of these formats")
    if all(key.startswith(_PARALLEL) for key in weights):
        weights = {key.removeprefix(_PARALLEL): tensor for key, tensor in weights.items()}
    weights = {key: tensor for key, tensor in weights.items() if key.rpartition(".")[2] != _COUNTER}
    # Tensors may share storage: if all do, those of a small file could fill the memory.
    if sum(tensor.nbytes for tensor in weights.values()) > path.stat().st_size:
        raise UserError(f"{path}: its tensors have more elements than the file; save them as .safetensors")
    for key, tensor in weights.items():
        if tensor.dtype.name not in _FLOATS:
            raise UserError(f"{path}: {key} is {tensor.dtype.name}; convert it to one of {', '.join(_FLOATS)}")
        if not np.isfinite(tensor).all():
            raise UserError(f"{path}: {key} holds NaN or infinity; take an earlier checkpoint")
    return weights


def check_keys(path: Path, weights: Collection[str], expected: Collection[str], model: str) -> None:
    """Checks that a file has all weights of a model, and no others.

    Args:
      path: path of the file.
      weights: weights of the file by key.
      expected: keys of the model.
      model: name of the model.

    Raises:
      UserError: otherwise; the message names the first key.
    """
    missing = sorted(set(expected) - set(weights))
    if missing:
        raise UserError(f"{path} lacks {_summary(missing)}: give all weights of {model}")
    extra = sorted(set(weights) - set(expected))
    if extra:
        raise UserError(f"{path} has {_summary(extra)}, which {model} does not have: remove what is not of the model")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _summary(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more"


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, "np") as file:
            return {key: file.get_tensor(key) for key in file.keys()}
    # TypeError, ValueError, KeyError: a type of elements that numpy does not have.
    except (OSError, SafetensorError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); copy it again") from None
