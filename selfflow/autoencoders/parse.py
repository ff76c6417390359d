"""Autoencoders by name and file, as `--autoencoder.image sd-vae=PATH` gives them."""

import dataclasses
import difflib
import typing
from pathlib import Path

from selfflow.autoencoders.config import AnyAutoencoder, Convolutional, Diffusers, Precomputed, uses_pretrained
from selfflow.autoencoders.temporal_config import AUTOENCODER_FILE
from selfflow.errors import UserError

NAMES = {
    typing.get_args(typing.get_type_hints(config)["kind"])[0].replace("_", "-"): config
    for config in typing.get_args(AnyAutoencoder)
}


def parse_autoencoder(text: str, modality: str, known: AnyAutoencoder | None = None) -> AnyAutoencoder:
    """The settings that `NAME` or `NAME=PATH` stands for; what neither name nor file tells is as it is by default.

    Args:
      text: what was given.
      modality: what it is for.
      known: what stands for it in a run that goes on: if it was of that name and path it is taken, whatever lies there
        by now, for the run has a copy.

    Raises:
      UserError: if there is no such autoencoder, or a path is missing or too much.
    """
    flag = f"--autoencoder.{modality}"
    name, equals, path = text.partition("=")
    config = NAMES.get(name.replace("_", "-"))
    if config is None:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(NAMES)}"
        raise UserError(f"{flag} {text}: no autoencoder {name!r}; {hint}")
    if config is Precomputed:
        return _precomputed(path, modality, f"{flag} {text}")
    if not uses_pretrained(config):
        if equals:
            raise UserError(f"{flag} {text}: {name} is fitted to the data and has no file: write {flag} {name}")
        return config()
    if not path:
        raise UserError(f"{flag} {text}: {name} has weights of its own: write {flag} {name}=PATH")
    if config is not Diffusers and "://" in path:
        raise UserError(f"{flag} {text}: weights are read from disks: copy {path} to one")
    if config is Convolutional:
        from selfflow.autoencoders.convolutional_autoencoder import read_config  # brings JAX

        file = Path(path).expanduser()
        if isinstance(known, Convolutional) and (_same(known.path, file) or _same(known.path, file / AUTOENCODER_FILE)):
            return known
        return read_config(file / AUTOENCODER_FILE if file.is_dir() else file, modality)
    if config is Diffusers:
        from selfflow.autoencoders.diffusers_adapter import read_config  # brings torch

        kind, colon, where = path.partition(":")
        if not colon or not where:
            raise UserError(f"{flag} {text}: name the class, too: {flag} diffusers=AutoencoderKLWan:PATH")
        if isinstance(known, Diffusers) and known.name == kind and _same(known.path, where):
            return known
        return read_config(kind, where, modality == "image")
    if isinstance(known, config) and _same(known.path, path):
        return known
    file = Path(path).expanduser()
    if file.is_file() and file.suffix != ".safetensors":  # of one that is gone there may be a copy
        raise UserError(f"{flag} {text}: give a .safetensors file, or a folder of diffusers that holds one")
    from selfflow.autoencoders.kl_autoencoder import config_beside  # brings JAX

    made = config(path=path)
    return dataclasses.replace(made, **config_beside(made, file))


def _same(one: str | Path, other: str | Path) -> bool:
    return Path(one).expanduser().absolute() == Path(other).expanduser().absolute()


def _precomputed(path: str, modality: str, asked: str) -> Precomputed:
    from selfflow.data.latent_files.manifest import MANIFEST, read_manifest

    if not path:
        raise UserError(f"{asked}: name the folder of the latents, too: --autoencoder.{modality} precomputed=FOLDER")
    told = read_manifest(Path(path).expanduser()).streams
    if modality not in told:
        raise UserError(f"{asked}: {MANIFEST} there tells of {', '.join(told)}")
    stream = told[modality]
    return Precomputed(
        channels=stream.shape[-1],
        temporal_stride=stream.temporal_stride,
        stride=stream.stride,
        images_only=modality == "image",
        name=stream.autoencoder,
        first_frame_alone=stream.causal_padding > 0,
    )
