"""Autoencoders by name and path, as in `--autoencoder.image sd-vae=PATH`."""

import dataclasses
import typing
from pathlib import Path

from selfflow.autoencoders.config import (
    AUTOENCODER_FILE,
    PRETRAINED,
    SDVAE,
    AnyAutoencoder,
    Convolutional,
    Diffusers,
    Flux2VAE,
    Precomputed,
)
from selfflow.errors import UserError, did_you_mean

NAMES = {config.kind.replace("_", "-"): config for config in typing.get_args(AnyAutoencoder)}


def parse_autoencoder(text: str, modality: str, previous: AnyAutoencoder | None = None) -> AnyAutoencoder:
    """Returns the config of `NAME` or `NAME=PATH`; fields that neither name nor file determine have their defaults.

    Args:
      text: text to parse.
      modality: modality that it is for.
      previous: config of a run that resumes. If it is of the same name and path it is returned whatever the path
        contains by now, since the run has a copy of the weights.

    Raises:
      UserError: if there is no such autoencoder, or a path is missing, superfluous or unreadable.
    """
    flag = f"--autoencoder.{modality}"
    name, equals, path = text.partition("=")
    config = NAMES.get(name.replace("_", "-"))
    if config is None:
        raise UserError(f"{flag} {text}: no autoencoder {name!r}; {did_you_mean(name, NAMES)}")
    if config is Precomputed:
        return _precomputed(path, modality, f"{flag} {text}")
    if not issubclass(config, PRETRAINED):
        if equals:
            raise UserError(f"{flag} {text}: {name} is fitted to the data and has no file: write {flag} {name}")
        return config()
    if not path:
        raise UserError(f"{flag} {text}: {name} has pretrained weights: write {flag} {name}=PATH")
    if config is Diffusers:
        return _diffusers(path, modality, f"{flag} {text}", previous)
    if "://" in path:
        raise UserError(f"{flag} {text}: weights are read from local disks: copy {path} to one")
    if config is Convolutional:
        return _convolutional(Path(path).expanduser(), modality, previous)
    if config not in (SDVAE, Flux2VAE):
        raise UserError(f"{flag} {text}: {name} has no form NAME=PATH: write its fields in an experiment file")
    return _image_autoencoder(config, path, f"{flag} {text}", previous)


def _convolutional(path: Path, modality: str, previous: AnyAutoencoder | None) -> Convolutional:
    from selfflow.autoencoders.convolutional_file import read_config  # imports JAX

    # A run is named by its folder or by the file in it.
    paths = (path, path / AUTOENCODER_FILE)
    if isinstance(previous, Convolutional) and any(_is_same_path(previous.path, p) for p in paths):
        return previous
    return read_config(path / AUTOENCODER_FILE if path.is_dir() else path, modality)


def _diffusers(text: str, modality: str, flag: str, previous: AnyAutoencoder | None) -> Diffusers:
    from selfflow.autoencoders.diffusers_adapter import read_config  # imports torch

    name, colon, path = text.partition(":")
    if not colon or not path:
        raise UserError(f"{flag}: name the class, too: --autoencoder.{modality} diffusers=AutoencoderKLWan:PATH")
    if isinstance(previous, Diffusers) and previous.name == name and _is_same_path(previous.path, path):
        return previous
    return read_config(name, path, modality == "image")


def _image_autoencoder(
    config: type[SDVAE] | type[Flux2VAE], path: str, flag: str, previous: AnyAutoencoder | None
) -> SDVAE | Flux2VAE:
    from selfflow.autoencoders.kl_autoencoder import read_config_json  # imports JAX

    if isinstance(previous, config) and _is_same_path(previous.path, path):
        return previous
    file = Path(path).expanduser()
    # A missing file is not an error here: the data folder may have a copy of its weights.
    if file.is_file() and file.suffix.lower() != ".safetensors":
        raise UserError(f"{flag}: give a .safetensors file, or a folder of diffusers that holds one")
    default = config(path=path)
    return dataclasses.replace(default, **read_config_json(default, file))


def _precomputed(path: str, modality: str, flag: str) -> Precomputed:
    from selfflow.data.latent_files.manifest import MANIFEST, read_manifest

    if not path:
        raise UserError(f"{flag}: name the folder of the latents, too: --autoencoder.{modality} precomputed=FOLDER")
    streams = read_manifest(Path(path).expanduser()).streams
    if modality not in streams:
        raise UserError(f"{flag}: its {MANIFEST} has {', '.join(streams)} and no {modality}: give another folder")
    stream = streams[modality]
    return Precomputed(
        channels=stream.shape[-1],
        temporal_stride=stream.temporal_stride,
        stride=stream.stride,
        images_only=modality == "image",
        name=stream.autoencoder,
        first_frame_alone=stream.causal_padding > 0,
    )


def _is_same_path(a: str | Path, b: str | Path) -> bool:
    return Path(a).expanduser().absolute() == Path(b).expanduser().absolute()
