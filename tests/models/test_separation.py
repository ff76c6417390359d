"""Attention Separation against a plain mask over all pairs of tokens, in the original order."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import selfflow.models.joint
import selfflow.models.sit
from selfflow.config.files import load_experiment, read_experiment, save_experiment
from selfflow.config.resolve import resolve
from selfflow.errors import UserError
from selfflow.modality import to_tokens
from selfflow.models.joint import Caption
from selfflow.models.separation import Groups, Separation
from selfflow.models.sit import SiT, SiTConfig
from selfflow.noise import DualTimestep, UniformTimestep
from selfflow.objectives.self_flow import SelfFlowObjective
from tests.conftest import TINY, perturbed

RATIO = {"video": 0.3, "audio": 0.5, "image": 0.25}


@pytest.fixture
def inputs(objective, batch, keys_B):
    tokens = to_tokens(objective.modalities, batch["latents"])
    layout = {m: x.shape[1] for m, x in tokens.items()}
    schedule = DualTimestep(mask_ratio=RATIO)
    masked = sum(schedule.masked(m, n) for m, n in layout.items())
    return tokens, schedule.sample(keys_B, layout), jnp.array([0, 1, 2, 3]), masked


def masked_attention(group_BN, whole_B, text: int, seen_BN=None):
    """All pairs of tokens, and who may see whom written out as a mask: [text, media] in the original order."""
    kind = jnp.concatenate([jnp.full((len(group_BN), text), -1), group_BN], axis=1)
    query, key = kind[:, :, None], kind[:, None, :]
    allowed = (query == key) | (key == -1) | whole_B[:, None, None]
    if seen_BN is not None:
        allowed &= seen_BN[:, None, :]

    def attend(q, k, v, **_):
        out = jax.nn.dot_product_attention(q, k, v, mask=allowed[:, None])
        return out.reshape(*out.shape[:2], -1)

    return attend


def both_ways(monkeypatch, module, call, groups, attend):
    separated = jax.jit(lambda: call(groups))()
    with monkeypatch.context() as patch:
        patch.setattr(module, "attention", attend)
        return separated, jax.jit(lambda: call(None))()


def close(a, b):
    near = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6 * float(jnp.abs(y).max()))
    jax.tree.map(near, a, b)


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "whole, first", [pytest.param(0, [], marks=_SLOW), (1, [0]), pytest.param(2, [0, 2], marks=_SLOW)]
)
def test_the_joint_transformer_separated_equals_it_masked(objective, params, inputs, monkeypatch, whole, first):
    tokens, c, label_B, masked = inputs
    whole_B = jnp.zeros(4, bool).at[jnp.array(first, int)].set(True)
    group_BN = jnp.concatenate([c.assignment["audio"], c.assignment["video"]], axis=1)

    def call(groups):
        def loss(p):
            arguments = (tokens, c.levels, label_B, c.assignment)
            out = SelfFlowObjective.apply(objective, p, *arguments, taps=(1, 4), groups=groups)
            return jnp.sum(jnp.square(out.velocity["video"])), out

        gradient, out = jax.grad(loss, has_aux=True)(params["model"])
        return out, gradient["double"]["media"]["qkv"]["kernel"]

    attend = masked_attention(group_BN, whole_B, text=1)
    actual, expected = both_ways(monkeypatch, selfflow.models.joint, call, Groups(c.assignment, masked, whole), attend)
    close(actual, expected)


def test_captions_and_padding_are_separated_too(objective, inputs, monkeypatch):
    tokens, c, label_B, masked = inputs
    objective = dataclasses.replace(objective, model=dataclasses.replace(objective.model, text=5))
    params = perturbed(objective.init(jax.random.key(0)))["model"]
    caption = Caption(jax.random.normal(jax.random.key(1), (4, 3, 5)), jnp.arange(3) < jnp.array([[0], [1], [2], [3]]))
    valid = {"audio": jnp.arange(5) < jnp.array([[5], [2], [5], [3]])}
    group_BN = jnp.concatenate([c.assignment["audio"], c.assignment["video"]], axis=1)
    seen_BN = jnp.concatenate([jnp.ones((4, 1), bool), caption.mask, valid["audio"], jnp.ones((4, 20), bool)], axis=1)

    def call(groups):
        more = {"caption": caption, "valid": valid, "groups": groups}
        arguments = (tokens, c.levels, label_B, c.assignment)
        return SelfFlowObjective.apply(objective, params, *arguments, **more).velocity["video"]

    attend = masked_attention(group_BN, jnp.arange(4) < 1, text=4, seen_BN=seen_BN)
    actual, expected = both_ways(monkeypatch, selfflow.models.joint, call, Groups(c.assignment, masked, 1), attend)
    close(actual, expected)


@pytest.mark.parametrize("per_token", [False, True])
def test_the_sit_separated_equals_it_masked(keys_B, monkeypatch, per_token):
    config = SiTConfig(width=16, heads=2, depth=3, mlp_ratio=2.0, input_size=8, channels=3, labels=3)
    with nnx.use_eager_sharding(False):
        graph, state = nnx.split(SiT(config, rngs=nnx.Rngs(0)))
    model = nnx.merge(graph, perturbed(state))
    c = DualTimestep(mask_ratio=RATIO).sample(keys_B, {"image": 16})
    tokens = {"image": jax.random.normal(jax.random.key(2), (4, 16, 12))}
    levels, assignment = (c.tau(), None) if per_token else (c.levels, c.assignment)
    call = lambda groups: model(tokens, levels, jnp.arange(4), assignment, taps=(1, 2), groups=groups)
    attend = masked_attention(c.assignment["image"], jnp.arange(4) % 2 == 0, text=0)
    actual, expected = both_ways(monkeypatch, selfflow.models.sit, call, Groups(c.assignment, 4, 2), attend)
    close(actual, expected)


def test_no_number_crosses_between_groups(objective, params, inputs):
    tokens, c, label_B, masked = inputs
    groups = Groups(c.assignment, masked, 2)

    @jax.jit
    def velocity(video):
        seen = tokens | {"video": video}
        return objective.apply(params["model"], seen, c.levels, label_B, c.assignment, groups=groups).velocity

    shift = (c.assignment["video"] == 1)[..., None] * 1.0
    before, after = velocity(tokens["video"]), velocity(tokens["video"] + shift)
    for m in tokens:
        changed = np.asarray(jnp.abs(after[m] - before[m]).sum(-1) > 0)
        assert changed[[0, 2]].all()  # whole: everything sees everything
        np.testing.assert_array_equal(changed[[1, 3]], np.asarray(c.assignment[m])[[1, 3]] == 1)


def test_the_objective_separates_the_student_and_on_demand_the_teacher(objective, params, batch, keys_B):
    def outputs(separation):
        variant = dataclasses.replace(objective, separation=separation)
        frozen = {"ema": params["model"]}
        terms = jax.jit(lambda: variant.terms(params, frozen, batch, keys_B, variant.draw(keys_B, batch)))()
        return terms.student.velocity["video"], terms.target["video"]

    plain, student, both = outputs(None), outputs(Separation(whole=0.5)), outputs(Separation(whole=0.5, teacher=True))
    # To what rounding leaves of features as large as these.
    same = lambda a, b: np.asarray(jnp.abs(a - b).max((1, 2)) < 2e-6 * jnp.abs(a).max((1, 2)))
    np.testing.assert_array_equal(same(plain[0], student[0]), [True, False, True, False])
    np.testing.assert_array_equal(same(plain[1], student[1]), True)
    np.testing.assert_array_equal(same(student[0], both[0]), True)
    np.testing.assert_array_equal(same(plain[1], both[1]), [True, False, True, False])


def test_context_tokens_have_no_group(objective, params, batch, keys_B):
    variant = dataclasses.replace(objective, separation=Separation())
    draw = variant.draw(keys_B, batch)
    corruption = draw.student.corruption.with_context({"audio": jnp.zeros((4, 5), bool).at[:, 0].set(True)})
    draw = draw._replace(student=draw.student._replace(corruption=corruption))
    with pytest.raises(ValueError, match="context"):
        variant.terms(params, {"ema": params["model"]}, batch, keys_B, draw)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"separation": Separation(whole=0.25)}, "separation.whole 0.25 of mixture.joint, 2 samples at a time"),
        ({"separation": Separation(whole=0.0), "schedule": UniformTimestep()}, "separation needs masked tokens"),
    ],
)
def test_an_experiment_that_cannot_be_separated_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        resolve(dataclasses.replace(load_experiment(TINY), **change))
    with pytest.raises(UserError, match="separation.whole is 1.0"):
        Separation(whole=1.0)


def test_a_file_switches_it_on_and_a_run_remembers_it(tmp_path):
    file = tmp_path / "apart.py"
    file.write_text(
        "import dataclasses\nfrom selfflow.models.separation import Separation\n"
        "from tests.tiny import experiment as tiny\n"
        "def experiment():\n    return dataclasses.replace(tiny(), separation=Separation(whole=0.5))\n"
    )
    experiment = load_experiment(file)
    assert experiment.separation == Separation(whole=0.5)
    save_experiment(experiment, tmp_path / "experiment.json")
    assert read_experiment(tmp_path / "experiment.json") == experiment
