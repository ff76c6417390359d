"""Autoencoders by name and file, as `--autoencoder.image sd-vae=PATH` gives them."""

import difflib
import typing
from pathlib import Path

from selfflow.autoencoders.config import AnyAutoencoder, Convolutional, brought
from selfflow.errors import UserError

NAMES = {
    typing.get_args(typing.get_type_hints(config)["kind"])[0].replace("_", "-"): config
    for config in typing.get_args(AnyAutoencoder)
}


def autoencoder_of(text: str, modality: str) -> AnyAutoencoder:
    """The settings that `NAME` or `NAME=PATH` stands for; what neither name nor file tells is as it is by default.

    Args:
      text: what was given.
      modality: what it is for.

    Raises:
      UserError: if there is no such autoencoder, or a path is missing or too much.
    """
    flag = f"--autoencoder.{modality}"
    name, given, path = text.partition("=")
    config = NAMES.get(name.replace("_", "-"))
    if config is None:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(NAMES)}"
        raise UserError(f"{flag} {text}: no autoencoder {name!r}; {hint}")
    if not brought(config):
        if given:
            raise UserError(f"{flag} {text}: {name} is fitted to the data and has no file: write {flag} {name}")
        return config()
    if not path:
        raise UserError(f"{flag} {text}: {name} has weights of its own: write {flag} {name}=PATH")
    if config is Convolutional:
        from selfflow.autoencoders.trained import shape_of  # brings JAX

        network = shape_of(Path(path).expanduser())
        stride = network.cell[1] if network.pictures else 0
        return Convolutional(
            path=path, channels=network.channels, hop=network.cell[0], stride=stride, stills=modality == "image"
        )
    return config(path=path)
