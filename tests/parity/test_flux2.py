"""Blocks, rotary embedding and the whole joint transformer against diffusers' FLUX.2, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from selfflow.modality import Modality
from selfflow.models.attention import attention
from selfflow.models.blocks import DoubleBlock, SingleBlock
from selfflow.models.joint_config import JointConfig
from selfflow.models.layers import rotary_angles, rotate
from tests.models.flux2 import CONFIG, VIDEO, assert_near, double_block, ids, ours, recorded, single_block, transformer

pytestmark = pytest.mark.parity

# The head of arXiv 2603.06507: 72 channels, 18 for each axis.
BLOCK = JointConfig(width=144, heads=2, rotary=(18, 18, 18, 18))
BATCH, TEXT = 2, 5
SMALL = np.float32(1e-2)  # where a norm comes next, for its epsilon to count
OUTPUTS, GRADIENTS = 3e-6, 1e-5
# With the embedding of time: the sines of 1000 tau are good to about 2e-5 in float32, theirs and ours.
WHOLE_OUTPUTS, WHOLE_GRADIENTS = 5e-5, 1e-4


@pytest.fixture(scope="module")
def reference():
    """The other side, which alone needs torch."""
    from tests.parity import flux2_reference

    return flux2_reference


@pytest.fixture(scope="module")
def blocks(reference):
    from diffusers.models.transformers import transformer_flux2

    return transformer_flux2


def random_arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


def differentiated(torch, call, inputs: list[np.ndarray], weight: np.ndarray):
    """Output of a torch function, and gradients of its product with `weight` to its inputs."""
    leaves = [torch.from_numpy(x).requires_grad_() for x in inputs]
    out = call(*leaves)
    (out * torch.from_numpy(weight)).sum().backward()
    return out.detach().numpy(), [x.grad.numpy() for x in leaves]


def our_block(kind: type, call, params: dict, inputs: list[np.ndarray], weight: np.ndarray):
    """The same of a block: its output, gradients to its inputs and to its weights."""
    with nnx.use_eager_sharding(False):
        graph = nnx.graphdef(nnx.eval_shape(lambda: kind(BLOCK, rngs=nnx.Rngs(0))))

    def loss(params, inputs):
        out = call(nnx.merge(graph, nnx.State(params)), *inputs)
        return jnp.sum(out * weight), out

    (to_params, to_inputs), out = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, inputs)
    return out, to_inputs, to_params


def rotary(transformer_flux2, torch, coordinates: np.ndarray):
    embed = transformer_flux2.Flux2PosEmbed(theta=int(BLOCK.rotary_theta), axes_dim=BLOCK.rotary)
    return embed(torch.from_numpy(coordinates))


def test_double_block(reference, blocks):
    torch, coordinates = reference.torch, np.concatenate(ids(VIDEO, TEXT))
    block = blocks.Flux2TransformerBlock(BLOCK.width, BLOCK.heads, BLOCK.width // BLOCK.heads, mlp_ratio=4.0)
    reference.randomise(block)
    embedded = rotary(blocks, torch, coordinates)
    # Modulation token by token, as levels give it, in both streams.
    text, media, *modulation, weight = random_arrays(
        (BATCH, TEXT, 144), (BATCH, VIDEO.tokens, 144), (BATCH, TEXT, 864), (BATCH, VIDEO.tokens, 864), (BATCH, 23, 144)
    )
    inputs = [SMALL * text, SMALL * media, *modulation]
    theirs = differentiated(
        torch, lambda text, media, m, n: torch.cat(block(media, text, n, m, embedded), dim=1), inputs, weight
    )

    def call(block, text, media, *modulation):
        angles = rotary_angles(jnp.asarray(coordinates), BLOCK.rotary, BLOCK.rotary_theta)
        streams = tuple(tuple(jnp.split(m, 6, axis=-1)) for m in modulation)
        return jnp.concatenate(block(text, media, streams, angles, attention), axis=1)

    out, to_inputs, to_params = our_block(DoubleBlock, call, double_block(reference.weights_of(block)), inputs, weight)
    assert_near(out, theirs[0], OUTPUTS)
    assert_near(to_inputs, theirs[1], GRADIENTS)
    assert_near(to_params, double_block(reference.gradients_of(block)), GRADIENTS)


def test_single_block(reference, blocks):
    torch, coordinates = reference.torch, np.concatenate(ids(VIDEO, TEXT))
    block = blocks.Flux2SingleTransformerBlock(BLOCK.width, BLOCK.heads, BLOCK.width // BLOCK.heads, mlp_ratio=4.0)
    reference.randomise(block)
    embedded = rotary(blocks, torch, coordinates)
    x, modulation, weight = random_arrays((BATCH, 23, 144), (BATCH, 23, 432), (BATCH, 23, 144))
    inputs = [SMALL * x, modulation]
    theirs = differentiated(torch, lambda x, m: block(x, None, m, embedded), inputs, weight)

    def call(block, x, modulation):
        angles = rotary_angles(jnp.asarray(coordinates), BLOCK.rotary, BLOCK.rotary_theta)
        return block(x, tuple(jnp.split(modulation, 3, axis=-1)), angles, attention)

    out, to_inputs, to_params = our_block(SingleBlock, call, single_block(reference.weights_of(block)), inputs, weight)
    assert_near(out, theirs[0], OUTPUTS)
    assert_near(to_inputs, theirs[1], GRADIENTS)
    assert_near(to_params, single_block(reference.gradients_of(block)), GRADIENTS)


@pytest.mark.parametrize(
    "modality",
    [Modality((45, 12, 20, 3), (1, 2, 2), period=12.5), Modality((250, 64), (1,), period=4.0)],
    ids=["45 frames of video", "10 s of audio"],
)
def test_rotary_embedding(reference, blocks, modality):
    """Their angles are computed in float64."""
    torch, coordinates = reference.torch, np.concatenate(ids(modality, 7))
    embedded = rotary(blocks, torch, coordinates)
    angles = np.asarray(rotary_angles(jnp.asarray(coordinates), BLOCK.rotary, BLOCK.rotary_theta))
    for ours_, theirs in ((np.cos(angles), embedded[0]), (np.sin(angles), embedded[1])):
        np.testing.assert_allclose(np.repeat(ours_, 2, axis=-1), theirs, rtol=0, atol=5e-5)
    (x,) = random_arrays((1, len(coordinates), 2, 72))
    turned = blocks.apply_rotary_emb(torch.from_numpy(x), embedded, sequence_dim=1)
    assert_near(rotate(jnp.asarray(x), jnp.asarray(angles)), turned.numpy(), 1e-5)


@pytest.mark.parametrize(
    "config, modality",
    [
        (CONFIG, VIDEO),
        (
            JointConfig(
                width=144, heads=2, double_blocks=2, single_blocks=3, rotary=(18, 18, 18, 18), labels=3, text=10
            ),
            Modality((8, 8, 5), (2, 2)),
        ),
    ],
    ids=["video, as recorded", "images, deeper"],
)
def test_whole_transformer(reference, config, modality):
    """Embedding of time, shared modulation, blocks and head, with the one level for all tokens that theirs has."""
    model, inputs = reference.flux2(config, modality), reference.random_inputs(config, modality)
    outputs, to_inputs, to_weights = reference.theirs(model, config, modality, inputs)
    found = ours(config, modality, transformer(reference.weights_of(model), config, "video"), inputs)
    assert_near(found[0], outputs, WHOLE_OUTPUTS)
    assert_near(found[1], to_inputs, WHOLE_GRADIENTS)
    assert_near(found[2], transformer(to_weights, config, "video"), WHOLE_GRADIENTS)


def test_golden_is_what_diffusers_computes(reference):
    golden, model = recorded(), reference.flux2(CONFIG, VIDEO)
    assert_near(reference.weights_of(model), golden["weight"], 1e-9)
    outputs, to_inputs, to_weights = reference.theirs(model, CONFIG, VIDEO, golden["input"])
    assert_near(outputs, golden["output"], WHOLE_OUTPUTS)
    assert_near(to_inputs, golden["input_gradient"], WHOLE_GRADIENTS)
    assert_near(
        {name: to_weights[name] for name in golden["weight_gradient"]}, golden["weight_gradient"], WHOLE_GRADIENTS
    )
