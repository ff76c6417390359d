"""Models of diffusers: loading, encoding and decoding in torch, and properties that are measured.

Classes differ in whether latents are a distribution, in their normalisation, and in the axes of the media.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from selfflow.data.shards import one_line
from selfflow.errors import UserError
from selfflow.media import to_unit_range

# Sizes of the media on which `measure` runs a model: audio samples, and height and width of images and video.
_TRIAL_SAMPLES, _TRIAL_SIDE = 2**15, 64

_LOADED: dict[tuple[str, str, str, str], tuple[Any, str]] = {}


def load_model(name: str, path: str, subfolder: str, dtype: str) -> tuple[Any, str]:
    """Returns an autoencoder of diffusers and its identity: class and hash of weights and config. The most
    recently loaded autoencoder is cached.

    Raises:
      UserError: if diffusers or torch is missing, or there is no such autoencoder.
    """
    key = (name, path, subfolder, dtype)
    if key in _LOADED:
        return _LOADED[key]
    try:
        import diffusers
        import torch
    except ImportError as error:
        raise UserError(
            f"the autoencoder {path} is run by diffusers and torch, and {error.name} is missing: "
            "pip install 'selfflow[diffusers]'"
        ) from None
    kind = getattr(diffusers, name, None)
    is_model = isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)
    if not is_model or not all(hasattr(kind, method) for method in ("encode", "decode")):
        raise UserError(f"name of the diffusers autoencoder is {name!r}: give its class, such as AutoencoderKLWan")
    folder = Path(path).expanduser()
    source = str(folder) if folder.is_dir() else path
    if not path or (not folder.is_dir() and (folder.is_absolute() or path.count("/") != 1)):
        raise UserError(f"path of the diffusers autoencoder is {path!r}: give its folder, or a name such as Org/model")
    options = {"use_safetensors": True, "torch_dtype": getattr(torch, dtype), "low_cpu_mem_usage": False}
    try:
        model, report = kind.from_pretrained(source, subfolder=subfolder or None, output_loading_info=True, **options)
    except Exception as error:  # a dozen classes of errors, from missing fields to damaged files
        raise UserError(f"diffusers cannot read {path} as {name}: {' '.join(str(error).split())[:300]}") from None
    wrong = sorted(report["missing_keys"]) or sorted(report["unexpected_keys"])
    if wrong:
        raise UserError(f"{path} is not a {name}: {wrong[0]} is missing or unexpected, {len(wrong)} in all")
    identity = f"{name}-{_weights_digest(model)}"
    model = model.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
    if media_axes(model) == 3 and hasattr(model, "enable_tiling"):
        model.enable_tiling()  # processes long audio in overlapping parts
    _LOADED.clear()  # two models may not fit in memory
    _LOADED[key] = model, identity
    return _LOADED[key]


def _weights_digest(model: Any) -> str:
    """Hash of config and weights of a model."""
    import torch

    digest = hashlib.sha256(json.dumps(_json_config(dict(model.config)), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        # A tensor without axes cannot be viewed as bytes.
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else str(tensor).encode())
    return digest.hexdigest()[:12]


def media_axes(model: Any) -> int:
    """Returns the number of axes of the media of a model: 3 for audio [B, C, samples], 4 for images, 5 for video
    [B, C, T, H, W]."""
    return max(x.ndim for x in model.encoder.parameters())


def model_input(media: np.ndarray, model: Any) -> np.ndarray:
    """Returns raw media as inputs of a model, channels first, in [-1, 1]; mono audio is repeated for every channel."""
    x = to_unit_range(media)
    if media_axes(model) == 3:
        return np.repeat(x[:, None], model.config.get("audio_channels", 1), axis=1)
    x = np.moveaxis(x, -1, 1)
    return x[:, :, None] if media_axes(model) == 5 and x.ndim == 4 else np.ascontiguousarray(x)


def encode(model: Any, x: Any, first_frame: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns mean and standard deviation, or None, of latents, channels last; if `first_frame`, of the first latent
    frame alone."""

    def to_numpy(z: Any) -> np.ndarray:
        z = z[:, :, 0] if first_frame and z.ndim == 5 else z
        return np.moveaxis(z.float().cpu().numpy(), 1, -1)

    out = model.encode(x.to(model.device, model.dtype))
    distribution = getattr(out, "latent_dist", None)
    if distribution is not None:
        std = getattr(distribution, "std", None)
        return to_numpy(distribution.mode()), None if std is None else to_numpy(std)
    latent = getattr(out, "latent", None)
    return to_numpy(out.latents if latent is None else latent), None


def decode(model: Any, z: Any) -> np.ndarray:
    """Returns the media that latents [B, C, ...] decode to, channels last."""
    return np.moveaxis(model.decode(z.to(model.device, model.dtype)).sample.float().cpu().numpy(), 1, -1)


def normalisation(model: Any, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale of latents, (z - shift) * scale, as the pipelines of diffusers apply them."""
    config = dict(model.config)
    if getattr(model, "bn", None) is not None:
        raise UserError(f"{type(model).__name__} normalises by a layer of its own: name flux2-vae for FLUX.2's")
    if "latents_mean" not in config and getattr(model, "latents_mean", None) is not None:
        # Some models have mean and deviation as attributes, not in their config.
        for name in ("latents_mean", "latents_std"):
            config[name] = getattr(model, name).float().cpu().numpy()
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        mean, std = (np.array(config[name], np.float32).ravel() for name in ("latents_mean", "latents_std"))
        if len(mean) != channels or len(std) != channels or not (std > 0).all():
            raise UserError(
                f"latents_mean and latents_std of {type(model).__name__} do not fit {channels} channels: check its "
                "config.json"
            )
        return mean, (config.get("scaling_factor") or 1.0) / std
    shift, scale = config.get("shift_factor") or 0.0, config.get("scaling_factor") or 1.0
    return np.full(channels, shift, np.float32), np.full(channels, scale, np.float32)


def measure(model: Any, images_only: bool) -> dict[str, int]:
    """Channels, strides and sample rate of an autoencoder, measured on small media."""
    try:
        if media_axes(model) == 3:
            return _measure_audio(model)
        return _measure_images(model) if images_only or media_axes(model) == 4 else _measure_video(model)
    except UserError:
        raise
    except Exception as error:  # classes raise errors of many types for unsuitable media
        raise UserError(
            f"{type(model).__name__} cannot be tried on small media ({one_line(error)}): it may be for other media, or "
            "its config and weights do not belong together"
        ) from error


def _measure_audio(model: Any) -> dict[str, int]:
    frames, channels = _latent_shape(model, (model.config.get("audio_channels", 1), _TRIAL_SAMPLES))[1:]
    rate = model.config.get("sampling_rate") or model.config.get("sample_rate") or 0
    stride = getattr(model, "hop_length", None) or _TRIAL_SAMPLES // frames
    return {"channels": channels, "temporal_stride": int(stride), "stride": 0, "sample_rate": int(rate)}


def _measure_images(model: Any) -> dict[str, int]:
    one_frame = (1,) * (media_axes(model) - 4)
    shape = _latent_shape(model, (3, *one_frame, _TRIAL_SIDE, _TRIAL_SIDE))
    return {"channels": shape[-1], "temporal_stride": 1, "stride": _TRIAL_SIDE // shape[-2], "sample_rate": 0}


def _measure_video(model: Any) -> dict[str, int]:
    declared = getattr(model, "temporal_compression_ratio", None)
    frames = 1 + 2 * int(declared or 8)
    shape = _latent_shape(model, (3, frames, _TRIAL_SIDE, _TRIAL_SIDE))
    latent_frames = shape[1]
    name = type(model).__name__
    if latent_frames < 2 or (frames - 1) % (latent_frames - 1):
        raise UserError(
            f"{name} makes {latent_frames} latent frames of {frames}: give an autoencoder whose first latent frame "
            "holds the first video frame alone"
        )
    stride = (frames - 1) // (latent_frames - 1)
    if declared and declared != stride:
        raise UserError(
            f"{name} declares {declared} frames per latent frame, and {frames} give {latent_frames}: check its "
            "config.json"
        )
    return {"channels": shape[-1], "temporal_stride": stride, "stride": _TRIAL_SIDE // shape[-2], "sample_rate": 0}


def _latent_shape(model: Any, media: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape [1, ..., C] of the latent of media [C, ...]; the decoded latent must have the shape of the
    media."""
    import torch

    with torch.inference_mode():
        z = encode(model, torch.zeros(1, *media))[0]
        decoded = decode(model, torch.as_tensor(np.moveaxis(z, -1, 1).copy()))
    if decoded.ndim != len(media) + 1 or (len(media) > 2 and decoded.shape[1:] != (*media[1:], 3)):
        raise UserError(
            f"{type(model).__name__} makes {list(decoded.shape[1:])} of media {list(media)}: give an autoencoder of "
            "such media"
        )
    return z.shape


def _json_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a model's config as JSON data, without the private fields that hold path and version."""
    plain = {}
    for name, value in config.items():
        if not name.startswith("_"):
            plain[name] = value if isinstance(value, int | float | str | list | None) else str(value)
    return plain
