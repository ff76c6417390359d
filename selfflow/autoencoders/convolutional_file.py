"""The file of a trained convolutional autoencoder: weights, normalisation and the shape of the network."""

import json
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from selfflow.autoencoders.config import Convolutional
from selfflow.autoencoders.convolutional import Network
from selfflow.errors import UserError
from selfflow.media import images_only, medium_of
from selfflow.serialization import from_json, to_json
from selfflow.storage.atomic import atomic_write

_FORMAT = "selfflow-autoencoder-2"  # increment it when the meaning of the weights changes
_METADATA_KEY = "autoencoder"


def write(
    path: Path,
    network: Network,
    rate: int,
    params: dict[str, np.ndarray],
    mean: Float[np.ndarray, "C"],
    std: Float[np.ndarray, "C"],
) -> None:
    """Writes an autoencoder as safetensors.

    Args:
      path: path of the file.
      network: shape of the network.
      rate: audio samples per second; 0 for images and video.
      params: parameters by dotted names.
      mean, std: mean and standard deviation of each latent channel, by which latents are normalised.
    """
    tensors = {name: np.ascontiguousarray(x, np.float32) for name, x in params.items()}
    tensors |= {"normalisation.mean": np.float32(mean), "normalisation.deviation": np.float32(std)}
    # A single entry, because safetensors writes several in varying order, which would change the hash of the file.
    metadata = {"format": _FORMAT, "network": to_json(network), "sample_rate": rate}
    with atomic_write(path) as partial:
        partial.write_bytes(save(tensors, {_METADATA_KEY: json.dumps(metadata, sort_keys=True)}))


def read_config(path: Path, modality: str) -> Convolutional:
    """Returns the config of the autoencoder in a file, for a modality.

    Raises:
      UserError: if the file contains no autoencoder, or one for other modalities.
    """
    network, rate, _ = read(path, weights=False)
    medium = medium_of(modality)
    if not (medium.is_visual if network.is_visual else medium.is_audio):
        encodes = "images and video" if network.is_visual else "audio"
        raise UserError(f"{path} is an autoencoder of {encodes}: give one of {modality}")
    return Convolutional(
        channels=network.channels,
        temporal_stride=network.downsampling[0],
        stride=network.downsampling[1] if network.is_visual else 0,
        images_only=images_only([modality]),
        path=str(path),
        sample_rate=rate,
    )


def read(path: Path, weights: bool = True) -> tuple[Network, int, dict[str, np.ndarray]]:
    """Network, audio samples per second and tensors of the autoencoder in a file.

    Raises:
      UserError: if the file is missing or damaged, holds other data, or holds a number that is not finite.
    """
    try:
        with safe_open(path, "np") as file:
            metadata = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
            _check_format(metadata.get("format"), path)
            rate, network = int(metadata["sample_rate"]), from_json(metadata["network"], Network, str(path))
            tensors = {name: file.get_tensor(name) for name in (file.keys() if weights else ())}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is missing or damaged, or not a trained convolutional autoencoder ({error}): give that of a run "
            "such as `selfflow train experiments/autoencoder_image.py`"
        ) from error
    for name, x in tensors.items():
        if not np.isfinite(x).all():
            raise UserError(f"{path}: {name} holds NaN or infinity: train it again")
    return network, rate, tensors


def _check_format(version: str | None, path: Path) -> None:
    if version == _FORMAT:
        return
    if str(version).startswith(_FORMAT.rstrip("0123456789")):
        raise UserError(f"{path} was trained by another version of selfflow ({version}): train it again")
    raise UserError(
        f"{path} holds no trained convolutional autoencoder (its format is {version}): give that of a run such as "
        "`selfflow train experiments/autoencoder_image.py`"
    )
