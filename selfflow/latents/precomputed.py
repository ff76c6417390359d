"""Latents that were made elsewhere, beside the autoencoders that an experiment names."""

import re
from collections.abc import Mapping

from selfflow.data.built import BuiltDataset
from selfflow.encoders.config import Encoder
from selfflow.errors import UserError
from selfflow.latents.fit_autoencoder import FittedAutoencoder
from selfflow.modality import Modality


def check_precomputed(
    built: BuiltDataset,
    fitted: Mapping[str, FittedAutoencoder],
    modalities: Mapping[str, Modality],
    encoders: Mapping[str, Encoder],
) -> None:
    """Raises `UserError` unless latents that were made elsewhere are those of the autoencoders that are named.

    Args:
      built: the data set, of latents.
      fitted: the autoencoder of each modality.
      modalities: the latents that are expected.
      encoders: frozen encoders whose features are asked for.
    """
    alike = lambda text: re.sub("[^a-z0-9]", "", text.lower())
    for m, f in fitted.items():
        told = built.metadata["latents"][m]
        who, name = f"autoencoders.{m}", told["autoencoder"]
        kinds = tuple(alike(k) for k in (f.config.kind, getattr(f.config, "name", "")) if k)
        exact = re.fullmatch(r"[A-Za-z0-9_]+-[0-9a-f]{12}(-\w+)?", name)
        if f.path and name != f.identity and (exact or not alike(name).startswith(kinds)):
            raise UserError(
                f"{who} is {f.identity}, but {built.settings.source} says that its {m} latents were made by {name!r}: "
                "name that one, or correct latents.json"
            )
        if not f.path and f.config.name != name:
            raise UserError(
                f"{who}.name is {f.config.name!r}, but the latents were made by {name!r}: give it that name"
            )
        if list(modalities[m].latent) != list(told["shape"]):
            raise UserError(
                f"{who} makes latents of shape {list(modalities[m].latent)}, and those of {built.settings.source} have "
                f"{told['shape']}: correct the stride and hop in latents.json, or name the autoencoder that made them"
            )
    for m, encoder in encoders.items():
        if encoder.kind != "feature_files":
            raise UserError(
                f"alignment.encoders.{m} is {encoder.kind}, which needs the {m} itself, and {built.name} has latents "
                "alone: name a file of features"
            )
