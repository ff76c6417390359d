"""Autoencoders by name and file, as `--autoencoder.image sd-vae=PATH` gives them."""

import difflib
import typing

from selfflow.autoencoders.config import AnyAutoencoder, brought
from selfflow.errors import UserError

NAMES = {
    typing.get_args(typing.get_type_hints(config)["kind"])[0].replace("_", "-"): config
    for config in typing.get_args(AnyAutoencoder)
}


def autoencoder_of(text: str, flag: str) -> AnyAutoencoder:
    """The settings that `NAME` or `NAME=PATH` stands for, all others as they are by default.

    Args:
      text: what was given.
      flag: for errors.

    Raises:
      UserError: if there is no such autoencoder, or a path is missing or too much.
    """
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
    return config(path=path)
