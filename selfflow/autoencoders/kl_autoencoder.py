"""AutoencoderKL in JAX: pictures and the frames of films, with weights that the user brings."""

import hashlib
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
from selfflow.autoencoders.media import check_latents, check_media
from selfflow.data.shards import one_line
from selfflow.encoders.batching import in_batches
from selfflow.encoders.convolution import Weights
from selfflow.errors import UserError
from selfflow.media import MEDIA, from_unit_range, to_unit_range
from selfflow.weights.read import read_weights, sha256_of

_PICTURES, _PIXELS = 8, 2**20  # in one call, at most: what takes memory is some thousand bytes a pixel
_BN_EPS = 1e-4  # AutoencoderKLFlux2's batch_norm_eps


class KLAutoencoder:
    """uint8 pictures [..., H, W, 3] <-> float32 latents [..., H / s, W / s, C]; see `config.Autoencoder`.

    Args:
      config: which.
      path: its weights, .safetensors.

    Raises:
      UserError: naming file and key, if weights are missing, damaged or of another model, or the field of `config`
        that they do not have.
    """

    batch_size = _PICTURES

    def __init__(self, config: SDVAE | Flux2VAE, path: Path):
        self.config = config
        tensors = read_weights(path)
        weights = Weights(path, tensors, "AutoencoderKL")
        packed = config.kind == "flux2_vae"
        # Before the network is read, which takes a batch normalisation for granted where there is one.
        mean, scale = _normalisation(config, weights)
        params = kl.read_kl(weights)
        _check(config, params, path, 4 if packed else 1)
        cast = lambda x: x.astype(config.dtype)
        self._params = jax.tree.map(cast, params)
        self._mean, self._scale = mean, scale
        told = hashlib.sha256(f"{config_without_path(config)} {sha256_of(path)}".encode()).hexdigest()
        self.identity = f"{config.kind}-{told[:12]}"
        self._encode = jax.jit(partial(_encoded, groups=config.groups, packed=packed))
        self._decode = jax.jit(partial(_decoded, groups=config.groups, packed=packed))

    def encode(self, media: np.ndarray) -> Float[np.ndarray, "... C"]:
        """The means of the latents of pictures."""
        return self.encode_distribution(media)[0]

    def encode_distribution(self, media: np.ndarray) -> tuple[Float[np.ndarray, "... C"], Float[np.ndarray, "... C"]]:
        """Mean and standard deviation of the latents of pictures.

        Raises:
          UserError: if the stride does not divide them, or they are other than data sets have them.
        """
        check_media(media, "image")
        shape = self.config.latent_shape(media.shape)
        pictures = media.reshape(-1, *media.shape[-3:])
        # Side by side, so that pictures pass through once.
        both = in_batches(lambda x: self._encode(self._params, x), pictures, _together(*pictures.shape[1:3]))
        mean, deviation = np.split(both, 2, axis=-1)
        return ((mean - self._mean) * self._scale).reshape(shape), (deviation * self._scale).reshape(shape)

    def decode(self, latents: np.ndarray) -> UInt8[np.ndarray, "... H W 3"]:
        """Pictures of latents.

        Raises:
          UserError: if there are none.
        """
        check_latents(latents, "image")
        z = np.asarray(latents, np.float32).reshape(-1, *latents.shape[-3:]) / self._scale + self._mean
        most = _together(*(size * self.config.stride for size in z.shape[1:3]))
        pictures = in_batches(lambda x: self._decode(self._params, x), z, most)
        return from_unit_range(np.nan_to_num(pictures), MEDIA["image"]).reshape(
            *latents.shape[:-3], *pictures.shape[1:]
        )


def _together(height: int, width: int) -> int:
    """How many pictures of a size are one call."""
    return max(1, min(_PICTURES, _PIXELS // (height * width)))


def _encoded(params: dict[str, Any], pictures: UInt8[Array, "B H W 3"], groups: int, packed: bool) -> Array:
    mean, deviation = kl.encode(params, to_unit_range(pictures), groups)
    both = (kl.pack(mean), kl.pack(deviation)) if packed else (mean, deviation)
    return jnp.concatenate(both, axis=-1)


def _decoded(params: dict[str, Any], z: Float[Array, "B h w C"], groups: int, packed: bool) -> Array:
    return kl.decode(params, kl.unpack(z) if packed else z, groups)


def _normalisation(config: SDVAE | Flux2VAE, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """Latents are (z - first) * second, per channel or for all of them."""
    if config.kind == "sd_vae":
        if "bn.running_mean" in weights.weights:
            raise UserError(f"{weights.path} holds a batch normalisation, as of flux2_vae: take that autoencoder")
        return np.full(1, config.shift, np.float32), np.full(1, config.scale, np.float32)
    mean, variance = (weights.take(f"bn.running_{name}", config.channels) for name in ("mean", "var"))
    if not (variance > 0).all():
        raise UserError(f"{weights.path}: bn.running_var must be above 0")
    return mean.astype(np.float32), 1 / np.sqrt(variance.astype(np.float32) + _BN_EPS)


def _check(config: SDVAE | Flux2VAE, params: dict[str, Any], path: Path, packing: int) -> None:
    """That weights are as large as the settings say."""
    latent = params["decoder"]["conv_in"].kernel.shape[-2] * packing
    stride = 2 ** sum("sample" in block for block in params["encoder"]["blocks"]) * round(packing**0.5)
    for name, found, said in (("channels", latent, config.channels), ("stride", stride, config.stride)):
        if found != said:
            raise UserError(f"{path}: its {name} is {found}, and that of the {config.kind} autoencoder {said}: set it")
    norms = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, kl.Norm))
    for channels in sorted({x.scale.shape[0] for x in norms if isinstance(x, kl.Norm)}):
        if channels % config.groups:
            raise UserError(
                f"{path}: groups {config.groups} of the {config.kind} autoencoder do not divide its {channels} "
                "channels: set it"
            )


def config_beside(config: SDVAE | Flux2VAE, path: Path) -> dict[str, Any]:
    """The settings that diffusers' config.json tells, where one lies beside the weights.

    Args:
      config: whose.
      path: the weights, or their folder.

    Raises:
      UserError: if it is damaged, or of another class.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    # Beside a file of any other name it may tell of something else.
    if not file.exists() or not (path.is_dir() or path.name.startswith("diffusion_pytorch_model.")):
        return {}
    packed = config.kind == "flux2_vae"
    name = "AutoencoderKLFlux2" if packed else "AutoencoderKL"
    try:
        told = json.loads(file.read_text())
        if told.get("_class_name", name) != name:
            raise UserError(f"{file} tells of an {told['_class_name']}, and {config.kind} is for an {name}")
        packing = 2 if packed else 1
        found = {
            "channels": int(told["latent_channels"]) * packing**2,
            "stride": 2 ** (len(told["block_out_channels"]) - 1) * packing,
            "groups": int(told.get("norm_num_groups", 32)),
        }
        if not packed:
            # Older files do not tell it, and diffusers takes this.
            scale, shift = told.get("scaling_factor", SDVAE.scale), told.get("shift_factor") or 0
            found |= {"scale": float(scale), "shift": float(shift)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged, or not that of an {name} ({one_line(error)})") from error
    return found
