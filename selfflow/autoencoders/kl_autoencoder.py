"""AutoencoderKL of diffusers in JAX, of images and of the frames of videos, with pretrained weights."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from selfflow.autoencoders import kl
from selfflow.autoencoders.config import SDVAE, Flux2VAE, config_without_path
from selfflow.autoencoders.kl_weights import read_kl
from selfflow.autoencoders.media import check_latents, check_media
from selfflow.data.shards import one_line
from selfflow.encoders.batching import in_batches
from selfflow.encoders.convolution import Weights
from selfflow.errors import UserError
from selfflow.media import MEDIA, from_unit_range, to_unit_range
from selfflow.serialization import digest
from selfflow.weights.read import read_weights, sha256_of

# Limits of one call: activations take some thousand bytes per pixel.
_MAX_IMAGES, _MAX_PIXELS = 8, 2**20
_BATCH_NORM_EPS = 1e-4  # batch_norm_eps of AutoencoderKLFlux2


class KLAutoencoder:
    """uint8 images [..., H, W, 3] <-> float32 latents [..., H / s, W / s, C]; see `config.Autoencoder`.

    Args:
      config: config of the autoencoder.
      path: path of its weights, .safetensors.

    Raises:
      UserError: naming file and key, if weights are missing, damaged or of another model, or the field of `config` that
        differs from them.
    """

    batch_size = _MAX_IMAGES

    def __init__(self, config: SDVAE | Flux2VAE, path: Path):
        self.config = config
        weights = Weights(path, read_weights(path), "AutoencoderKL")
        packed = config.kind == "flux2_vae"
        # Before the network is read, which accepts a batch normalisation for either kind.
        self._mean, self._scale = _normalisation(config, weights)
        params = read_kl(weights)
        _check_sizes(config, params, path, 4 if packed else 1)
        self._params = jax.tree.map(lambda x: x.astype(config.dtype), params)
        self.identity = f"{config.kind}-{digest(f'{config_without_path(config)} {sha256_of(path)}', 12)}"
        self._encode = jax.jit(partial(_encode, groups=config.groups, packed=packed))
        self._decode = jax.jit(partial(_decode, groups=config.groups, packed=packed))

    def encode(self, media: np.ndarray) -> Float[np.ndarray, "... C"]:
        """Returns the means of the latents of images."""
        return self.encode_distribution(media)[0]

    def encode_distribution(self, media: np.ndarray) -> tuple[Float[np.ndarray, "... C"], Float[np.ndarray, "... C"]]:
        """Mean and standard deviation of the latents of images.

        Raises:
          UserError: if the stride does not divide height and width, or media have another dtype or other axes.
        """
        check_media(media, "image")
        shape = self.config.latent_shape(media.shape)
        images = media.reshape(-1, *media.shape[-3:])
        # Both in one array, so that images are encoded once.
        moments = in_batches(lambda x: self._encode(self._params, x), images, _batch_limit(*images.shape[1:3]))
        mean, std = np.split(moments, 2, axis=-1)
        return ((mean - self._mean) * self._scale).reshape(shape), (std * self._scale).reshape(shape)

    def decode(self, latents: np.ndarray) -> UInt8[np.ndarray, "... H W 3"]:
        """Images of latents.

        Raises:
          UserError: if latents have other axes or are empty.
        """
        check_latents(latents, "image")
        z = np.asarray(latents, np.float32).reshape(-1, *latents.shape[-3:]) / self._scale + self._mean
        limit = _batch_limit(*(size * self.config.stride for size in z.shape[1:3]))
        images = in_batches(lambda x: self._decode(self._params, x), z, limit)
        images = from_unit_range(np.nan_to_num(images), MEDIA["image"])
        return images.reshape(*latents.shape[:-3], *images.shape[1:])


def _batch_limit(height: int, width: int) -> int:
    """Images of a size per call."""
    return max(1, min(_MAX_IMAGES, _MAX_PIXELS // (height * width)))


def _encode(params: dict[str, Any], images: UInt8[Array, "B H W 3"], groups: int, packed: bool) -> Array:
    mean, std = kl.encode(params, to_unit_range(images), groups)
    moments = (kl.pack(mean), kl.pack(std)) if packed else (mean, std)
    return jnp.concatenate(moments, axis=-1)


def _decode(params: dict[str, Any], z: Float[Array, "B h w C"], groups: int, packed: bool) -> Array:
    return kl.decode(params, kl.unpack(z) if packed else z, groups)


def _normalisation(config: SDVAE | Flux2VAE, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale of latents, (z - shift) * scale, per channel or for all of them."""
    if config.kind == "sd_vae":
        if "bn.running_mean" in weights.weights:
            raise UserError(f"{weights.path} holds a batch normalisation, as of flux2_vae: name that autoencoder")
        return np.full(1, config.shift, np.float32), np.full(1, config.scale, np.float32)
    mean, variance = (weights.take(f"bn.running_{name}", config.channels) for name in ("mean", "var"))
    if not (variance > 0).all():
        raise UserError(f"{weights.path}: bn.running_var has values that are not above 0: copy the file again")
    return mean.astype(np.float32), 1 / np.sqrt(variance.astype(np.float32) + _BATCH_NORM_EPS)


def _check_sizes(config: SDVAE | Flux2VAE, params: dict[str, Any], path: Path, packing: int) -> None:
    """Checks the sizes of weights, with `packing` positions packed into one, against the config."""
    downsamplings = sum("sample" in block for block in params["encoder"]["blocks"])
    sizes = {
        "channels": params["decoder"]["conv_in"].kernel.shape[-2] * packing,
        "stride": 2**downsamplings * round(packing**0.5),
    }
    for name, value in sizes.items():
        if value != getattr(config, name):
            raise UserError(
                f"{path}: its {name} is {value}, and that of the {config.kind} autoencoder {getattr(config, name)}: "
                "set it"
            )
    norms = [x for x in jax.tree.leaves(params, is_leaf=_is_norm) if _is_norm(x)]
    for channels in sorted({norm.scale.shape[0] for norm in norms}):
        if channels % config.groups:
            raise UserError(
                f"{path}: groups {config.groups} of the {config.kind} autoencoder do not divide its {channels} "
                "channels: set it"
            )


def _is_norm(x: Any) -> bool:
    return isinstance(x, kl.Norm)


def read_config_json(config: SDVAE | Flux2VAE, path: Path) -> dict[str, Any]:
    """Fields from the config.json of diffusers beside the weights, if there is one.

    Args:
      config: config whose kind and defaults apply.
      path: path of the weights, or their folder.

    Raises:
      UserError: if it is damaged, or of another class.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    # Beside a file of any other name it may belong to something else.
    if not file.exists() or not (path.is_dir() or path.name.startswith("diffusion_pytorch_model.")):
        return {}
    packed = config.kind == "flux2_vae"
    name = "AutoencoderKLFlux2" if packed else "AutoencoderKL"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        if settings.get("_class_name", name) != name:
            raise UserError(f"{file} is that of an {settings['_class_name']}, but {config.kind} requires an {name}")
        packing = 2 if packed else 1
        fields = {
            "channels": int(settings["latent_channels"]) * packing**2,
            "stride": 2 ** (len(settings["block_out_channels"]) - 1) * packing,
            "groups": int(settings.get("norm_num_groups", 32)),
        }
        if not packed:
            # Older files lack the scale, for which diffusers has this default.
            fields["scale"] = float(settings.get("scaling_factor", SDVAE.scale))
            fields["shift"] = float(settings.get("shift_factor") or 0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged, or not that of an {name} ({one_line(error)})") from error
    return fields
