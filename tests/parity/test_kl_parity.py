"""The KL autoencoder against diffusers' on random weights: SD-VAE's form and FLUX.2's, even and odd sizes."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from selfflow.autoencoders import kl
from selfflow.autoencoders.kl_weights import read_kl
from selfflow.encoders.convolution import Weights
from tests.autoencoders.kl import images

pytestmark = pytest.mark.parity

WORST = 1e-4


@pytest.fixture(scope="module")
def reference():
    """The other side, which alone needs torch."""
    from tests.parity import kl_reference

    return kl_reference


def near(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    error = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert error < WORST, f"relative error {error:.1e}"


def ours(model):
    weights = {n: x.numpy() for n, x in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    return read_kl(Weights(Path("reference"), weights, "the reference"))


@pytest.mark.parametrize("size", [(32, 32), (20, 28), (4, 12)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"latent_channels": 6, "layers_per_block": 1},
        {"use_quant_conv": False, "use_post_quant_conv": False},
        {"mid_block_add_attention": False},
        {
            "block_out_channels": (32,),
            "down_block_types": ("DownEncoderBlock2D",),
            "up_block_types": ("UpDecoderBlock2D",),
        },
    ],
    ids=["sd", "narrow", "no quant", "no attention", "one level"],
)
def test_kl(reference, changes, size):
    from diffusers import AutoencoderKL

    model = reference.autoencoder(AutoencoderKL, **changes)
    stride = 2 ** (len(model.config.block_out_channels) - 1)
    media = images(*size)
    latents = reference.random_latents((2, size[0] // stride, size[1] // stride, model.config.latent_channels))
    found, params = reference.theirs(model, media, latents), ours(model)
    groups = model.config.norm_num_groups
    mean, std = kl.encode(params, jnp.asarray(media, jnp.float32) / 127.5 - 1, groups)
    near(mean, found["mean"])
    near(std, found["std"])
    near(kl.decode(params, latents, groups), found["decoded"])


def test_packing_is_that_of_flux2(reference):
    import torch
    from diffusers import Flux2Pipeline

    z = reference.random_latents((2, 6, 8, 5))
    first = torch.from_numpy(z).movedim(-1, 1)
    packed = Flux2Pipeline._patchify_latents(first).movedim(1, -1).numpy()
    np.testing.assert_array_equal(kl.pack(z), packed)
    np.testing.assert_array_equal(kl.unpack(kl.pack(z)), z)
