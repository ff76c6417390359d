"""Streams of one modality, scalar conditions, and the sizes that have a name."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from selfflow.errors import UserError
from selfflow.modality import Modality, to_tokens
from selfflow.models.joint import JointTransformer
from selfflow.models.joint_config import JointConfig
from selfflow.noise import DualTimestep
from tests.conftest import perturbed


@pytest.fixture
def pair(objective, modalities):
    """The objective over two streams of images, and a batch of them."""
    shifted = dataclasses.replace(modalities["image"], offset=(0.0, 0.0, 8.0, 0.0))
    variant = dataclasses.replace(objective, modalities=modalities | {"image:reference": shifted})
    random = np.random.default_rng(0)
    latents = {m: random.standard_normal((4, 4, 4, 3)).astype(np.float32) for m in ("image", "image:reference")}
    return variant, {"latents": latents, "label": np.zeros(4, int), "weight": np.ones(4, np.float32)}


def test_two_streams_of_one_modality_share_its_weights(pair, objective, keys_B):
    variant, batch = pair
    shapes = lambda o: jax.tree.map(jnp.shape, jax.eval_shape(o.init, jax.random.key(0)))
    assert shapes(variant) == shapes(objective)
    params = perturbed(jax.jit(variant.init)(jax.random.key(0)))

    @jax.jit
    def loss(params):
        draw = variant.draw(keys_B, batch)
        return variant.loss(params, {"ema": params["model"]}, batch, keys_B, draw)

    total, metrics = loss(params)
    assert {"flow_loss/image", "flow_loss/image:reference"} <= set(metrics) and np.isfinite(total)
    draw = variant.draw(keys_B, batch)
    taus, masks = draw.student.corruption.levels, draw.student.corruption.assignment
    np.testing.assert_array_equal(taus["image"], taus["image:reference"])  # one draw of uniforms, one p(tau)
    assert (masks["image"] != masks["image:reference"]).any()
    for m in masks:
        assert (masks[m].sum(1) == 1).all()  # a quarter of four tokens: the modality's ratio


def test_streams_are_told_apart_by_their_coordinates_alone(pair, keys_B):
    variant, batch = pair
    tokens = to_tokens(variant.modalities, batch["latents"])
    c = DualTimestep().sample(keys_B, {m: 4 for m in tokens})
    params = perturbed(jax.jit(variant.init)(jax.random.key(0)))["model"]
    swap = lambda tree: {"image": tree["image:reference"], "image:reference": tree["image"]}

    def velocities(offset):
        displaced = dataclasses.replace(variant.modalities["image"], offset=offset)
        run = dataclasses.replace(variant, modalities=variant.modalities | {"image:reference": displaced})
        call = jax.jit(
            lambda tokens, levels, assignment: run.apply(params, tokens, levels, jnp.zeros(4, int), assignment).velocity
        )
        there = call(tokens, c.levels, c.assignment)
        return there, swap(call(swap(tokens), swap(c.levels), swap(c.assignment)))

    gap = lambda a, b: float(jnp.abs(a["image"] - b["image"]).max())
    assert gap(*velocities((0.0,) * 4)) < 1e-4 < 1e-2 < gap(*velocities((0.0, 0.0, 0.0, 3.0)))


def test_streams_of_one_modality_need_one_size_of_token(config, modalities):
    other = modalities | {"image:reference": Modality((4, 4, 5), (2, 2))}
    with pytest.raises(UserError, match="image:reference has tokens of 20 elements"):
        JointTransformer(config, other, rngs=nnx.Rngs(0))


def test_an_offset_moves_coordinates(modalities):
    displaced = dataclasses.replace(modalities["video"], offset=(100.0, 0.0, 4.0, 1.0))
    difference = displaced.coordinates() - modalities["video"].coordinates()
    np.testing.assert_array_equal(difference, np.broadcast_to([100.0, 0.0, 4.0, 1.0], difference.shape))


def test_scalars_start_as_nothing_and_then_matter(objective, batch, keys_B):
    tokens = to_tokens(objective.modalities, batch["latents"])
    c = DualTimestep().sample(keys_B, {m: x.shape[1] for m, x in tokens.items()})
    variant = dataclasses.replace(objective, model=dataclasses.replace(objective.model, scalars=("guidance", "step")))
    bare, params = (jax.jit(o.init)(jax.random.key(0))["model"] for o in (objective, variant))
    assert set(params) - set(bare) == {"scalar_in", "scalar_out"}  # absent means no parameters

    def video(params, **scalars):
        inputs = tokens, c.levels, jnp.zeros(4, int), c.assignment
        return variant.apply(params, *inputs, scalars=scalars).velocity["video"]

    value_B = jnp.array([0.0, 1.0, 2.5, 7.0])
    params = perturbed(params) | {"scalar_out": params["scalar_out"]}
    np.testing.assert_array_equal(video(params), video(params, guidance=value_B))
    params = perturbed(params)
    gradient = jax.jit(jax.grad(lambda g: video(params, guidance=g)[1].sum()))(value_B)
    np.testing.assert_array_equal(gradient != 0, [False, True, False, False])
    assert not np.allclose(video(params, guidance=value_B), video(params, step=value_B))
    with pytest.raises(ValueError, match="shift"):
        video(params, shift=value_B)


@pytest.mark.parametrize("name, millions", [("290M", 290), ("420M", 420), ("625M", 625), ("1B", 1000)])
def test_named_sizes_have_the_parameters_of_their_names(name, millions):
    """Of arXiv 2603.06507, which gives the shape of the third: 1152 wide, 16 heads, 7 + 14 blocks."""
    latents = {"image": ((16, 16, 128), (1, 1)), "video": ((12, 12, 20, 48), (1, 1, 1)), "audio": ((250, 64), (1,))}
    modalities = {m: Modality(*sizes) for m, sizes in latents.items()}
    with nnx.use_eager_sharding(False):
        config = JointConfig.named(name, text=768)
        model = nnx.eval_shape(lambda: JointTransformer(config, modalities, rngs=nnx.Rngs(0)))
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(model))) / 1e6
    assert count == pytest.approx(millions, rel=0.05)
    assert config.width // config.heads == 72
    if name == "625M":
        assert (config.width, config.heads, config.double_blocks, config.single_blocks) == (1152, 16, 7, 14)
        assert config == JointConfig(text=768)


def test_there_is_no_other_size():
    with pytest.raises(UserError, match="290M, 420M, 625M, 1B"):
        JointConfig.named("2B")
