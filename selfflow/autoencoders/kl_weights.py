"""Parameters of AutoencoderKL from the weights of diffusers, by their names there."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from selfflow.autoencoders.kl import Norm
from selfflow.encoders.convolution import Convolution, Weights
from selfflow.errors import UserError

# Old and current names of attention layers.
_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# Keys of a batch normalisation after the encoder, which `kl_autoencoder` reads.
_BATCH_NORM = {"bn.running_mean", "bn.running_var"}


def read_kl(weights: Weights) -> dict[str, Any]:
    """Returns the parameters of a network: {"encoder", "decoder"}, and "quant" and "post_quant" if it has them.

    Args:
      weights: arrays by their names in diffusers.

    Raises:
      UserError: naming a key that is missing, unknown or of another shape.
    """
    weights = Weights(weights.path, dict(_current_names(weights.weights)), weights.network)
    reader = _Reader(weights)
    latent = reader.inputs("decoder.conv_in")
    params = {"encoder": _encoder(reader), "decoder": _decoder(reader)}
    if reader.has("quant_conv"):
        params["quant"] = reader.convolution("quant_conv", 2 * latent, 2 * latent, 1)
    if reader.has("post_quant_conv"):
        params["post_quant"] = reader.convolution("post_quant_conv", latent, latent, 1)
    unknown = sorted(set(weights.weights) - reader.used - _BATCH_NORM)
    if unknown:
        raise UserError(f"{weights.path} has {unknown[0]}, which {weights.network} does not have: give another file")
    return params


def _current_names(weights: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Weights by the current names of diffusers. Older files name attention differently, or store it as kernels."""
    for key, tensor in weights.items():
        match key.split("."):
            case [*parents, "attentions", number, layer, last] if layer in _ATTENTION:
                key = ".".join([*parents, "attentions", number, _ATTENTION[layer], last])
        if ".attentions." in key and tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0]
        yield key, tensor


class _Reader:
    """Layers by their keys. Sizes that nothing else determines are read from the arrays.

    Attributes:
      used: keys that were read.
    """

    def __init__(self, weights: Weights):
        self.weights = weights
        self.used: set[str] = set()

    def has(self, key: str) -> bool:
        return f"{key}.weight" in self.weights.weights

    def count(self, pattern: str) -> int:
        """Length of a list of layers: `pattern` is their key, with N for the index."""
        index = re.compile(re.escape(pattern).replace("N", r"(\d+)", 1))
        matches = [index.match(key) for key in self.weights.weights]
        return 1 + max((int(match[1]) for match in matches if match), default=-1)

    def outputs(self, key: str) -> int:
        return self._size(key, 0)

    def inputs(self, key: str) -> int:
        return self._size(key, 1)

    def _size(self, key: str, axis: int) -> int:
        tensor = self.weights.weights.get(f"{key}.weight")
        if tensor is None or tensor.ndim != 4:
            path, network = self.weights.path, self.weights.network
            raise UserError(f"{path} lacks {key}.weight: it holds no weights of {network}; give another file")
        return tensor.shape[axis]

    def take(self, key: str, *shape: int) -> np.ndarray:
        self.used.add(key)
        return self.weights.take(key, *shape)

    def convolution(self, key: str, outputs: int, inputs: int, window: int) -> Convolution:
        kernel = self.take(f"{key}.weight", outputs, inputs, window, window)
        return Weights.plain(kernel, self.take(f"{key}.bias", outputs))

    def norm(self, key: str, channels: int) -> Norm:
        scale, shift = (self.take(f"{key}.{name}", channels) for name in ("weight", "bias"))
        return Norm(jnp.asarray(scale, jnp.float32), jnp.asarray(shift, jnp.float32))

    def linear(self, key: str, channels: int) -> tuple[Array, Array]:
        weight = self.take(f"{key}.weight", channels, channels)
        bias = self.take(f"{key}.bias", channels)
        return jnp.asarray(weight.T, jnp.float32), jnp.asarray(bias, jnp.float32)

    def resnet(self, key: str, inputs: int, outputs: int) -> dict[str, Any]:
        layer = {
            "norm1": self.norm(f"{key}.norm1", inputs),
            "conv1": self.convolution(f"{key}.conv1", outputs, inputs, 3),
            "norm2": self.norm(f"{key}.norm2", outputs),
            "conv2": self.convolution(f"{key}.conv2", outputs, outputs, 3),
        }
        if inputs != outputs:
            layer["shortcut"] = self.convolution(f"{key}.conv_shortcut", outputs, inputs, 1)
        return layer

    def middle(self, key: str, channels: int) -> dict[str, Any]:
        """Two resnets, with attention between them if the network has it."""
        block: dict[str, Any] = {"resnets": [self.resnet(f"{key}.resnets.{i}", channels, channels) for i in range(2)]}
        attention = f"{key}.attentions.0"
        if self.has(f"{attention}.to_q"):
            block["attention"] = {
                "norm": self.norm(f"{attention}.group_norm", channels),
                "q": self.linear(f"{attention}.to_q", channels),
                "k": self.linear(f"{attention}.to_k", channels),
                "v": self.linear(f"{attention}.to_v", channels),
                "out": self.linear(f"{attention}.to_out.0", channels),
            }
        return block

    def levels(self, side: str, name: str, sampler: str, channels: int) -> tuple[list[dict[str, Any]], int]:
        """Returns the levels of encoder or decoder, and the channels after the last.

        Args:
          side: "encoder" or "decoder".
          name: name of the list of levels, such as "down_blocks".
          sampler: name of the list that holds the down- or upsampling of a level.
          channels: channels before the first level.
        """
        levels = []
        for i in range(self.count(f"{side}.{name}.N.")):
            key, resnets = f"{side}.{name}.{i}", []
            for j in range(self.count(f"{key}.resnets.N.")):
                outputs = self.outputs(f"{key}.resnets.{j}.conv1")
                resnets.append(self.resnet(f"{key}.resnets.{j}", channels, outputs))
                channels = outputs
            level: dict[str, Any] = {"resnets": resnets}
            if self.has(f"{key}.{sampler}.0.conv"):
                level["sample"] = self.convolution(f"{key}.{sampler}.0.conv", channels, channels, 3)
            levels.append(level)
        return levels, channels


def _encoder(reader: _Reader) -> dict[str, Any]:
    channels, latent = reader.outputs("encoder.conv_in"), reader.inputs("decoder.conv_in")
    params: dict[str, Any] = {"conv_in": reader.convolution("encoder.conv_in", channels, 3, 3)}
    params["blocks"], channels = reader.levels("encoder", "down_blocks", "downsamplers", channels)
    params["middle"] = reader.middle("encoder.mid_block", channels)
    params["norm_out"] = reader.norm("encoder.conv_norm_out", channels)
    params["conv_out"] = reader.convolution("encoder.conv_out", 2 * latent, channels, 3)
    return params


def _decoder(reader: _Reader) -> dict[str, Any]:
    channels, latent = reader.outputs("decoder.conv_in"), reader.inputs("decoder.conv_in")
    params: dict[str, Any] = {
        "conv_in": reader.convolution("decoder.conv_in", channels, latent, 3),
        "middle": reader.middle("decoder.mid_block", channels),
    }
    params["blocks"], channels = reader.levels("decoder", "up_blocks", "upsamplers", channels)
    params["norm_out"] = reader.norm("decoder.conv_norm_out", channels)
    params["conv_out"] = reader.convolution("decoder.conv_out", 3, channels, 3)
    return params
