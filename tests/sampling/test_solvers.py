import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from selfflow.interop import load_released_sit
from selfflow.sampling.solvers import LAST_TAU, euler, euler_maruyama, guided, heun, time_grid
from tests.conftest import mentions
from tests.interop.released import HEADS, SAFETENSORS, recorded, settings

KEYS = jax.random.split(jax.random.key(0), 3)


def sde_grid(steps):
    return time_grid(steps, last=LAST_TAU)


@pytest.fixture(scope="module")
def velocity():
    """The recorded SiT as (x, tau, label) -> velocity."""
    graph, state = nnx.split(load_released_sit(SAFETENSORS, num_heads=HEADS)[0])

    def velocity(x, tau, label_B):
        model = nnx.merge(graph, state)
        return model({"image": x}, {"image": jnp.full(len(label_B), tau)}, label_B).velocity["image"]

    return velocity


def test_samples_are_the_original_s(velocity):
    golden = recorded()
    label_B = jnp.asarray(golden["labels"])
    sample = jax.jit(
        lambda x, z: euler_maruyama(
            lambda x, tau: velocity(x, tau, label_B), x, sde_grid(settings()["sde_steps"]), noises=z
        )
    )(golden["sde_init"], golden["sde_noises"])
    np.testing.assert_allclose(sample, golden["sde_sample"], rtol=0, atol=1e-5)


def test_guided_samples_are_the_original_s(velocity):
    golden, told = recorded(), settings()
    label_B = jnp.asarray(golden["labels"])
    null_B = jnp.full_like(label_B, told["num_classes"] - 1)
    toward = guided(velocity, label_B, null_B, told["cfg_scale"], told["guidance_low"], told["guidance_high"])
    # The recording holds noises of the null half, which matter to nobody, and of the conditional half.
    noises = golden["cfg_noises"][:, len(label_B) :]
    sample = jax.jit(lambda x, z: euler_maruyama(toward, x, sde_grid(told["sde_steps"]), noises=z))(
        golden["sde_init"], noises
    )
    np.testing.assert_allclose(sample, golden["cfg_sample"], rtol=0, atol=1e-5)
    assert np.abs(golden["cfg_sample"] - golden["sde_sample"]).max() > 0.1


def test_euler_maruyama_against_numpy():
    """The update as it is written down, with its score, step by step in float64."""
    random = np.random.default_rng(0)
    start, noises = random.standard_normal((3, 2)), random.standard_normal((6, 3, 2))
    velocity = lambda x, tau: 0.3 * x + tau
    x, taus, d = start, np.linspace(1, 0.04, 7), 0.96 / 6
    drift = lambda x, tau: -velocity(x, tau) + tau * -(x + (1 - tau) * velocity(x, tau)) / tau
    for tau, z in zip(taus, noises):
        x = x + drift(x, tau) * d + np.sqrt(2 * tau * d) * z
    x = x + drift(x, 0.04) * 0.04
    found = euler_maruyama(velocity, jnp.float32(start), sde_grid(7), noises=jnp.float32(noises))
    np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-5)


def test_samples_have_the_variance_of_the_data():
    """Of normal data of deviation 0.5 the velocity is known: E[eps - x0 | x] = (tau - (1 - tau) / 4) x / variance."""

    def velocity(x, tau):
        return (tau - (1 - tau) * 0.25) / ((1 - tau) ** 2 * 0.25 + tau**2) * x

    noise = jax.random.normal(jax.random.key(1), (4, 5000))
    for sample in (
        euler_maruyama(velocity, noise, sde_grid(250), keys_B=jax.random.split(jax.random.key(2), 4)),
        euler(velocity, noise, time_grid(250)),
        heun(velocity, noise, time_grid(50)),
    ):
        assert np.std(sample) == pytest.approx(0.5, rel=0.03)


def test_drawn_noise_depends_on_the_sample_s_key_alone_and_differs_between_steps():
    still = lambda x, tau: jax.tree.map(jnp.zeros_like, x)
    start = {"a": jnp.zeros((3, 4, 5)), "b": jnp.zeros((3, 4, 5))}
    draw = lambda steps, keys_B, x: euler_maruyama(still, x, sde_grid(steps), keys_B=keys_B)
    whole = draw(3, KEYS, start)
    first = draw(3, KEYS[:1], jax.tree.map(lambda x: x[:1], start))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:1], b), whole, first)
    values = np.stack([*whole["a"], *whole["b"]]).reshape(6, -1)
    assert np.abs(np.corrcoef(values) - np.eye(6)).max() < 0.7
    # One noisy step scales one draw; with two, the second is another draw.
    one, two = draw(2, KEYS, start)["a"].ravel(), whole["a"].ravel()
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.95


def count_calls(solve):
    """How often a solver evaluates the velocity it is given, by condition."""
    conditions = []

    def velocity(x, tau, condition):
        jax.debug.callback(lambda c: conditions.append(int(c)), condition)
        return 0.1 * x + condition

    jax.block_until_ready(solve(velocity))
    jax.effects_barrier()
    return {"null": conditions.count(0), "label": conditions.count(1)}


def test_evaluations_are_as_many_as_said():
    x = jnp.ones((3, 2))
    label, null = jnp.array(1), jnp.array(0)
    # None of these taus lies at an end of the interval.
    inside = sum(0.2 <= tau <= 0.7 for tau in np.linspace(1, 0.04, 9))
    plain = count_calls(lambda v: euler_maruyama(lambda x, tau: v(x, tau, label), x, sde_grid(9), keys_B=KEYS))
    assert plain == {"null": 0, "label": 9}
    with_guidance = count_calls(
        lambda v: euler_maruyama(guided(v, label, null, 2.0, 0.2, 0.7), x, sde_grid(9), keys_B=KEYS)
    )
    assert with_guidance == {"null": inside, "label": 9} and 0 < inside < 9
    assert count_calls(lambda v: heun(lambda x, tau: v(x, tau, label), x, time_grid(5))) == {"null": 0, "label": 9}
    assert count_calls(lambda v: euler(guided(v, label, null, 2.0), x, time_grid(5))) == {"null": 5, "label": 5}


def test_guidance_goes_from_null_to_condition_inside_its_interval():
    velocity = lambda x, tau, condition: {"a": condition * x["a"]}
    x = {"a": jnp.ones(2)}
    call = guided(velocity, 3.0, 1.0, 2.5, low=0.2, high=0.6)
    at = lambda tau: float(call(x, jnp.float32(tau))["a"][0])
    assert at(0.4) == pytest.approx(1 + 2.5 * 2)
    assert at(0.2) == at(0.6) == at(0.4)
    assert at(0.1) == at(0.7) == 3.0
    assert float(guided(velocity, 3.0, 1.0, 1.0)(x, jnp.float32(0.5))["a"][0]) == 3.0


@pytest.mark.parametrize(
    "options, words",
    [
        ({"taus": time_grid(1), "keys_B": KEYS}, "steps 1 2"),
        ({"taus": sde_grid(4)}, "noises keys_B"),
        ({"taus": sde_grid(4), "keys_B": KEYS, "noises": jnp.zeros((3, 3, 2))}, "noises keys_B"),
        ({"taus": sde_grid(4), "noises": jnp.zeros((4, 3, 2))}, "noises 4 3"),
    ],
)
def test_arguments_that_euler_maruyama_cannot_use_are_named(options, words):
    with pytest.raises(ValueError, match=mentions(words)):
        euler_maruyama(lambda x, tau: x, jnp.zeros((3, 2)), **options)


def test_heun_against_scipy_and_by_hand():
    """dx/dtau = x sin(3 tau) + tau: against a fine Runge-Kutta, of second order, and its update written out."""
    from scipy.integrate import solve_ivp

    velocity = lambda x, tau: x * jnp.sin(3 * tau) + tau
    exact = solve_ivp(lambda t, x: x * np.sin(3 * t) + t, (1, 0), [0.7], rtol=1e-10, atol=1e-12).y[0, -1]
    error = lambda solve, n: abs(float(solve(velocity, jnp.array([0.7]), time_grid(n))[0]) - exact)
    assert error(heun, 16) < error(euler, 64) / 4
    assert 3.3 < error(heun, 8) / error(heun, 16) < 5  # the last step of Euler is itself of second order
    x, taus = np.array([0.7]), time_grid(4, shift=2.0)
    f = lambda x, t: x * np.sin(3 * t) + t
    for tau, next_tau in zip(taus[:-1], taus[1:]):
        slope = f(x, tau)
        guess = x + (next_tau - tau) * slope
        x = guess if next_tau == 0 else x + (next_tau - tau) * (slope + f(guess, next_tau)) / 2
    np.testing.assert_allclose(heun(velocity, jnp.array([0.7]), taus), x, rtol=1e-6)


def test_grids():
    np.testing.assert_allclose(time_grid(4), [1, 0.75, 0.5, 0.25, 0], atol=1e-15)
    even = np.linspace(1, 0, 6)
    np.testing.assert_allclose(time_grid(5, shift=3.0), 3 * even / (1 + 2 * even))
    np.testing.assert_allclose(time_grid(250, last=0.04), [*np.linspace(1, 0.04, 250), 0], atol=1e-15)
    late = time_grid(5, shift=3.0, start=0.6)
    assert late[0] == pytest.approx(0.6) and late[-1] == 0 and (np.diff(late) < 0).all()
    shifted = time_grid(9, shift=0.5, last=0.04)
    assert shifted[0] == 1 and shifted[-2] == pytest.approx(0.04) and shifted[-1] == 0


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"steps": 4, "shift": 0.0}, {"steps": 4, "start": 0.0}, {"steps": 1, "last": 0.04}]
)
def test_grids_that_cannot_be(options):
    with pytest.raises(ValueError, match=mentions(*(f"{field} {value}" for field, value in options.items()))):
        time_grid(**options)


@pytest.mark.parametrize("solver", [euler, heun, euler_maruyama])
def test_the_model_is_compiled_once_whatever_the_steps(solver):
    traced = []

    def velocity(x, tau):
        traced.append(1)
        return x * tau

    more = {"keys_B": KEYS} if solver is euler_maruyama else {}
    jax.jit(lambda x: solver(velocity, x, sde_grid(30), **more))(jnp.ones((3, 2)))
    assert len(traced) == 1
