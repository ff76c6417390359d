"""The recorded SiT, and torch files made from its parts."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

GOLDENS = Path(__file__).parents[1] / "goldens"
PT, SAFETENSORS = GOLDENS / "sit_small.weights.pt", GOLDENS / "sit_small.weights.safetensors"
HEADS = 4


def recorded() -> dict[str, np.ndarray]:
    """Inputs and outputs of the original code."""
    return load_file(GOLDENS / "sit_small.outputs.safetensors")


def settings() -> dict:
    """Sizes, layers and sampler settings of the recording."""
    return json.loads((GOLDENS / "sit_small.json").read_text())


def entries(path: Path = PT) -> dict[str, bytes]:
    """The parts of a torch file by their names without the folder."""
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write_entries(path: Path, parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(f"archive/{name}", data)
    return path


def pickle_of(tensors: dict[str, tuple[str, int, tuple, tuple]]) -> bytes:
    """A pickle of float32 tensors: {key: (storage, elements of the storage, shape, strides)}."""

    def push(value) -> bytes:
        return pickle.dumps(value, 2)[2:-1]  # without PROTO and STOP

    program = b"\x80\x02}("
    for key, (storage, elements, shape, strides) in tensors.items():
        stored = push("storage") + b"ctorch\nFloatStorage\n" + push(storage) + push("cpu") + push(elements)
        program += push(key) + b"ctorch._utils\n_rebuild_tensor_v2\n("
        program += b"(" + stored + b"tQ" + push(0) + push(shape) + push(strides) + b"\x89}tR"
    return program + b"u."
