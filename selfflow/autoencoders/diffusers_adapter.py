"""Autoencoders of diffusers through their publishers' own code, in torch on a CPU or a GPU.

Encoding happens once, so that their code serves better than a copy of it. What differs from class to class is small:
whether latents come as a distribution, by what they are normalised, and how many axes the media have.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load, save

from selfflow.autoencoders.config import Diffusers
from selfflow.autoencoders.media import check_latents, check_media
from selfflow.data.shards import one_line
from selfflow.errors import UserError
from selfflow.media import MEDIA, from_unit_range, to_unit_range

_BATCH = {"image": 8, "video": 1, "audio": 4}  # of media in one call


class DiffusersAutoencoder:
    """Media <-> latents of about unit variance; see `config.Autoencoder`.

    Args:
      config: which.
      path: what `pin_revision` wrote: weights themselves stay where they lie.

    Raises:
      UserError: if diffusers or torch is missing, there is no such autoencoder, or it is another than was pinned.
    """

    def __init__(self, config: Diffusers, path: Path):
        told = load(path.read_bytes())
        self.config = config
        # Where it was when it was pinned, if it is not where the settings say: a path may be relative, or left out.
        where = bytes(told["path"]).decode()
        if config.path and (Path(config.path).expanduser().is_dir() or not Path(where).is_dir()):
            where = config.path
        self._model, self.identity = load_model(config.name, where, config.subfolder, config.dtype)
        if self.identity != (known := bytes(told["identity"]).decode()):
            raise UserError(
                f"{where} is {self.identity}, and was {known}: give the autoencoder that made the latents, or remove "
                f"{path} for another"
            )
        self.batch_size = _BATCH[config.modalities[0]]
        self._mean, self._scale = _normalisation(self._model, config.channels)

    def encode(self, media: np.ndarray) -> Float[np.ndarray, "... C"]:
        """The means of the latents."""
        return self.encode_distribution(media)[0]

    def encode_distribution(
        self, media: np.ndarray
    ) -> tuple[Float[np.ndarray, "... C"], Float[np.ndarray, "... C"] | None]:
        """Mean and standard deviation of the latents, whatever stands before the media's own axes; None where the
        autoencoder is sure.

        Frames or samples after the last whole latent frame are left out.

        Raises:
          UserError: if the stride does not divide pictures, a sound is shorter than a latent frame, or media are
            other than data sets have them.
        """
        config, kind = self.config, self.config.modalities[0]
        check_media(media, "image" if self._own == 3 else kind)
        if kind != "audio":  # whatever the length
            dataclasses.replace(config, images_only=True).latent_shape(media.shape[-3:])
        if self._own == 4:
            frames = (
                media.shape[-4] + config.causal_padding
            ) // config.temporal_stride * config.temporal_stride - config.causal_padding
            media = media[..., :frames, :, :, :]
        elif kind == "audio":
            if media.shape[-1] < config.temporal_stride:
                raise UserError(
                    f"a clip of {media.shape[-1]} samples is shorter than a latent frame, {config.temporal_stride} of them"
                )
            media = media[..., : media.shape[-1] // config.temporal_stride * config.temporal_stride]
        before, clips = media.shape[: -self._own], media.reshape(-1, *media.shape[-self._own :])
        parts = [self._moments(clips[i : i + self.batch_size]) for i in range(0, len(clips), self.batch_size)]
        mean, deviation = (None if part[0] is None else np.concatenate(part) for part in zip(*parts))
        if kind == "audio":  # an encoder may round lengths its own way
            frames = media.shape[-1] // config.temporal_stride
            mean, deviation = mean[:, :frames], None if deviation is None else deviation[:, :frames]
        mean = (mean - self._mean) * self._scale
        shape = (*before, *mean.shape[1:])
        return mean.reshape(shape), None if deviation is None else (deviation * self._scale).reshape(shape)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Media of latents.

        Raises:
          UserError: if there are none.
        """
        import torch

        kind = self.config.modalities[0]
        check_latents(latents, "image" if self._own == 3 else kind)
        own = 2 if kind == "audio" else self._own
        z = np.asarray(latents, np.float32).reshape(-1, *latents.shape[-own:]) / self._scale + self._mean
        found = []
        for start in range(0, len(z), self.batch_size):
            x = torch.as_tensor(np.moveaxis(z[start : start + self.batch_size], -1, 1).copy())
            if own == 3 and axes_of(self._model) == 5:
                x = x[:, :, None]
            with torch.inference_mode():
                found.append(np.nan_to_num(_decoded(self._model, x)))
        made = np.concatenate(found)
        before = latents.shape[:-own]
        if kind == "audio":
            sound = from_unit_range(made.mean(axis=-1), MEDIA["audio"])
            # A decoder may round lengths its own way; a latent frame is a hop.
            length = latents.shape[-2] * self.config.temporal_stride
            sound = np.pad(sound[:, :length], ((0, 0), (0, max(0, length - sound.shape[1]))))
            return sound.reshape(*before, length)
        if own == 3 and made.ndim == 5:
            made = made[:, 0]
        return from_unit_range(made, MEDIA["image"]).reshape(*before, *made.shape[1:])

    @property
    def _own(self) -> int:
        """How many axes of the media are one sample's; a network of pictures takes films frame by frame."""
        if self.config.modalities == ("audio",):
            return 1
        return 3 if self.config.images_only or axes_of(self._model) == 4 else 4

    def _moments(self, media: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        import torch

        x = torch.as_tensor(_as_torch(media, self._model))
        with torch.inference_mode():
            return _encoded(self._model, x, one=self._own == 3)


def pin_revision(config: Diffusers, path: Path) -> str:
    """Writes what `DiffusersAutoencoder` reads: which autoencoder it is, and where it was. Returns its identity.

    Raises:
      UserError: if there is no such autoencoder, or it is not as the settings say.
    """
    model, identity = load_model(config.name, config.path, config.subfolder, config.dtype)
    found = _clock(model, config.images_only)
    for name, value in found.items():
        if getattr(config, name) != value:
            raise UserError(f"{config.path}: its {name} is {value}, and the setting {getattr(config, name)}: set it")
    told = {"path": _lasting(config.path), "identity": identity}
    path.write_bytes(save({name: np.frombuffer(text.encode(), np.uint8) for name, text in told.items()}))
    return identity


def _lasting(path: str) -> str:
    """A folder by its absolute path; a name on the hub as it is."""
    folder = Path(path).expanduser()
    return str(folder.absolute()) if folder.is_dir() else path


def read_config(name: str, path: str, stills: bool) -> Diffusers:
    """The settings of the autoencoder of a class in a folder or on the hub, found by trying it.

    Raises:
      UserError: as `pin_revision`.
    """
    model, _ = load_model(name, path, "", "float32")
    return Diffusers(path=path, name=name, images_only=stills, **_clock(model, stills))


def load_model(name: str, path: str, subfolder: str, dtype: str) -> tuple[Any, str]:
    """An autoencoder of diffusers and its identity: class and hash of weights and settings.

    Raises:
      UserError: if diffusers or torch is missing, or there is no such autoencoder.
    """
    key = (name, path, subfolder, dtype)
    if key in _OPENED:
        return _OPENED[key]
    try:
        import diffusers
        import torch
    except ImportError as error:
        raise UserError(
            f"the autoencoder {path} is run by diffusers and torch, and {error.name} is missing: "
            "pip install 'selfflow[diffusers]'"
        ) from None
    kind = getattr(diffusers, name, None)
    known = isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)
    if not known or not all(hasattr(kind, method) for method in ("encode", "decode")):
        raise UserError(f"name of the diffusers autoencoder is {name!r}: give its class, such as AutoencoderKLWan")
    folder = Path(path).expanduser()
    source = str(folder) if folder.is_dir() else path
    if not path or (not folder.is_dir() and (folder.is_absolute() or path.count("/") != 1)):
        raise UserError(f"path of the diffusers autoencoder is {path!r}: give its folder, or a name such as Org/model")
    options = {"use_safetensors": True, "torch_dtype": getattr(torch, dtype), "low_cpu_mem_usage": False}
    try:
        model, report = kind.from_pretrained(source, subfolder=subfolder or None, output_loading_info=True, **options)
    except Exception as error:  # a dozen classes, from missing fields to damaged files
        raise UserError(f"diffusers cannot read {path} as {name}: {' '.join(str(error).split())[:300]}") from None
    if wrong := sorted(report["missing_keys"]) or sorted(report["unexpected_keys"]):
        raise UserError(f"{path} is no {name}: {wrong[0]} is missing or too much, {len(wrong)} in all")
    digest = hashlib.sha256(json.dumps(_plain(dict(model.config)), sort_keys=True).encode())
    for key_, tensor in sorted(model.state_dict().items()):
        digest.update(key_.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else str(tensor).encode())
    model = model.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
    if axes_of(model) == 3 and hasattr(model, "enable_tiling"):
        model.enable_tiling()  # long sounds in overlapping parts
    _OPENED.clear()  # whose memory may be needed
    _OPENED[key] = model, f"{name}-{digest.hexdigest()[:12]}"
    return _OPENED[key]


_OPENED: dict[tuple, tuple[Any, str]] = {}


def axes_of(model: Any) -> int:
    """Axes of its media: 3 for sound [B, C, samples], 4 for pictures, 5 for films [B, C, T, H, W]."""
    return max(x.ndim for x in model.encoder.parameters())


def _as_torch(media: np.ndarray, model: Any) -> np.ndarray:
    """Media as the network takes them, channels first in [-1, 1]; mono sound in as many channels as it has."""
    x = to_unit_range(media)
    if axes_of(model) == 3:
        return np.repeat(x[:, None], model.config.get("audio_channels", 1), axis=1)
    x = np.moveaxis(x, -1, 1)
    return x[:, :, None] if axes_of(model) == 5 and x.ndim == 4 else np.ascontiguousarray(x)


def _encoded(model: Any, x: Any, one: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean and deviation, channels last, of media as the network takes them; `one` frame of each as a picture."""
    out = model.encode(x.to(model.device, model.dtype))
    drawn = getattr(out, "latent_dist", None)
    if drawn is None:
        mean, deviation = getattr(out, "latent", None), None
        mean = out.latents if mean is None else mean
    else:
        mean, deviation = drawn.mode(), getattr(drawn, "std", None)
    plain = lambda z: np.moveaxis((z[:, :, 0] if one and z.ndim == 5 else z).float().cpu().numpy(), 1, -1)
    return plain(mean), None if deviation is None else plain(deviation)


def _decoded(model: Any, z: Any) -> np.ndarray:
    """Media, channels last, of latents as the network takes them."""
    return np.moveaxis(model.decode(z.to(model.device, model.dtype)).sample.float().cpu().numpy(), 1, -1)


def _normalisation(model: Any, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents are (z - first) * second, as the pipelines of diffusers do it."""
    told = dict(model.config)
    if getattr(model, "bn", None) is not None:
        raise UserError(f"{type(model).__name__} normalises by a layer of its own: take flux2-vae for FLUX.2's")
    if "latents_mean" not in told and getattr(model, "latents_mean", None) is not None:  # kept beside the weights
        kept = (getattr(model, f"latents_{name}").float().cpu().numpy() for name in ("mean", "std"))
        told["latents_mean"], told["latents_std"] = kept
    if told.get("latents_mean") is not None and told.get("latents_std") is not None:
        mean, std = (np.array(told[f"latents_{name}"], np.float32).ravel() for name in ("mean", "std"))
        if len(mean) != channels or len(std) != channels or not (std > 0).all():
            raise UserError(
                f"latents_mean and latents_std of {model.__class__.__name__} do not fit {channels} channels"
            )
        return mean, (told.get("scaling_factor") or 1.0) / std
    shift, scale = told.get("shift_factor") or 0.0, told.get("scaling_factor") or 1.0
    return np.full(channels, shift, np.float32), np.full(channels, scale, np.float32)


def _clock(model: Any, stills: bool) -> dict[str, int]:
    """Channels, hop, stride and rate of an autoencoder, by trying it on small media."""
    try:
        return _tried(model, stills)
    except UserError:
        raise
    except Exception as error:  # whatever its class makes of media that it is not for
        raise UserError(
            f"{type(model).__name__} cannot be tried on small media ({one_line(error)}): it may be for others, or its "
            "settings and weights do not belong together"
        ) from error


def _tried(model: Any, stills: bool) -> dict[str, int]:
    if axes_of(model) == 3:
        length = 2**15
        shape = _there_and_back(model, (model.config.get("audio_channels", 1), length))
        rate = model.config.get("sampling_rate") or model.config.get("sample_rate") or 0
        hop = getattr(model, "hop_length", None) or length // shape[1]
        return {"channels": shape[-1], "temporal_stride": int(hop), "stride": 0, "sample_rate": int(rate)}
    side = 64
    if axes_of(model) == 4 or stills:
        shape = _there_and_back(model, (3, *(1,) * (axes_of(model) - 4), side, side))
        return {"channels": shape[-1], "temporal_stride": 1, "stride": side // shape[-2], "sample_rate": 0}
    told = getattr(model, "temporal_compression_ratio", None)
    frames = 1 + 2 * int(told or 8)
    shape = _there_and_back(model, (3, frames, side, side))
    if shape[1] < 2 or (frames - 1) % (shape[1] - 1):
        raise UserError(
            f"{type(model).__name__} makes {shape[1]} latent frames of {frames}: a film's first frame must stand alone"
        )
    hop = (frames - 1) // (shape[1] - 1)
    if told and told != hop:
        raise UserError(f"{type(model).__name__} says {told} frames to a latent one, and {frames} give {shape[1]}")
    return {"channels": shape[-1], "temporal_stride": hop, "stride": side // shape[-2], "sample_rate": 0}


def _there_and_back(model: Any, media: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the latent, channels last, of media [C, ...], which come back from it as large as they were."""
    import torch

    with torch.inference_mode():
        z = _encoded(model, torch.zeros(1, *media))[0]
        made = _decoded(model, torch.as_tensor(np.moveaxis(z, -1, 1).copy()))
    if made.ndim != len(media) + 1 or (len(media) > 2 and made.shape[1:] != (*media[1:], 3)):
        raise UserError(f"{type(model).__name__} makes {list(made.shape[1:])} of media {list(media)}: it is for others")
    return z.shape


def _plain(told: dict[str, Any]) -> dict[str, Any]:
    """A config as JSON data, without what says where and by what version it was written."""
    return {
        name: value if isinstance(value, int | float | str | list | None) else str(value)
        for name, value in told.items()
        if not name.startswith("_")
    }
