"""A trained convolutional autoencoder, which encodes and decodes clips of any length in chunks."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from selfflow.autoencoders.config import AUTOENCODER_FILE, Convolutional
from selfflow.autoencoders.convolutional import Cache, Network
from selfflow.autoencoders.convolutional_file import read
from selfflow.autoencoders.media import check_latents, check_media
from selfflow.errors import UserError
from selfflow.media import from_unit_range, medium_of, to_unit_range
from selfflow.weights.read import sha256_of

_CHUNK_ELEMENTS = 2**21  # elements of media in one call; activations have a few hundred times as many


class ConvolutionalAutoencoder:
    """Raw media <-> latents of unit variance per channel; see `config.Autoencoder`.

    Clips of any length are processed in chunks of one shape, which share a compiled program.

    Args:
      config: config of the autoencoder.
      path: path of its file, as `convolutional_file.write` writes it, or the folder of its run.

    Raises:
      UserError: if the file is damaged or of another kind, or a field of `config` differs from it.
    """

    batch_size = 16

    def __init__(self, config: Convolutional, path: Path):
        self.config = config
        path = path / AUTOENCODER_FILE if path.is_dir() else path
        self.network, rate, tensors = read(path)
        _check_config(config, self.network, rate, path)
        for name in ("normalisation.mean", "normalisation.deviation"):
            _check_tensor(tensors, name, (self.network.channels,), path)
        self._mean, self._std = tensors.pop("normalisation.mean"), tensors.pop("normalisation.deviation")
        self._params = _params(self.network, tensors, config.dtype, path)
        suffix = "" if config.dtype == "float32" else f"-{config.dtype}"
        self.identity = f"convolutional-{sha256_of(path)[:12]}{suffix}"
        self._medium = medium_of(config.modalities[0])
        self._encode = jax.jit(partial(_encode, self.network))
        self._decode = jax.jit(partial(_decode, self.network))

    def encode(self, media: np.ndarray) -> Float[np.ndarray, "... C"]:
        """Returns the means of the latents."""
        return self.encode_distribution(media)[0]

    def encode_distribution(self, media: np.ndarray) -> tuple[Float[np.ndarray, "... C"], Float[np.ndarray, "... C"]]:
        """Mean and standard deviation of the latents of media; leading axes are kept.

        Frames or samples after the last whole latent frame are left out.

        Raises:
          UserError: if the stride does not divide height and width, a clip is shorter than a latent frame, or media
            have another dtype or other axes.
        """
        check_media(media, self._medium.name)
        if self.network.is_visual:
            # Checks height and width; the length may be arbitrary.
            dataclasses.replace(self.config, images_only=True).latent_shape(media.shape[-3:])
        axes = len(self._medium.axes)
        lead = media.shape[:-axes]
        x = self._medium.to_sequence(media.reshape(-1, *media.shape[-axes:]))
        stride, padding = self.network.downsampling[0], self.network.causal_padding
        length = (x.shape[1] + padding) // stride * stride
        if not length:
            raise UserError(f"a clip of {x.shape[1]} samples is shorter than a latent frame, {stride} of them")

        def read_chunk(clips: slice, start: int, stop: int) -> np.ndarray:
            return _padded_frames(x[clips], padding, start, min(stop, length))

        def normalise(mean: np.ndarray, log_variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return (mean - self._mean) / self._std, np.exp(0.5 * log_variance) / self._std

        source = _Source(read_chunk, len(x), length, stride, x[0, :1].size)
        mean, std = self._map_chunks(self._encode, source, normalise)
        shape = (*lead, *mean.shape[1 + self._is_image :])
        return mean.reshape(shape), std.reshape(shape)

    def decode(self, latents: Float[np.ndarray, "... C"]) -> np.ndarray:
        """Raw media of latents; leading axes are kept.

        Raises:
          UserError: if latents have other axes or channels, or are empty.
        """
        check_latents(latents, self._medium.name)
        if latents.shape[-1] != self.network.channels:
            raise UserError(
                f"latents have {latents.shape[-1]} channels, and those of {self.identity} {self.network.channels}: "
                "decode them by the autoencoder that encoded them"
            )
        axes = len(self._medium.latent_axes)
        lead, shape = latents.shape[:-axes], latents.shape[-axes:]
        # The latent of an image is that of a video of one frame.
        z = latents.reshape(-1, *((1,) if self._is_image else ()), *shape)

        def read_chunk(clips: slice, start: int, stop: int) -> np.ndarray:
            return np.float32(z[clips, start:stop]) * self._std + self._mean

        def to_media(x: np.ndarray) -> tuple[np.ndarray]:
            return (from_unit_range(np.nan_to_num(x), self._medium),)

        channels = 3 if self.network.is_visual else 1
        elements = int(np.prod(z.shape[2:-1])) * math.prod(self.network.downsampling) * channels
        (media,) = self._map_chunks(self._decode, _Source(read_chunk, len(z), z.shape[1], 1, elements), to_media)
        media = self._medium.from_sequence(media[:, self.network.causal_padding :])
        return media.reshape(*lead, *media.shape[1:])

    @property
    def _is_image(self) -> bool:
        return not self._medium.has_time

    def _map_chunks(
        self,
        network: Callable[[Any, Any, Cache | None], tuple[tuple[jax.Array, ...], Cache]],
        source: "_Source",
        finish: Callable[..., tuple[np.ndarray, ...]],
    ) -> list[np.ndarray]:
        """Outputs of a compiled function of clips, chunk after chunk.

        Args:
          network: (params, chunk, cache of the previous chunk) -> (outputs [B, T, ...], cache).
          source: source of the chunks.
          finish: outputs of a chunk -> arrays [B, T, ...] to keep.
        """
        chunk_size = source.elements * source.unit
        clips = max(1, min(_round_up(source.clips), self.batch_size, int(_CHUNK_ELEMENTS // chunk_size)))
        units = max(1, int(_CHUNK_ELEMENTS // (chunk_size * clips)))
        step = min(units, _round_up(source.length // source.unit)) * source.unit
        results: list[np.ndarray] = []
        for first in range(0, source.clips, clips):
            rows, cache = slice(first, min(first + clips, source.clips)), None
            for start in range(0, source.length, step):
                x = source.read(rows, start, start + step)
                length = x.shape[1]
                # Missing clips and the end of the last chunk are zeros, which come last and do not affect the results.
                x = np.pad(x, [(0, clips - len(x)), (0, step - length)] + [(0, 0)] * (x.ndim - 2))
                outputs, cache = network(self._params, x, cache)
                valid = [np.asarray(y)[: rows.stop - first, : y.shape[1] * length // step] for y in outputs]
                parts = finish(*valid)
                if not results:
                    for y in parts:
                        shape = (source.clips, y.shape[1] * source.length // length, *y.shape[2:])
                        results.append(np.empty(shape, y.dtype))
                for result, y in zip(results, parts):
                    at = start * result.shape[1] // source.length
                    result[rows, at : at + y.shape[1]] = y
        return results


class _Source(NamedTuple):
    """Clips of one length that are read in chunks.

    Attributes:
      read: (clips, start, stop) -> chunk [B, T, ...], up to the end of the clips.
      clips: number of clips.
      length: length of each clip.
      unit: least length of a chunk; chunks are multiples of it.
      elements: media elements per step of the length and per clip.
    """

    read: Callable[[slice, int, int], np.ndarray]
    clips: int
    length: int
    unit: int
    elements: int


def _padded_frames(x: np.ndarray, padding: int, start: int, stop: int) -> np.ndarray:
    """Frames `start` to `stop` of clips [B, T, ...] with `padding` copies of their first frame before them."""
    frames = x[:, max(start - padding, 0) : stop - padding]
    if start >= padding:
        return frames
    return np.concatenate([np.repeat(x[:, :1], padding - start, axis=1), frames], axis=1)


def _round_up(count: int) -> int:
    """Returns the next of few numbers, all up to 8 and four per octave above, so that clips of many lengths share
    programs."""
    step = 2 ** max(0, math.ceil(math.log2(count)) - 3)
    return -(-count // step) * step


def _encode(
    network: Network, params: Any, media: jax.Array, cache: Cache | None
) -> tuple[tuple[jax.Array, ...], Cache]:
    mean, log_variance, cache = network.encode(params, to_unit_range(media), cache)
    return (mean, log_variance), cache


def _decode(network: Network, params: Any, z: jax.Array, cache: Cache | None) -> tuple[tuple[jax.Array, ...], Cache]:
    media, cache = network.decode(params, z, cache)
    return (media,), cache


def _check_config(config: Convolutional, network: Network, rate: int, path: Path) -> None:
    expected = {
        "channels": network.channels,
        "temporal_stride": network.downsampling[0],
        "stride": network.downsampling[1] if network.is_visual else 0,
        "sample_rate": rate,
    }
    for name, value in expected.items():
        if getattr(config, name) != value:
            raise UserError(
                f"{path}: its {name} is {value}, and that of the convolutional autoencoder {getattr(config, name)}: "
                "set it, or let selfflow.autoencoders.parse.parse_autoencoder read the fields"
            )


def _check_tensor(tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...], path: Path) -> None:
    if name not in tensors or tensors[name].shape != shape:
        raise UserError(f"{path} lacks {name} of shape {list(shape)}: write it again from its run")


def _params(network: Network, tensors: dict[str, np.ndarray], dtype: str, path: Path) -> dict[str, Any]:
    """Returns the parameter tree of a network, from tensors by dotted names."""
    paths, structure = jax.tree_util.tree_flatten_with_path(jax.eval_shape(network.init, jax.random.key(0)))
    leaves = []
    for key_path, x in paths:
        name = jax.tree_util.keystr(key_path, simple=True, separator=".")
        _check_tensor(tensors, name, x.shape, path)
        leaves.append(jnp.asarray(tensors[name], dtype))
    return jax.tree.unflatten(structure, leaves)
