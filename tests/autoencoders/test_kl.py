"""The KL autoencoder against recordings of diffusers' one, and the files of weights that it accepts."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfflow.autoencoders import kl
from selfflow.autoencoders.kl_weights import read_kl
from selfflow.encoders.convolution import Weights
from selfflow.errors import UserError
from tests.autoencoders.kl import CONFIG, GOLDEN, random_weights
from tests.conftest import mentions

GROUPS = CONFIG["norm_num_groups"]


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as found:
        return {name: found[name] for name in found.files}


@pytest.fixture(scope="module")
def weights(golden):
    return random_weights({name: tuple(shape) for name, shape in json.loads(str(golden["told"]))["shapes"].items()})


def read(weights):
    return read_kl(Weights(Path("vae.safetensors"), weights, "SD-VAE"))


def relative(a, b):
    return np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)


def test_the_recorded_autoencoder(golden, weights):
    params = read(weights)
    mean, std = kl.encode(params, jnp.asarray(golden["media"], jnp.float32) / 127.5 - 1, GROUPS)
    decoded = kl.decode(params, golden["latents"], GROUPS)
    assert relative(mean, golden["mean"]) < 1e-5 and relative(std, golden["std"]) < 1e-5
    assert relative(decoded, golden["decoded"]) < 1e-5


def test_bfloat16_is_near_float32(golden, weights):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), read(weights))
    mean, _ = kl.encode(params, jnp.asarray(golden["media"], jnp.float32) / 127.5 - 1, GROUPS)
    assert 1e-4 < relative(mean, golden["mean"]) < 0.05


def test_attention_by_its_old_names(golden, weights):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, x in weights.items():
        for new, before in old.items():
            if f".attentions.0.{new}." in name:
                name = name.replace(new, before)
                x = x[:, :, None, None] if x.ndim == 2 else x
        renamed[name] = x
    assert sum(".query." in name for name in renamed) == 4
    for a, b in zip(jax.tree.leaves(read(renamed)), jax.tree.leaves(read(weights)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_packing():
    z = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    packed = kl.pack(z)
    assert packed.shape == (2, 2, 3, 12)
    # Channels are (channel, row, column) of the 2 x 2 positions.
    assert packed[1, 0, 2, 7] == z[1, 1, 4 + 1, 1] and packed[0, 1, 0, 1] == z[0, 2, 1, 0]
    np.testing.assert_array_equal(kl.unpack(packed), z)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda w: w.pop("encoder.mid_block.resnets.1.conv2.bias"), "encoder.mid_block.resnets.1.conv2.bias"),
        (lambda w: w.pop("decoder.conv_in.weight"), "decoder.conv_in.weight"),
        (
            lambda w: w.update({"encoder.conv_in.weight": np.zeros((16, 4, 3, 3))}),
            "encoder.conv_in.weight [16, 4, 3, 3] [16, 3, 3, 3]",
        ),
        (lambda w: w.update({"loss.weight": np.zeros(3)}), "loss.weight"),
        (lambda w: w.clear(), "decoder.conv_in.weight"),
    ],
)
def test_weights_of_another_network_are_named(weights, change, words):
    changed = dict(weights)
    change(changed)
    with pytest.raises(UserError, match=mentions("vae.safetensors SD-VAE", words)):
        read(changed)
