import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selfflow.errors import UserError
from selfflow.training.optimizer import AdamW
from selfflow.training.state import ema_decay_for, init_state, update_ema
from selfflow.training.step import key_of, make_step, sample_keys
from tests.conftest import mentions, perturbed


@pytest.mark.slow
def test_gradient_accumulation_equals_the_full_batch(objective, params, batch):
    optimizer = AdamW(learning_rate=1e-2).make()
    state = init_state(objective, optimizer, jax.random.key(0))._replace(params=params)
    ends = []
    for parts in (1, 2, 4):
        step = jax.jit(make_step(objective, optimizer, 0.9, noise_seed=5, accumulate=parts))
        end, metrics = step(state, batch)
        ends.append((end, metrics))
    for end, metrics in ends[1:]:
        for name, value in ends[0][1].items():
            np.testing.assert_allclose(metrics[name], value, rtol=2e-4, atol=1e-5, err_msg=name)
        # Adam divides by the root of the square: compare its moments, which are the gradient itself.
        mu = lambda s: optax.tree.get(s.optimizer, "mu")
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), mu(end), mu(ends[0][0]))


def test_ema_in_float32_matches_float64_over_1000_steps():
    random = np.random.default_rng(0)
    decay, size = 0.9999, 64
    p = random.standard_normal(size)
    reference, ema = p.copy(), {"w": jnp.asarray(p, jnp.float32)}
    update = jax.jit(lambda e, p: update_ema(e, {"w": p}, decay))
    for _ in range(1000):
        p = p + 0.01 * random.standard_normal(size)
        p32 = p.astype(np.float32)
        reference = decay * reference + (1 - decay) * p32.astype(np.float64)
        ema = update(ema, p32)
    distance = np.abs(reference - np.asarray(ema["w"], np.float64))
    assert distance.max() < 5e-5
    # The same in bfloat16 does not move: the test would fail for a wrong type.
    stuck = jnp.asarray(1.0, jnp.bfloat16)
    for _ in range(1000):
        stuck = (stuck + (1 - decay) * (2.0 - stuck)).astype(jnp.bfloat16)
    assert stuck == 1.0 and 1 + (1 - decay**1000) > 1.09


def test_ema_follows_the_model_and_not_the_projector(objective, batch):
    optimizer = AdamW(learning_rate=1e-2).make()
    state = init_state(objective, optimizer, jax.random.key(0))
    assert set(state.frozen["ema"]) == set(state.params["model"])
    end, _ = jax.jit(make_step(objective, optimizer, 0.75, 5))(state, batch)
    expected = jax.tree.map(lambda e, p: 0.75 * e + 0.25 * p, state.frozen["ema"], end.params["model"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), end.frozen["ema"], expected)
    assert int(end.step) == 1


@pytest.mark.parametrize("steps, decay", [(5, 0.0), (1000, 0.99), (100_000, 0.9999), (4_000_000, 0.9999)])
def test_ema_decay_fits_the_length_of_the_run(steps, decay):
    assert ema_decay_for(steps) == pytest.approx(decay)


def test_noise_of_a_sample_depends_on_seed_step_and_index(objective):
    base = jax.random.key_data(sample_keys(5, 3, 8))
    np.testing.assert_array_equal(jax.random.key_data(sample_keys(5, 3, 4)), base[:4])
    np.testing.assert_array_equal(jax.random.key_data(sample_keys(key_of(5), 3, 8)), base)
    for other in (sample_keys(6, 3, 8), sample_keys(5, 4, 8)):
        assert (jax.random.key_data(other) != base).any(axis=1).all()


@pytest.mark.slow
def test_one_program_serves_all_seeds(objective, batch):
    """Members of a sweep that differ in their seeds compile once."""
    optimizer = AdamW(learning_rate=1e-2).make()
    state = init_state(objective, optimizer, jax.random.key(0))
    five, six = (jax.jit(make_step(objective, optimizer, 0.9, seed)) for seed in (5, 6))
    text = five.lower(state, batch, key_of(5)).as_text()
    assert text == six.lower(state, batch, key_of(6)).as_text() != five.lower(state, batch).as_text()
    default = float(five(state, batch)[1]["loss"])
    assert float(six(state, batch, key_of(5))[1]["loss"]) == pytest.approx(default, rel=1e-6)
    assert float(six(state, batch, key_of(6))[1]["loss"]) != pytest.approx(default, rel=1e-3)


def test_a_model_learns_a_constant(objective, batch):
    """The loop's pieces together: on one repeated sample the flow loss falls far below the linear baseline."""
    optimizer = AdamW(learning_rate=1e-2).make()
    batch = jax.tree.map(lambda x: np.broadcast_to(x[:1], x.shape).copy(), batch)
    state = init_state(objective, optimizer, jax.random.key(0))
    step = jax.jit(make_step(objective, optimizer, 0.9, noise_seed=5))
    for _ in range(400):
        state, metrics = step(state, batch)
    assert metrics["flow_loss/video"] < 1.0 and metrics["flow_loss/audio"] < 1.0
    assert metrics["alignment_cosine/video"] > 0.5


def test_schedules():
    cosine = AdamW(learning_rate=1.0, warmup_steps=10, decay="cosine", decay_steps=110).schedule()
    assert [round(float(cosine(i)), 3) for i in (0, 5, 10, 60, 110)] == [0.0, 0.5, 1.0, 0.5, 0.0]
    constant = AdamW(learning_rate=1.0, warmup_steps=10).schedule()
    assert [float(constant(i)) for i in (0, 5, 10, 1000)] == [0.0, 0.5, 1.0, 1.0]
    assert float(AdamW(learning_rate=0.5).schedule()(0)) == 0.5


@pytest.mark.parametrize(
    "steps, rate", [(4_000_000, 1e-4), (400_000, 1e-4), (100_000, 2e-4), (25_000, 4e-4), (1000, 2e-3), (1, 2e-3)]
)
def test_the_learning_rate_fits_the_length_of_the_run(steps, rate):
    assert AdamW().resolved(steps).learning_rate == pytest.approx(rate)
    assert AdamW(learning_rate=0.5).resolved(steps).learning_rate == 0.5
    # A run that is made longer keeps its first learning rate.
    assert AdamW().resolved(2 * steps, AdamW().resolved(steps)).learning_rate == pytest.approx(rate)


@pytest.mark.parametrize(
    "field, value",
    [("learning_rate", 0.0), ("learning_rate", float("nan")), ("clip", -1.0), ("accumulate", 0), ("beta2", 1.0)],
)
def test_impossible_settings_are_named(field, value):
    with pytest.raises(UserError, match=mentions(f"optimizer.{field}", value)):
        AdamW(**{field: value})


def test_cosine_must_end_after_the_warmup():
    with pytest.raises(UserError, match=mentions("optimizer.decay_steps 10 optimizer.warmup_steps 10")):
        AdamW(decay="cosine", warmup_steps=10, decay_steps=10).schedule()


@pytest.fixture
def distance(objective, batch):
    """A state whose zero-initialised layers and teacher are no longer what they began as."""
    optimizer = AdamW(learning_rate=1e-3).make()
    state = init_state(objective, optimizer, jax.random.key(0))
    return optimizer, state._replace(params=perturbed(state.params, 0, 0.05), frozen=perturbed(state.frozen, 1, 0.05))


@pytest.mark.slow
def test_a_step_in_bfloat16_is_that_in_float32_to_its_rounding(objective, batch, distance):
    """bfloat16 keeps 8 bits: results are off by up to 2^-9 each time, and a chain of some ten by a per cent."""
    optimizer, state = distance
    half = dataclasses.replace(objective, model=dataclasses.replace(objective.model, dtype="bfloat16"))
    (a, exact), (b, actual) = (jax.jit(make_step(o, optimizer, 0.9, 5))(state, batch) for o in (objective, half))
    for name in ("loss", "gradient_norm", "alignment_cosine/video", "flow_loss/audio"):
        assert actual[name].dtype == jnp.float32
        assert actual[name] == pytest.approx(float(exact[name]), rel=0.02, abs=0.005), name
    assert {x.dtype for x in jax.tree.leaves((b.params, b.frozen, optax.tree.get(b.optimizer, "mu")))} == {
        jnp.dtype("float32")
    }
    gradients = [
        jnp.concatenate([x.ravel() for x in jax.tree.leaves(optax.tree.get(s.optimizer, "mu"))]) for s in (a, b)
    ]
    error = float(jnp.linalg.norm(gradients[0] - gradients[1]) / jnp.linalg.norm(gradients[0]))
    assert 2**-12 < error < 0.05  # neither float32 under another name, nor more than rounding


def test_in_bfloat16_statistics_and_losses_are_float32(objective, batch, distance):
    """No exponential, root or maximum of the step's program, forward or backward, is taken of half precision."""
    optimizer, state = distance
    half = dataclasses.replace(objective, model=dataclasses.replace(objective.model, dtype="bfloat16"))
    seen = set()

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("exp", "sqrt", "rsqrt", "reduce_max", "log", "integer_pow"):
                seen.add((equation.primitive.name, str(equation.invars[0].aval.dtype)))
            for value in equation.params.values():
                for inner in value if isinstance(value, tuple | list) else [value]:
                    if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                        walk(getattr(inner, "jaxpr", inner))

    walk(jax.make_jaxpr(make_step(half, optimizer, 0.9, 5))(state, batch).jaxpr)
    assert {"exp", "rsqrt", "reduce_max"} <= {name for name, _ in seen}
    assert {dtype for _, dtype in seen} == {"float32"}
