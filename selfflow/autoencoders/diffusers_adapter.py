"""Autoencoders of diffusers, run by their own torch code on a CPU or a GPU.

Encoding happens once, so that the original code is preferred to a port.
"""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load, save

from selfflow.autoencoders.config import Diffusers
from selfflow.autoencoders.diffusers_model import (
    decode,
    encode,
    load_model,
    measure,
    media_axes,
    model_input,
    normalisation,
)
from selfflow.autoencoders.media import check_latents, check_media
from selfflow.errors import UserError
from selfflow.media import MEDIA, from_unit_range, medium_of

_BATCH_SIZE = {"image": 8, "video": 1, "audio": 4}  # clips per call


class DiffusersAutoencoder:
    """Raw media <-> latents of about unit variance; see `config.Autoencoder`.

    Args:
      config: config of the autoencoder.
      path: the file that `pin_revision` wrote; the weights themselves are read where they are.

    Raises:
      UserError: if diffusers or torch is missing, there is no such autoencoder, or it differs from the pinned one.
    """

    def __init__(self, config: Diffusers, path: Path):
        self.config = config
        pinned = {name: bytes(array).decode() for name, array in load(path.read_bytes()).items()}
        # The pinned path is used if that of the config does not exist: it may be relative to another folder.
        source = pinned["path"]
        if config.path and (Path(config.path).expanduser().is_dir() or not Path(source).is_dir()):
            source = config.path
        self._model, self.identity = load_model(config.name, source, config.subfolder, config.dtype)
        if self.identity != pinned["identity"]:
            raise UserError(
                f"{source} is {self.identity}, and was {pinned['identity']}: give the autoencoder that made the "
                f"latents, or remove {path} for another"
            )
        self.batch_size = _BATCH_SIZE[config.modalities[0]]
        self._mean, self._scale = normalisation(self._model, config.channels)
        self._is_audio = config.modalities == ("audio",)
        # A network of images encodes the frames of a video one by one, as images.
        by_image = not self._is_audio and (config.images_only or media_axes(self._model) == 4)
        self._medium = MEDIA["image"] if by_image else medium_of(config.modalities[0])

    def encode(self, media: np.ndarray) -> Float[np.ndarray, "... C"]:
        """Returns the means of the latents."""
        return self.encode_distribution(media)[0]

    def encode_distribution(
        self, media: np.ndarray
    ) -> tuple[Float[np.ndarray, "... C"], Float[np.ndarray, "... C"] | None]:
        """Mean and standard deviation of the latents; leading axes are kept.

        The standard deviation is None if the autoencoder is deterministic. Frames or samples after the last whole
        latent frame are left out.

        Raises:
          UserError: if the stride does not divide height and width, a clip is shorter than a latent frame, or media
            have another dtype or other axes.
        """
        check_media(media, self._medium.name)
        if not self._is_audio:
            # Checks height and width; the length may be arbitrary.
            dataclasses.replace(self.config, images_only=True).latent_shape(media.shape[-3:])
        media = self._whole_latent_frames(media)
        axes = len(self._medium.axes)
        lead, clips = media.shape[:-axes], media.reshape(-1, *media.shape[-axes:])
        means, stds = [], []
        for start in range(0, len(clips), self.batch_size):
            mean, std = self._encode_batch(clips[start : start + self.batch_size])
            means.append(mean)
            stds.append(std)
        mean = np.concatenate(means)
        std = None if stds[0] is None else np.concatenate(stds)
        if self._is_audio:
            # An encoder may round lengths in its own way.
            frames = media.shape[-1] // self.config.temporal_stride
            mean, std = mean[:, :frames], None if std is None else std[:, :frames]
        mean = (mean - self._mean) * self._scale
        shape = (*lead, *mean.shape[1:])
        return mean.reshape(shape), None if std is None else (std * self._scale).reshape(shape)

    def _whole_latent_frames(self, media: np.ndarray) -> np.ndarray:
        """Media without what follows the last whole latent frame."""
        stride, padding = self.config.temporal_stride, self.config.causal_padding
        if self._is_audio:
            if media.shape[-1] < stride:
                raise UserError(
                    f"a clip of {media.shape[-1]} samples is shorter than a latent frame, {stride} of them: give "
                    "longer clips"
                )
            return media[..., : media.shape[-1] // stride * stride]
        if self._medium.has_time:
            frames = (media.shape[-4] + padding) // stride * stride - padding
            return media[..., :frames, :, :, :]
        return media

    def _encode_batch(self, media: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        import torch

        x = torch.as_tensor(model_input(media, self._model))
        with torch.inference_mode():
            return encode(self._model, x, first_frame=not self._medium.has_time)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Raw media of latents; leading axes are kept.

        Raises:
          UserError: if latents have other axes or are empty.
        """
        import torch

        check_latents(latents, self._medium.name)
        axes = len(self._medium.latent_axes)
        lead = latents.shape[:-axes]
        z = np.asarray(latents, np.float32).reshape(-1, *latents.shape[-axes:]) / self._scale + self._mean
        parts = []
        for start in range(0, len(z), self.batch_size):
            x = torch.as_tensor(np.moveaxis(z[start : start + self.batch_size], -1, 1).copy())
            if not self._medium.has_time and media_axes(self._model) == 5:
                x = x[:, :, None]  # an image is a video of one frame
            with torch.inference_mode():
                parts.append(np.nan_to_num(decode(self._model, x)))
        x = np.concatenate(parts)
        if self._is_audio:
            return self._to_audio(x, latents.shape[-2]).reshape(*lead, -1)
        if not self._medium.has_time and x.ndim == 5:
            x = x[:, 0]
        return from_unit_range(x, MEDIA["image"]).reshape(*lead, *x.shape[1:])

    def _to_audio(self, x: Float[np.ndarray, "B S channels"], frames: int) -> np.ndarray:
        """Mono int16 audio [B, samples] of `frames` latent frames. A decoder may round lengths in its own way."""
        samples = from_unit_range(x.mean(axis=-1), MEDIA["audio"])
        length = frames * self.config.temporal_stride
        return np.pad(samples[:, :length], ((0, 0), (0, max(0, length - samples.shape[1]))))


def pin_revision(config: Diffusers, path: Path) -> str:
    """Writes the file that `DiffusersAutoencoder` reads, with identity and path of the weights. Returns the identity.

    Raises:
      UserError: if there is no such autoencoder, or a field of `config` differs from it.
    """
    model, identity = load_model(config.name, config.path, config.subfolder, config.dtype)
    for name, value in measure(model, config.images_only).items():
        if getattr(config, name) != value:
            raise UserError(f"{config.path}: its {name} is {value}, and the config's {getattr(config, name)}: set it")
    folder = Path(config.path).expanduser()
    # A folder by its absolute path; a name on the hub as it is.
    source = str(folder.absolute()) if folder.is_dir() else config.path
    texts = {"path": source, "identity": identity}
    path.write_bytes(save({name: np.frombuffer(text.encode(), np.uint8) for name, text in texts.items()}))
    return identity


def read_config(name: str, path: str, images_only: bool) -> Diffusers:
    """Returns the config of the autoencoder of a class in a folder or on the hub, measured on small media.

    Raises:
      UserError: as `pin_revision`.
    """
    model, _ = load_model(name, path, "", "float32")
    return Diffusers(path=path, name=name, images_only=images_only, **measure(model, images_only))
