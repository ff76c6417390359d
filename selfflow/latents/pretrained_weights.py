"""User-supplied weights of autoencoders: copied to the data folder once, and identified by their hash."""

import json
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from selfflow.autoencoders.config import (
    AUTOENCODER_FILE,
    SDVAE,
    AnyAutoencoder,
    Convolutional,
    Diffusers,
    Flux2VAE,
    config_without_path,
)
from selfflow.autoencoders.load import load_autoencoder
from selfflow.errors import UserError
from selfflow.progress import Progress
from selfflow.serialization import digest, to_json
from selfflow.storage.atomic import atomic_write
from selfflow.weights.read import sha256_of

_FORMAT = 2  # increment when the copy for unchanged settings changes


def copy_path(modality: str, config: AnyAutoencoder, data_dir: Path) -> Path:
    """Returns the path of the copy that `copy_weights` makes, or of an earlier copy if the weights no longer exist.

    Raises:
      UserError: if neither exists.
    """
    if isinstance(config, Diffusers):
        key = digest(json.dumps([_FORMAT, modality, to_json(config)]), 12)
    else:
        source = find_weights(config)
        if not config.path or not source.exists():
            return _earlier_copy(modality, config, data_dir)
        # The key depends on the content: if the file at the same path changes, earlier runs keep their copy.
        status = source.stat()
        key = _copy_key(modality, config, _cached_sha256(source, status.st_size, status.st_mtime_ns))
    return data_dir / "autoencoders" / f"{modality}-{config.kind}-{key}.safetensors"


def copy_weights(modality: str, config: AnyAutoencoder, path: Path, metadata_path: Path) -> None:
    """Copies user-supplied weights and records their identity; does nothing if both files exist.

    Args:
      modality: modality to encode.
      config: config of the autoencoder.
      path: path of the copy, from `copy_path`.
      metadata_path: path of the JSON file beside it.

    Raises:
      UserError: if the weights are missing, damaged or for another model.
    """
    if path.exists() and metadata_path.exists():
        return
    if isinstance(config, Diffusers):
        _pin(modality, config, path, metadata_path)
        return
    source = _source(modality, config)
    with Progress(f"copy the {modality} autoencoder", 1, unit="file") as shown:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A temporary folder instead of a temporary name, since the suffix selects the reader of weights.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
            copy = Path(folder) / "weights.safetensors"
            shutil.copyfile(source, copy)
            if _copy_key(modality, config, sha256_of(copy)) not in path.name:
                raise UserError(
                    f"autoencoders.{modality}: {source} changed while it was copied: run the same command again"
                )
            try:
                _check_config(config, source)
                identity = load_autoencoder(config, copy).identity
            except UserError as error:
                raise UserError(f"autoencoders.{modality}: {str(error).replace(str(copy), str(source))}") from error
            os.replace(copy, path)
        write_metadata(metadata_path, {"identity": identity, "fitted_on": {}, "copy_of": _origin(config)})
        shown.advance()


def find_weights(config: AnyAutoencoder) -> Path:
    """Returns the weights file for an autoencoder's path, which may be a file or a folder."""
    path = Path(config.path).expanduser()
    name = AUTOENCODER_FILE if isinstance(config, Convolutional) else "diffusion_pytorch_model.safetensors"
    return path / name if path.is_dir() else path


def write_metadata(path: Path, metadata: dict[str, Any]) -> None:
    """Writes the JSON file beside an autoencoder."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(metadata), encoding="utf-8")


def _check_config(config: AnyAutoencoder, source: Path) -> None:
    """Checks that settings agree with a config.json beside the weights."""
    if isinstance(config, SDVAE | Flux2VAE):
        from selfflow.autoencoders.kl_autoencoder import read_config_json  # imports JAX

        for name, value in read_config_json(config, source).items():
            if getattr(config, name) != value:
                raise UserError(
                    f"the config.json beside {source} has {name} {value}, and the {config.kind} autoencoder "
                    f"{getattr(config, name)}: set it"
                )


def _source(modality: str, config: AnyAutoencoder) -> Path:
    source = find_weights(config)
    if not config.path or source.suffix.lower() != ".safetensors":
        raise UserError(_missing_weights(modality, config))
    return source


def _earlier_copy(modality: str, config: AnyAutoencoder, data_dir: Path) -> Path:
    """Returns the newest copy of weights that no longer exist at the path of this config."""
    copies = []
    for path in (data_dir / "autoencoders").glob(f"{modality}-{config.kind}-*.json"):
        try:
            metadata = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # damaged: another copy may be intact
        if metadata.get("copy_of") == _origin(config):
            copies.append((path.stat().st_mtime, path.with_suffix(".safetensors")))
    if not copies:
        raise UserError(_missing_weights(modality, config))
    return max(copies)[1]


def _origin(config: AnyAutoencoder) -> dict[str, Any]:
    """Returns the data that identify a copy after the original weights are removed."""
    return config_without_path(config) | {"path": str(Path(config.path).expanduser().absolute())}


def _missing_weights(modality: str, config: AnyAutoencoder) -> str:
    if isinstance(config, Convolutional):
        remedy = f"give the folder of a run, such as of `selfflow train experiments/autoencoder_{modality}.py`"
    else:
        remedy = "give a .safetensors file, or a folder of diffusers with diffusion_pytorch_model.safetensors"
    return f"autoencoders.{modality}.path is {config.path!r}: {remedy}"


def _copy_key(modality: str, config: AnyAutoencoder, sha256: str) -> str:
    return digest(json.dumps([_FORMAT, modality, config_without_path(config), sha256]), 12)


@lru_cache(maxsize=16)
def _cached_sha256(path: Path, size: int, modified: int) -> str:
    """Returns the hash of a file; the cache key includes its size and modification time."""
    return sha256_of(path)


def _pin(modality: str, config: Diffusers, path: Path, metadata_path: Path) -> None:
    """Records the revision of a diffusers autoencoder, whose weights stay in the Hugging Face cache."""
    from selfflow.autoencoders.diffusers_adapter import pin_revision  # imports torch

    with Progress(f"look at the {modality} autoencoder", 1, unit="model") as shown:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            try:
                identity = pin_revision(config, partial)
            except UserError as error:
                raise UserError(f"autoencoders.{modality}: {error}") from error
        write_metadata(metadata_path, {"identity": identity, "fitted_on": {}})
        shown.advance()
