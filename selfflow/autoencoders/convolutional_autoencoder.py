"""A convolutional autoencoder that was trained here, from its one file: weights, normalisation and shape."""

import dataclasses
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from selfflow.autoencoders.config import Convolutional
from selfflow.autoencoders.convolutional import Network, Past
from selfflow.autoencoders.media import check_latents, check_media
from selfflow.autoencoders.temporal_config import AUTOENCODER_FILE
from selfflow.errors import UserError
from selfflow.media import from_unit_range, images_only, medium_of, to_unit_range
from selfflow.serialization import from_json, to_json
from selfflow.storage.atomic import atomic_write
from selfflow.weights.read import sha256_of

_FORMAT = "selfflow-autoencoder-2"  # raised when the same weights come to mean another network
_TOLD = "autoencoder"
_PIECE = 2**21  # elements of media in one call: what takes memory is some hundred times as much


class ConvolutionalAutoencoder:
    """Pictures and films, or sounds, <-> latents of unit variance; see `config.Autoencoder`.

    Clips of whatever length pass through in pieces of one shape, each of which knows of the one before.

    Args:
      config: which.
      path: its file, as `write` makes it, or the folder of its run.

    Raises:
      UserError: if the file is damaged or of another kind, or `config` says what is not so.
    """

    batch_size = 16

    def __init__(self, config: Convolutional, path: Path):
        self.config = config
        path = path / AUTOENCODER_FILE if path.is_dir() else path
        self.network, rate, tensors = read(path)
        network = self.network
        for name, found, said in (
            ("channels", network.channels, config.channels),
            ("temporal_stride", network.cell[0], config.temporal_stride),
            ("stride", network.cell[1] if network.pictures else 0, config.stride),
            ("sample_rate", rate, config.sample_rate),
        ):
            if found != said:
                raise UserError(
                    f"{path}: its {name} is {found}, and that of the convolutional autoencoder {said}: set it, or "
                    "let autoencoder_of (selfflow.autoencoders.parse) read the settings"
                )
        for name in ("normalisation.mean", "normalisation.deviation"):
            if name not in tensors or tensors[name].shape != (network.channels,):
                raise UserError(f"{path} lacks {name} of shape [{network.channels}]: write it again from its run")
        self._mean, self._deviation = tensors.pop("normalisation.mean"), tensors.pop("normalisation.deviation")
        shapes = jax.eval_shape(network.init, jax.random.key(0))
        paths, structure = jax.tree_util.tree_flatten_with_path(shapes)
        named = {jax.tree_util.keystr(at, simple=True, separator="."): x.shape for at, x in paths}
        for name, shape in named.items():
            if name not in tensors or tensors[name].shape != shape:
                raise UserError(f"{path} lacks {name} of shape {list(shape)}: write it again from its run")
        leaves = [jnp.asarray(tensors[name], config.dtype) for name in named]
        self._params = jax.tree.unflatten(structure, leaves)
        self.identity = f"convolutional-{sha256_of(path)[:12]}" + (
            "" if config.dtype == "float32" else f"-{config.dtype}"
        )
        self._encode = jax.jit(partial(_encode, network))
        self._decode = jax.jit(partial(_decode, network))

    def encode(self, media: np.ndarray) -> Float[np.ndarray, "... C"]:
        """The means of the latents."""
        return self.encode_distribution(media)[0]

    def encode_distribution(self, media: np.ndarray) -> tuple[Float[np.ndarray, "... C"], Float[np.ndarray, "... C"]]:
        """Mean and standard deviation of the latents of media, whatever stands before their own axes.

        Frames or samples after the last whole latent frame are left out.

        Raises:
          UserError: if the stride does not divide pictures, a clip is shorter than a latent frame, or media are other
            than data sets have them.
        """
        check_media(media, self.config.modalities[0])
        if self.network.pictures:  # whatever the length
            dataclasses.replace(self.config, images_only=True).latent_shape(media.shape[-3:])
        before = media.shape[: -self._axes(latents=False)]
        x, hop = self._clips(media), self.network.cell[0]
        whole = (x.shape[1] + self.network.causal_padding) // hop * hop
        if not whole:
            raise UserError(f"a clip of {x.shape[1]} samples is shorter than a latent frame, {hop} of them")

        def normalised(mean: np.ndarray, log_variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return (mean - self._mean) / self._deviation, np.exp(0.5 * log_variance) / self._deviation

        piece = lambda clips, start, stop: _led_in(x[clips], self.network.causal_padding, start, min(stop, whole))
        mean, deviation = self._streamed(self._encode, piece, len(x), whole, hop, x[0, :1].size, normalised)
        shape = (*before, *mean.shape[1 + self._still :])
        return mean.reshape(shape), deviation.reshape(shape)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Media of latents.

        Raises:
          UserError: if they have other axes or channels, or there are none.
        """
        check_latents(latents, self.config.modalities[0])
        if latents.shape[-1] != self.network.channels:
            raise UserError(
                f"latents have {latents.shape[-1]} channels, and those of {self.identity} {self.network.channels}"
            )
        own = latents.shape[-self._axes(latents=True) :]
        z = latents.reshape(-1, *((1,) if self._still else ()), *own)
        medium = medium_of(self.config.modalities[0])
        piece = lambda clips, start, stop: np.float32(z[clips, start:stop]) * self._deviation + self._mean
        finish = lambda made: (from_unit_range(np.nan_to_num(made), medium),)
        size = int(np.prod(z.shape[2:-1])) * math.prod(self.network.cell) * (3 if self.network.pictures else 1)
        (made,) = self._streamed(self._decode, piece, len(z), z.shape[1], 1, size, finish)
        made, before = made[:, self.network.causal_padding :], latents.shape[: -len(own)]
        return made.reshape(*before, *(made.shape[1 + self._still :] if self.network.pictures else (-1,)))

    @property
    def _still(self) -> bool:
        return self.network.pictures and self.config.images_only

    def _axes(self, latents: bool) -> int:
        """How many axes are a clip's own."""
        if self.network.pictures:
            return 3 if self.config.images_only else 4
        return 2 if latents else 1

    def _clips(self, media: np.ndarray) -> np.ndarray:
        """Media as [B, T, H, W, 3] or [B, T, 1]."""
        own = media.shape[-self._axes(latents=False) :]
        return media.reshape(-1, *((1,) if self._still else ()), *own, *(() if self.network.pictures else (1,)))

    def _streamed(
        self,
        network: Callable[[Any, Any, Past | None], tuple[tuple[jax.Array, ...], Past]],
        piece: Callable[[slice, int, int], np.ndarray],
        count: int,
        length: int,
        hop: int,
        size: int,
        finish: Callable[..., tuple[np.ndarray, ...]],
    ) -> list[np.ndarray]:
        """What a compiled function makes of clips in pieces, one after the other, each a whole number of `hop`s.

        Args:
          network: (params, piece, past) -> (outputs, past).
          piece: (clips, start, stop) -> input [B, T, ...], up to the clips' end.
          count: clips.
          length: of a clip.
          hop: least length of a piece.
          size: elements of media in a unit of that length.
          finish: outputs of a piece -> what is kept of it.
        """
        clips = max(1, min(_rounded(count), self.batch_size, int(_PIECE // (size * hop))))
        most = max(1, int(_PIECE // (size * hop * clips)))
        step = min(most, _rounded(length // hop)) * hop
        found: list[np.ndarray] = []
        for first in range(0, count, clips):
            some, past = slice(first, min(first + clips, count)), None
            for start in range(0, length, step):
                x = piece(some, start, start + step)
                there = x.shape[1]
                # Clips that are too few, and what fills up a last piece: it comes after everything and touches nothing.
                x = np.pad(x, [(0, clips - len(x)), (0, step - there)] + [(0, 0)] * (x.ndim - 2))
                outputs, past = network(self._params, x, past)
                kept = finish(*(np.asarray(y)[: some.stop - first, : y.shape[1] * there // step] for y in outputs))
                if not found:
                    found = [np.empty((count, y.shape[1] * length // there, *y.shape[2:]), y.dtype) for y in kept]
                for whole, y in zip(found, kept):
                    at = start * whole.shape[1] // length
                    whole[some, at : at + y.shape[1]] = y
        return found


def _led_in(x: np.ndarray, lead: int, start: int, stop: int) -> np.ndarray:
    """Frames `start` to `stop` of clips [B, T, ...] after `lead` copies of their first."""
    inside = x[:, max(start - lead, 0) : stop - lead]
    return np.concatenate([np.repeat(x[:, :1], lead - start, axis=1), inside], axis=1) if start < lead else inside


def _rounded(count: int) -> int:
    """The next number of few: up to 8 all, beyond them four in each octave. Clips of any length then share programs."""
    step = 2 ** max(0, math.ceil(math.log2(count)) - 3)
    return -(-count // step) * step


def _encode(network: Network, params: Any, media: jax.Array, past: Past | None) -> tuple[tuple[jax.Array, ...], Past]:
    mean, log_variance, past = network.encode(params, to_unit_range(media), past)
    return (mean, log_variance), past


def _decode(network: Network, params: Any, z: jax.Array, past: Past | None) -> tuple[tuple[jax.Array, ...], Past]:
    made, past = network.decode(params, z, past)
    return (made,), past


def write(
    path: Path,
    network: Network,
    rate: int,
    params: dict[str, np.ndarray],
    mean: np.ndarray,
    deviation: np.ndarray,
) -> None:
    """Writes an autoencoder.

    Args:
      path: where to, .safetensors.
      network: its shape.
      rate: samples of sound a second; 0 for pictures.
      params: by their dotted names.
      mean, deviation: of each latent channel, which are subtracted and divided by.
    """
    tensors = {name: np.ascontiguousarray(x, np.float32) for name, x in params.items()}
    tensors |= {"normalisation.mean": np.float32(mean), "normalisation.deviation": np.float32(deviation)}
    # One entry: several are written in an order that is drawn anew each time, and files are known by their hash.
    told = {"format": _FORMAT, "network": to_json(network), "sample_rate": rate}
    with atomic_write(path) as partial:
        partial.write_bytes(save(tensors, {_TOLD: json.dumps(told, sort_keys=True)}))


def read_config(path: Path, modality: str) -> Convolutional:
    """The settings of the autoencoder in a file, for a modality.

    Raises:
      UserError: if it holds none, or one of others.
    """
    network, rate, _ = read(path, weights=False)
    if network.pictures != medium_of(modality).is_visual:
        has, wants = ("pictures", "sound") if network.pictures else ("sound", "pictures")
        raise UserError(f"{path} is an autoencoder of {has}: give one of {wants}")
    stills = images_only([modality])
    stride = network.cell[1] if network.pictures else 0
    return Convolutional(network.channels, network.cell[0], stride, stills, path=str(path), sample_rate=rate)


def read(path: Path, weights: bool = True) -> tuple[Network, int, dict[str, np.ndarray]]:
    """Shape, samples of sound a second, and tensors of the autoencoder in a file.

    Raises:
      UserError: if it is damaged, or holds something else, or a number that is not finite.
    """
    try:
        with safe_open(path, "np") as file:
            told = json.loads((file.metadata() or {}).get(_TOLD, "{}"))
            if str(told.get("format")).startswith(_FORMAT.rstrip("0123456789")) and told["format"] != _FORMAT:
                raise UserError(f"{path} was trained by another version of selfflow ({told['format']}): train it again")
            if told.get("format") != _FORMAT:
                raise UserError(
                    f"{path} holds no autoencoder that was trained here (its format is {told.get('format')}): give the "
                    "autoencoder.safetensors of a run of `selfflow train experiments/autoencoder_image.py`"
                )
            rate, network = int(told["sample_rate"]), from_json(told["network"], Network, str(path))
            tensors = {name: file.get_tensor(name) for name in (file.keys() if weights else ())}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is missing or damaged, or no autoencoder that was trained here ({error}): give that of a run of "
            "`selfflow train experiments/autoencoder_image.py`, or of another that trains one"
        ) from error
    for name, x in tensors.items():
        if not np.isfinite(x).all():
            raise UserError(f"{path}: {name} holds NaN or infinity: train it again")
    return network, rate, tensors
