"""Weights of autoencoders that a user brings: copied to the data folder once, and known by their hash."""

import hashlib
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
from selfflow.serialization import to_json
from selfflow.storage.atomic import atomic_write
from selfflow.weights.read import sha256_of

_FORMAT = 2  # raised when equal settings come to mean other copies


def copy_path(modality: str, config: AnyAutoencoder, data_dir: Path) -> Path:
    """Where `copy_weights` copies weights to, or where their copy lies if they are gone.

    Raises:
      UserError: if there are neither.
    """
    if isinstance(config, Diffusers):
        key = json.dumps([_FORMAT, modality, to_json(config)])
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    elif not config.path or not (source := find_weights(config)).exists():
        return _copied_before(modality, config, data_dir)
    else:
        # Not by its path: an autoencoder that was trained again is another, and runs go on with the one they know.
        status = source.stat()
        digest = _name_of_copy(modality, config, _digest(source, status.st_size, status.st_mtime_ns))
    return data_dir / "autoencoders" / f"{modality}-{config.kind}-{digest}.safetensors"


def copy_weights(modality: str, config: AnyAutoencoder, path: Path, notes: Path) -> None:
    """Brings a user's weights to `path`, if they are not there, and notes beside them what they are.

    Raises:
      UserError: if they are missing, damaged or of another model.
    """
    if isinstance(config, Diffusers):
        _pin(modality, config, path, notes)
        return
    if path.exists() and notes.exists():
        return
    source = _source(modality, config)
    with Progress(f"copy the {modality} autoencoder", 1, unit="file") as shown:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a folder of its own, so that the copy can keep the suffix by which weights are read.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
            copy = Path(folder) / "weights.safetensors"
            shutil.copyfile(source, copy)
            if _name_of_copy(modality, config, sha256_of(copy)) not in path.name:
                raise UserError(
                    f"autoencoders.{modality}: {source} changed while it was copied: run the same command again"
                )
            try:
                _check_told(config, source)
                identity = load_autoencoder(config, copy).identity
            except UserError as error:
                raise UserError(f"autoencoders.{modality}: {str(error).replace(str(copy), str(source))}") from error
            os.replace(copy, path)
        weights_metadata(notes, {"identity": identity, "fitted_on": {}, "copy_of": _copy_of(config)})
        shown.advance()


def find_weights(config: AnyAutoencoder) -> Path:
    """The file that the path of an autoencoder stands for."""
    path = Path(config.path).expanduser()
    name = AUTOENCODER_FILE if isinstance(config, Convolutional) else "diffusion_pytorch_model.safetensors"
    return path / name if path.is_dir() else path


def weights_metadata(notes: Path, told: dict[str, Any]) -> None:
    """Writes what is known of an autoencoder on disk."""
    with atomic_write(notes) as partial:
        partial.write_text(json.dumps(told))


def _check_told(config: AnyAutoencoder, source: Path) -> None:
    """That settings are as a config.json beside the weights says."""
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
    if not config.path or source.suffix != ".safetensors":
        raise UserError(_no_weights(modality, config))
    return source


def _copied_before(modality: str, config: AnyAutoencoder, data_dir: Path) -> Path:
    """The newest copy of weights that were at the path of these settings, and are there no more."""
    folder, found = data_dir / "autoencoders", []
    for path in folder.glob(f"{modality}-{config.kind}-*.json"):
        try:
            told = json.loads(path.read_text())
        except (OSError, ValueError):
            continue  # damaged: the others may do
        if told.get("copy_of") == _copy_of(config):
            found.append((path.stat().st_mtime, path.with_suffix(".safetensors")))
    if not found:
        raise UserError(_no_weights(modality, config))
    return max(found)[1]


def _copy_of(config: AnyAutoencoder) -> dict[str, Any]:
    """What a copy is known by where the weights themselves are gone."""
    return config_without_path(config) | {"path": str(Path(config.path).expanduser().absolute())}


def _no_weights(modality: str, config: AnyAutoencoder) -> str:
    if isinstance(config, Convolutional):
        remedy = f"give the folder of a run, such as of `selfflow train experiments/autoencoder_{modality}.py`"
    else:
        remedy = "give a .safetensors file, or a folder of diffusers with diffusion_pytorch_model.safetensors"
    return f"autoencoders.{modality}.path is {config.path!r}: {remedy}"


def _name_of_copy(modality: str, config: AnyAutoencoder, weights: str) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, modality, config_without_path(config), weights]).encode()).hexdigest()[
        :12
    ]


@lru_cache(maxsize=16)
def _digest(path: Path, size: int, modified: int) -> str:
    return sha256_of(path)


def _pin(modality: str, config: Diffusers, path: Path, notes: Path) -> None:
    """Keeps in mind which autoencoder of diffusers it is; its weights stay where they are."""
    if path.exists() and notes.exists():
        return
    from selfflow.autoencoders.diffusers_adapter import pin_revision  # brings torch

    with Progress(f"look at the {modality} autoencoder", 1, unit="model") as shown:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            try:
                identity = pin_revision(config, partial)
            except UserError as error:
                raise UserError(f"autoencoders.{modality}: {error}") from error
        weights_metadata(notes, {"identity": identity, "fitted_on": {}})
        shown.advance()
