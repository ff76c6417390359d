import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from selfflow.errors import UserError
from selfflow.models.attention import attention
from selfflow.models.execution import Execution
from selfflow.models.joint import Output
from selfflow.models.sit import Block, SiT, SiTConfig, position_embedding
from selfflow.planning.flops import matmul_flops

BATCH, TOKENS = 3, 16


@pytest.fixture(scope="module")
def config() -> SiTConfig:
    return SiTConfig(
        width=16, heads=2, depth=4, mlp_ratio=2.0, input_size=8, channels=3, labels=3, execution=Execution(unroll=1)
    )


def abstract(config: SiTConfig, **more) -> SiT:
    with nnx.use_eager_sharding(False):
        return nnx.eval_shape(lambda: SiT(config, rngs=nnx.Rngs(0), **more))


def fresh(config: SiTConfig) -> dict:
    """Parameters as they start."""

    def init():
        with nnx.use_eager_sharding(False):
            return nnx.to_pure_dict(nnx.state(SiT(config, rngs=nnx.Rngs(0))))

    return jax.jit(init)()


@pytest.fixture(scope="module")
def params(config):
    """Parameters of which none is zero."""
    random = np.random.default_rng(0)
    shapes = nnx.to_pure_dict(nnx.state(abstract(config)))
    return jax.tree.map(lambda x: jnp.asarray(0.3 * random.standard_normal(x.shape), jnp.float32), shapes)


def run(config: SiTConfig, params, tokens, levels, label_B, assignment=None, **options) -> Output:
    """The model of these parameters, compiled, with the arrays of its one modality in and out."""
    graph = nnx.graphdef(abstract(config))

    def call(params, tokens, levels, label_B, assignment):
        assignment = None if assignment is None else {"image": assignment}
        model = nnx.merge(graph, nnx.State(params))
        out = model({"image": tokens}, {"image": levels}, label_B, assignment, **options)
        velocity = None if out.velocity is None else out.velocity["image"]
        return Output(velocity, {block: features["image"] for block, features in out.taps.items()})

    return jax.jit(call)(params, tokens, levels, label_B, assignment)


@pytest.fixture(scope="module")
def inputs():
    """Tokens, levels [B, 2], labels and the assignment."""
    keys = jax.random.split(jax.random.key(1), 3)
    tokens = jax.random.normal(keys[0], (BATCH, TOKENS, 12))
    levels = jax.random.uniform(keys[1], (BATCH, 2))
    assignment = jax.random.bernoulli(keys[2], 0.3, (BATCH, TOKENS)).astype(jnp.int32)
    return tokens, levels, jnp.array([0, 2, 3]), assignment


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), a, b)


def test_per_level_modulation_equals_per_token_modulation(config, params, inputs):
    tokens, levels, label_B, assignment = inputs
    tau = jnp.take_along_axis(levels, assignment, axis=1)
    by_level = run(config, params, tokens, levels, label_B, assignment, taps=(1, 3))
    by_token = run(config, params, tokens, tau, label_B, taps=(1, 3))
    close(by_level, by_token)
    assert by_level.velocity.shape == tokens.shape and by_level.taps[3].shape == (BATCH, TOKENS, 16)
    # One level for all: as [B], as [B, 1], and for every token.
    one = run(config, params, tokens, levels[:, 0], label_B).velocity
    close(one, run(config, params, tokens, levels[:, :1], label_B).velocity)
    close(one, run(config, params, tokens, jnp.repeat(levels[:, :1], TOKENS, axis=1), label_B).velocity)


def test_modulation_is_computed_per_level_not_per_token(config, params, inputs):
    tokens, levels, label_B, assignment = inputs
    tau = jnp.take_along_axis(levels, assignment, axis=1)
    by_level = matmul_flops(lambda p: run(config, p, tokens, levels, label_B, assignment), params)
    by_token = matmul_flops(lambda p: run(config, p, tokens, tau, label_B), params)
    each = 2 * BATCH * 16 * (4 * 6 * 16 + 2 * 16 + 16 + 256)  # of one level: the blocks, the end, the embedding of tau
    selected = 2 * BATCH * TOKENS * 2 * 16 * (4 * 6 + 2)
    assert by_token - by_level == (TOKENS - 2) * each - selected


def test_each_token_sees_its_own_tau(config, params, inputs):
    """With all gates closed tokens do not meet, and the last modulation shows the tau of each."""
    tokens, levels, label_B, assignment = inputs
    closed = params | {"blocks": jax.tree.map(jnp.zeros_like, params["blocks"])}
    velocity = lambda levels: run(config, closed, tokens, levels, label_B, assignment).velocity
    effect = velocity(levels.at[:, 1].add(0.3)) - velocity(levels)
    np.testing.assert_array_equal(np.abs(effect).sum(-1) > 0, np.asarray(assignment) == 1)


@pytest.mark.parametrize("unroll", [None, 1])
def test_taps_and_early_stop_change_nothing(config, params, inputs, unroll):
    config = dataclasses.replace(config, execution=Execution(unroll=unroll))
    tokens, levels, label_B, assignment = inputs
    call = lambda p=params, **more: run(config, p, tokens, levels, label_B, assignment, **more)
    plain, all_taps = call(), call(taps=(1, 2, 3, 4))
    assert plain.taps == {} and sorted(all_taps.taps) == [1, 2, 3, 4]
    close(plain.velocity, all_taps.velocity)
    # NaN in the weights above the last block that runs would show in any number that they touch.
    above = params | {
        name: jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params[name])
        for name in ("final_modulation", "readout")
    }
    above["blocks"] = jax.tree.map(lambda x: x.at[2:].set(jnp.nan), params["blocks"])
    stopped = call(above, taps=(1, 2), stop_at=2)
    assert stopped.velocity is None
    close(stopped.taps, {k: all_taps.taps[k] for k in (1, 2)})


def test_scan_and_unrolled_agree(config, params, inputs):
    unrolled = dataclasses.replace(config, execution=Execution(unroll=4))
    close(run(config, params, *inputs, taps=(2,)), run(unrolled, params, *inputs, taps=(2,)))


@pytest.mark.parametrize("taps, stop_at", [((5,), None), ((0,), None), ((3,), 2), ((), 5), ((), 0)])
def test_a_tap_that_is_never_reached_is_an_error(config, params, inputs, taps, stop_at):
    with pytest.raises(ValueError, match="taps"):
        run(config, params, *inputs, taps=taps, stop_at=stop_at)


def test_wrong_shapes_are_errors(config, params, inputs):
    tokens, levels, label_B, assignment = inputs
    with pytest.raises(ValueError, match="without an assignment"):
        run(config, params, tokens, levels, label_B)
    with pytest.raises(ValueError, match=r"\[B, 16, 12\]"):
        run(config, params, tokens[:, 1:], levels, label_B, assignment)
    with pytest.raises(ValueError, match="assignment of shape"):
        run(config, params, tokens, levels, label_B, assignment[:, 1:])


def test_samples_are_apart_and_labels_matter(config, params, inputs):
    tokens, levels, label_B, assignment = inputs
    seen = lambda tokens: run(config, params, tokens, levels, label_B, assignment).velocity[0, 5].sum()
    reached = np.abs(jax.grad(seen)(tokens)).sum(-1) > 0
    assert reached[0].all() and not reached[1:].any()
    other = run(config, params, tokens, levels, label_B.at[0].set(3), assignment).velocity
    effect = np.abs(other - run(config, params, *inputs).velocity).sum((1, 2))
    assert effect[0] > 0 and (effect[1:] == 0).all()


def test_one_block_against_float64(config, params):
    """The block written out once more in numpy, in float64 and head by head."""
    weights = jax.tree.map(lambda x: np.asarray(x[0], np.float64), params["blocks"])
    random = np.random.default_rng(0)
    x, condition = random.standard_normal((TOKENS, 16)), random.standard_normal((TOKENS, 16))
    dense = lambda name, x: x @ weights[name]["kernel"] + weights[name]["bias"]
    norm = lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    gelu = lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    shift1, scale1, gate1, shift2, scale2, gate2 = np.split(dense("modulation", condition), 6, axis=-1)
    qkv = dense("qkv", norm(x) * (1 + scale1) + shift1)
    heads = []
    for head in range(2):
        q, k, v = (qkv[:, 16 * part + 8 * head :][:, :8] for part in range(3))
        score = np.exp(q @ k.T / math.sqrt(8))
        heads.append(score / score.sum(-1, keepdims=True) @ v)
    y = x + gate1 * dense("project", np.concatenate(heads, axis=-1))
    expected = y + gate2 * dense("mlp_out", gelu(dense("mlp_in", norm(y) * (1 + scale2) + shift2)))

    with nnx.use_eager_sharding(False):
        graph = nnx.graphdef(nnx.eval_shape(lambda: Block(config, rngs=nnx.Rngs(0))))
    block = nnx.merge(graph, nnx.State(jax.tree.map(lambda x: x[0], params["blocks"])))
    actual = block(jnp.float32(x)[None], jnp.float32(condition)[None], None, attention, False)[0]
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_positions_tell_column_and_row():
    table = position_embedding(3, 8).reshape(3, 3, 8)
    assert (table[0, :, :4] == table[1, :, :4]).all() and (table[:, 0, 4:] == table[:, 1, 4:]).all()
    np.testing.assert_allclose(table[2, 1, :4], [np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01)], rtol=1e-6)
    np.testing.assert_allclose(table[2, 1, 4:], [np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)], rtol=1e-6)


@pytest.mark.parametrize("name, millions", [("S/2", 33), ("B/2", 130), ("L/2", 458), ("XL/2", 675)])
def test_presets_have_the_published_number_of_parameters(name, millions):
    """Table 1 of arXiv 2212.09748."""
    config = SiTConfig.named(name, input_size=32, channels=4, labels=1000)
    state = nnx.state(abstract(config))
    assert round(sum(math.prod(x.shape) for x in jax.tree.leaves(state)) / 1e6) == millions


def test_a_fresh_model_starts_as_published(config, inputs):
    config = dataclasses.replace(config, width=64, labels=500)
    state = fresh(config)
    closed = run(config, state, *inputs, taps=(1, 4))
    opened = run(config, state, *inputs, taps=(1, 4), open_gates=True)
    assert (closed.velocity == 0).all() and (closed.taps[1] == closed.taps[4]).all()
    assert np.abs(opened.taps[1] - opened.taps[4]).mean() > 0.1
    for embedding in (state["label_embedding"], state["time_in"]["kernel"], state["time_out"]["kernel"]):
        assert embedding.std() == pytest.approx(0.02, rel=0.1)
    for name, inputs, outputs in (("qkv", 64, 192), ("project", 64, 64), ("mlp_in", 64, 128), ("mlp_out", 128, 64)):
        kernel = state["blocks"][name]["kernel"]
        assert np.abs(kernel).max() == pytest.approx(math.sqrt(6 / (inputs + outputs)), rel=0.01)
        assert kernel.shape == (4, inputs, outputs) and not np.array_equal(kernel[0], kernel[1])
    biases = [x for path, x in jax.tree_util.tree_leaves_with_path(state) if "bias" in jax.tree_util.keystr(path)]
    assert len(biases) == 10 and all((x == 0).all() for x in biases)


def test_every_parameter_has_logical_axes(config):
    state = nnx.state(abstract(config, projector=True))
    for path, variable in nnx.to_flat_state(state):
        axes = variable.get_metadata("out_sharding")
        assert len(axes) == len(variable.get_value().shape), path
        assert (path[0] == "blocks") == (axes[0] == "layers"), path


def test_bfloat16_stays_close_and_keeps_parameters_in_float32(config, params, inputs):
    half = dataclasses.replace(config, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(nnx.state(abstract(half)))} == {jnp.dtype("float32")}
    a, b = run(config, params, *inputs).velocity, run(half, params, *inputs).velocity
    assert b.dtype == jnp.float32 and jnp.abs(a - b).mean() < 0.1 * jnp.abs(a).mean()


@pytest.mark.parametrize("patch, tokens", [(1, 64), (2, 16), (4, 4), (8, 1)])
def test_every_patch_size_runs(config, patch, tokens):
    sized = dataclasses.replace(config, patch_size=patch)
    x = jax.ShapeDtypeStruct((2, tokens, 3 * patch**2), jnp.float32)
    call = lambda model, x: model({"image": x}, {"image": jnp.zeros(2)}, jnp.zeros(2, int))
    out = nnx.eval_shape(call, abstract(sized), x)
    assert (sized.tokens, out.velocity["image"].shape) == (tokens, x.shape)


@pytest.mark.parametrize(
    "change", [{"width": 18}, {"heads": 3}, {"depth": 0}, {"patch_size": 3}, {"input_size": 9}, {"mlp_ratio": 0.0}]
)
def test_impossible_shapes_are_named(config, change):
    with pytest.raises(UserError, match=f"model.{next(iter(change))}"):
        dataclasses.replace(config, **change)


@pytest.mark.parametrize("name", ["XXL/2", "B", "B/3", "b/2", ""])
def test_there_is_no_other_preset(name):
    with pytest.raises(UserError, match="there is no SiT"):
        SiTConfig.named(name)
