"""Loads autoencoders: one function maps a config to its implementation, so that configs import nothing heavy."""

from pathlib import Path
from typing import assert_never

from selfflow.autoencoders.config import (
    SDVAE,
    AnyAutoencoder,
    Autoencoder,
    Convolutional,
    Diffusers,
    Flux2VAE,
    LogMel,
    MdctPCA,
    PatchPCA,
    Precomputed,
)
from selfflow.errors import UserError


def load_autoencoder(config: AnyAutoencoder, path: Path) -> Autoencoder:
    """Reads the weights of an autoencoder.

    Args:
      config: config of the autoencoder.
      path: file or folder of its weights.

    Raises:
      UserError: naming file and key, if weights are missing, damaged or of another model, or if a package that reads
        them is not installed.
    """
    match config:
        case SDVAE() | Flux2VAE():
            from selfflow.autoencoders.kl_autoencoder import KLAutoencoder

            return KLAutoencoder(config, path)
        case Convolutional():
            from selfflow.autoencoders.convolutional_autoencoder import ConvolutionalAutoencoder

            return ConvolutionalAutoencoder(config, path)
        case Diffusers():
            from selfflow.autoencoders.diffusers_adapter import DiffusersAutoencoder

            return DiffusersAutoencoder(config, path)
        case Precomputed():
            raise UserError(
                f"the autoencoder {config.name} is present as latents alone and cannot decode: name its weights, as "
                f"with --autoencoder.{config.modalities[0]} NAME=PATH"
            )
        case PatchPCA() | MdctPCA() | LogMel():
            from safetensors.numpy import load_file

            from selfflow.autoencoders.linear import LinearAutoencoder

            return LinearAutoencoder(config, load_file(path))
        case _:
            assert_never(config)
