import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from selfflow.errors import UserError
from selfflow.modality import to_tokens
from selfflow.models.execution import Execution
from selfflow.models.joint import Caption
from selfflow.models.layers import rotary_angles, rotate, select, sinusoids
from selfflow.noise import DualTimestep
from selfflow.objectives.self_flow import SelfFlowObjective
from selfflow.planning.flops import matmul_flops
from tests.conftest import perturbed


@pytest.fixture
def inputs(objective, batch, keys_B):
    tokens = to_tokens(objective.modalities, batch["latents"])
    corruption = DualTimestep(mask_ratio={"video": 0.3, "audio": 0.5}).sample(
        keys_B, {m: x.shape[1] for m, x in tokens.items()}
    )
    return tokens, corruption, jnp.array([0, 1, 2, 3])


def test_per_level_modulation_equals_per_token_modulation(objective, params, inputs):
    tokens, c, label_B = inputs
    by_level = objective.apply(params["model"], tokens, c.levels, label_B, c.assignment, taps=(1, 4))
    tau = c.tau()
    own = {m: jnp.broadcast_to(jnp.arange(t.shape[1]), t.shape) for m, t in tau.items()}
    by_token = objective.apply(params["model"], tokens, tau, label_B, own, taps=(1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), by_level, by_token)


def test_each_token_sees_its_own_tau(objective, params, inputs):
    """Without attention between tokens a velocity would depend on its own tau alone: the last modulation shows it."""
    tokens, c, label_B = inputs
    flat = params["model"] | {
        name: jax.tree.map(jnp.zeros_like, params["model"][name])
        for name in ("double_text", "double_media", "single_modulation")
    }  # all gates closed: blocks are the identity, the readout is modulated
    velocity = lambda levels: objective.apply(flat, tokens, levels, label_B, c.assignment).velocity["video"]
    effect = velocity(c.levels | {"video": c.levels["video"].at[:, 1].add(0.3)}) - velocity(c.levels)
    changed = np.asarray(jnp.abs(effect).sum(-1) > 0)
    np.testing.assert_array_equal(changed, np.asarray(c.assignment["video"]) == 1)


def run_as(objective, **execution):
    return dataclasses.replace(objective, model=dataclasses.replace(objective.model, execution=Execution(**execution)))


@pytest.mark.parametrize("unroll", [None, 1])
def test_taps_and_early_stop_change_nothing(objective, params, inputs, unroll):
    tokens, c, label_B = inputs
    objective = run_as(objective, unroll=unroll)
    call = lambda **more: objective.apply(params["model"], tokens, c.levels, label_B, c.assignment, **more)
    plain, all_taps = call(), call(taps=(1, 2, 3, 4, 5))
    assert plain.taps == {} and sorted(all_taps.taps) == [1, 2, 3, 4, 5]
    for m in tokens:
        np.testing.assert_allclose(plain.velocity[m], all_taps.velocity[m], rtol=1e-4, atol=1e-5)
        for k in (1, 2, 4):
            stopped = call(taps=(k,), stop_at=k)
            assert stopped.velocity is None
            assert stopped.taps[k][m].shape == (*tokens[m].shape[:2], 16)  # media tokens alone
            np.testing.assert_allclose(stopped.taps[k][m], all_taps.taps[k][m], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("taps, stop_at", [((6,), None), ((0,), None), ((3,), 2), ((), 6)])
def test_a_tap_that_is_never_reached_is_an_error(objective, params, inputs, taps, stop_at):
    tokens, c, label_B = inputs
    with pytest.raises(ValueError, match="taps"):
        objective.apply(params["model"], tokens, c.levels, label_B, c.assignment, taps=taps, stop_at=stop_at)


def test_modalities_of_a_set_attend_to_each_other_and_to_the_label(objective, params, inputs):
    tokens, c, label_B = inputs
    run = lambda tokens, label: objective.apply(params["model"], tokens, c.levels, label, c.assignment).velocity
    base = run(tokens, label_B)
    other = run(tokens | {"audio": tokens["audio"].at[0].add(1.0)}, label_B)
    difference = jnp.abs(other["video"] - base["video"]).sum((1, 2))
    assert difference[0] > 0 and (difference[1:] == 0).all()
    assert (jnp.abs(run(tokens, jnp.full(4, 3))["video"] - base["video"]).sum((1, 2)) > 0)[:3].all()


def test_the_order_of_modalities_does_not_matter(objective, params, inputs):
    tokens, c, label_B = inputs
    turned = dict(reversed(tokens.items()))

    def velocity(tokens):
        # Of the plain objective: an argument of jax.jit has its modalities sorted.
        arguments = (c.levels, label_B, c.assignment)
        return jax.jit(lambda: SelfFlowObjective.apply(objective, params["model"], tokens, *arguments).velocity)()

    a, b = velocity(tokens), velocity(turned)
    jax.tree.map(np.testing.assert_array_equal, a, dict(b))


def test_an_untrained_network_repeats_its_embedding_unless_its_gates_are_open(objective, inputs):
    tokens, c, label_B = inputs
    fresh = objective.init(jax.random.key(0))["model"]
    run = lambda **more: objective.apply(fresh, tokens, c.levels, label_B, c.assignment, taps=(1, 5), **more)
    closed, opened = run(), run(open_gates=True)
    np.testing.assert_array_equal(closed.taps[1]["video"], closed.taps[5]["video"])
    assert jnp.abs(opened.taps[1]["video"] - opened.taps[5]["video"]).mean() > 0.1

    @jax.jit
    def either(open_gates):
        arguments = (fresh, tokens, c.levels, label_B, c.assignment)
        return SelfFlowObjective.apply(objective, *arguments, taps=(1, 5), open_gates=open_gates).taps

    for open_gates, expected in ((False, closed), (True, opened)):
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), either(open_gates), expected.taps)


def test_no_biases_and_shared_modulation(objective, params):
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params["model"])]
    assert not [n for n in names if "bias" in n]
    assert sum("modulation" in n or "double_text" in n or "double_media" in n for n in names) == 4


def test_teacher_costs_only_its_own_layers(objective, params, inputs):
    """FLOPs by the jaxpr: the teacher's pass is the share of the blocks up to k, without a head."""
    tokens, c, label_B = inputs
    teacher = c.at_min_level()

    def flops(config, **more):
        run = dataclasses.replace(objective, model=config)
        model = run.init(jax.random.key(0))["model"]
        apply = lambda p: run.apply(p, tokens, teacher.levels, label_B, teacher.assignment, **more)
        return matmul_flops(apply, model)

    config = objective.model
    for k in (1, 2, 3, 4):
        double, single = min(k, 2), max(k - 2, 0)
        short = dataclasses.replace(config, double_blocks=max(double, 1), single_blocks=max(single, 1))
        cut, whole = flops(config, taps=(k,), stop_at=k), flops(short)
        rows, width, levels = 4 * sum(x.shape[1] for x in tokens.values()), 16, 1 + len(tokens)
        head = 2 * 4 * sum(x.shape[1] * width * x.shape[2] for x in tokens.values())  # readout
        head += 2 * 4 * levels * width * 2 * width + 2 * 2 * rows * levels * width  # its modulation, selected
        if single:
            assert cut == whole - head
        assert cut < flops(config)
    # A scan counts as often as it runs.
    assert flops(dataclasses.replace(config, execution=Execution(unroll=1))) == flops(config)


def test_modulation_is_computed_per_level_not_per_token(objective, inputs):
    tokens, c, label_B = inputs
    model = objective.init(jax.random.key(0))["model"]
    tau = c.tau()
    own = {m: jnp.broadcast_to(jnp.arange(t.shape[1]), t.shape) for m, t in tau.items()}
    by_level = matmul_flops(lambda p: objective.apply(p, tokens, c.levels, label_B, c.assignment), model)
    by_token = matmul_flops(lambda p: objective.apply(p, tokens, tau, label_B, own), model)
    assert by_token > 1.2 * by_level


def test_rotary_attention_depends_on_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    score = lambda a, b: jnp.sum(
        rotate(q, rotary_angles(jnp.array([a]), (2, 2, 2, 2), 2000.0))
        * rotate(k, rotary_angles(jnp.array([b]), (2, 2, 2, 2), 2000.0))
    )
    a, b, shift = jnp.array([4.0, 1, 2, 0]), jnp.array([12.0, 3, 0, 1]), jnp.array([80.0, 2, 5, 3])
    assert score(a, b) == pytest.approx(float(score(a + shift, b + shift)), abs=1e-4)
    assert abs(score(a, b) - score(a, b + shift)) > 1e-2


def test_sinusoids_against_float64():
    tau = np.linspace(0, 1, 11)
    angle = 1000 * tau[:, None] * 10000.0 ** (-np.arange(128) / 128)
    expected = np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)
    np.testing.assert_allclose(sinusoids(jnp.asarray(tau, jnp.float32)), expected, atol=2e-4)


@pytest.mark.parametrize("levels", [1, 2, 3, 40])
def test_select_is_a_lookup_with_its_gradient(levels):
    random = np.random.default_rng(0)
    modulation = jnp.asarray(random.standard_normal((2, levels, 5)), jnp.float32)
    assignment = jnp.asarray(random.integers(0, levels, (2, 40)))
    np.testing.assert_array_equal(select(modulation, assignment), np.asarray(modulation)[[[0], [1]], assignment])
    gradient = jax.grad(lambda m: select(m, assignment).sum())(modulation)
    counts = np.stack([np.bincount(a, minlength=levels) for a in np.asarray(assignment)])
    np.testing.assert_allclose(gradient[..., 0], counts)


def test_bfloat16_stays_close_and_keeps_parameters_in_float32(objective, params, inputs):
    tokens, c, label_B = inputs
    half = dataclasses.replace(objective, model=dataclasses.replace(objective.model, dtype="bfloat16"))
    assert {x.dtype for x in jax.tree.leaves(half.init(jax.random.key(0)))} == {jnp.dtype("float32")}
    a = objective.apply(params["model"], tokens, c.levels, label_B, c.assignment).velocity["video"]
    b = half.apply(params["model"], tokens, c.levels, label_B, c.assignment).velocity["video"]
    assert b.dtype == jnp.float32 and jnp.abs(a - b).mean() < 0.1 * jnp.abs(a).mean()


@pytest.mark.parametrize(
    "change", [{"width": 17}, {"rotary": (2, 2, 2, 4)}, {"rotary": (1, 3, 2, 2)}, {"single_blocks": 0}]
)
def test_impossible_shapes_are_named(config, change):
    with pytest.raises(UserError, match="model"):
        dataclasses.replace(config, **change)


def test_every_parameter_has_logical_axes(objective):
    state = nnx.state(nnx.eval_shape(lambda: objective._model(jax.random.key(0))))
    for path, variable in nnx.to_flat_state(state):
        axes = variable.get_metadata("out_sharding")
        assert len(axes) == len(variable.get_value().shape), path


@pytest.fixture
def captioned(objective):
    objective = dataclasses.replace(objective, model=dataclasses.replace(objective.model, text=6))
    caption = Caption(jax.random.normal(jax.random.key(3), (4, 5, 6)), jnp.arange(5) < jnp.array([[5], [3], [1], [0]]))
    return objective, perturbed(jax.jit(objective.init)(jax.random.key(0))), caption


def test_captions_are_attended_to_where_their_mask_says(captioned, inputs):
    objective, params, caption = captioned
    tokens, c, label_B = inputs

    def video(embedding, mask):
        given = Caption(embedding, mask)
        return objective.apply(params["model"], tokens, c.levels, label_B, c.assignment, caption=given).velocity[
            "video"
        ]

    gradient = jax.grad(lambda e: jnp.abs(video(e, caption.mask)).sum())(caption.embedding)
    np.testing.assert_array_equal(np.asarray(jnp.abs(gradient).sum(-1) > 0), np.asarray(caption.mask))
    # The positions of a caption are distinguished.
    swapped = caption.embedding[:, jnp.array([1, 0, 2, 3, 4])]
    assert jnp.abs(video(swapped, caption.mask) - video(*caption))[0].max() > 1e-4


def test_a_dropped_caption_is_the_learned_null_alone(captioned, inputs):
    """An empty mask with the null label equals no caption at all: there is one null condition."""
    objective, params, caption = captioned
    tokens, c, _ = inputs
    null_B = jnp.full(4, 3)
    call = lambda **more: objective.apply(params["model"], tokens, c.levels, null_B, c.assignment, **more).velocity
    dropped = call(caption=caption._replace(mask=jnp.zeros((4, 5), bool)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), dropped, call())


def test_a_model_without_captions_refuses_one(objective, params, inputs):
    tokens, c, label_B = inputs
    with pytest.raises(ValueError, match="model.text is 0"):
        caption = Caption(jnp.zeros((4, 2, 6)), jnp.ones((4, 2), bool))
        objective.apply(params["model"], tokens, c.levels, label_B, c.assignment, caption=caption)


def test_padding_is_seen_by_nobody_and_a_padded_clip_equals_the_short_one(objective, params, batch, keys_B):
    tokens = to_tokens(objective.modalities, batch["latents"])
    c = DualTimestep().sample(keys_B, {m: x.shape[1] for m, x in tokens.items()})
    frames = {"video": 3, "audio": 6}
    counts = {"video": 3 * 4, "audio": 3}
    label_B = jnp.array([0, 1, 2, 3])
    modalities = objective.modalities
    valid = {m: modalities[m].valid_tokens(jnp.full(4, n)) for m, n in frames.items()}
    assert {m: int(v[0].sum()) for m, v in valid.items()} == counts

    def call(tokens, assignment, valid):
        return objective.apply(params["model"], tokens, c.levels, label_B, assignment, taps=(1, 4), valid=valid)

    padded = call(tokens, c.assignment, valid)
    cut = lambda tree: {m: tree[m][:, : counts[m]] for m in counts}
    short = call(cut(tokens), cut(c.assignment), None)
    for m in counts:
        np.testing.assert_allclose(padded.velocity[m][:, : counts[m]], short.velocity[m], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(padded.taps[4][m][:, : counts[m]], short.taps[4][m], rtol=1e-4, atol=1e-4)
    seen = lambda video: sum(
        x.sum() for x in cut(call(tokens | {"video": video}, c.assignment, valid).velocity).values()
    )
    gradient = jnp.abs(jax.grad(seen)(tokens["video"])).sum((0, 2))
    np.testing.assert_array_equal(np.asarray(gradient > 0), np.arange(20) < 12)
