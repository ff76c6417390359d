"""Settings of the alignment, one by one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from selfflow.errors import UserError
from selfflow.models.projector import Projector
from selfflow.noise import DualTimestep, UniformTimestep
from selfflow.objectives.alignment import SRA, LayerSync, SelfFlow
from selfflow.objectives.alignment.base import feature_error
from selfflow.objectives.draw import token_weight
from tests.conftest import perturbed


def of(objective, **alignment):
    """The objective with some fields of its alignment replaced."""
    return dataclasses.replace(objective, alignment=dataclasses.replace(objective.alignment, **alignment))


def many(batch, count):
    """The first sample so many times."""
    latents = {m: np.repeat(x[:1], count, axis=0) for m, x in batch["latents"].items()}
    return {"latents": latents, "label": np.ones(count, np.int32), "weight": np.ones(count, np.float32)}


def loss_of(objective, params, ema, batch, keys_B, step=0):
    return objective.loss(params, {"ema": ema}, batch, keys_B, objective.draw(keys_B, batch, step))


def test_the_weight_follows_the_step():
    at = lambda alignment, *steps: [float(alignment.gamma(step)) for step in steps]
    assert at(SelfFlow(weight=0.5), 0, 10_000) == [0.5, 0.5]
    assert at(SelfFlow(weight=0.5, warm_up=10), 0, 5, 10, 99) == pytest.approx([0, 0.25, 0.5, 0.5])
    assert at(SelfFlow(weight=0.5, until=20), 0, 19, 20, 21) == [0.5, 0.5, 0, 0]
    assert at(SelfFlow(weight=0.5, until=20, fade=10), 10, 15, 20, 30) == pytest.approx([0.5, 0.25, 0, 0])


def test_the_weight_multiplies_the_alignment_loss_alone(objective, params, batch, keys_B):
    ema, ended = perturbed(params["model"], 1), of(objective, weight=2.0, until=5)
    gradient = lambda o, step: jax.grad(lambda p: loss_of(o, p, ema, batch, keys_B, step)[0])(params)
    before, after = gradient(ended, 4), gradient(ended, 5)
    assert all((g == 0).all() for g in jax.tree.leaves(after["projector"]))
    assert all((g != 0).any() for g in jax.tree.leaves(before["projector"]))
    (loss, metrics), (later, same) = (loss_of(ended, params, ema, batch, keys_B, step) for step in (4, 5))
    distance = sum(1 - metrics[f"alignment_cosine/{m}"] for m in ("video", "audio"))
    np.testing.assert_allclose(loss - later, 2 * distance, rtol=1e-5)
    assert metrics["alignment_cosine/video"] == same["alignment_cosine/video"]  # it can still be followed


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("l1", lambda a, b: np.abs(a - b).mean(-1)),
        # Smooth l1 is Huber's loss over its bound.
        ("smooth_l1", lambda a, b: np.asarray(optax.losses.huber_loss(a, b, delta=0.05) / 0.05).mean(-1)),
        ("cosine", lambda a, b: 1 - (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)),
    ],
)
def test_metrics_are_those_of_others(metric, expected):
    a, b = np.random.default_rng(0).normal(scale=0.1, size=(2, 3, 7, 5)).astype(np.float32)
    error = feature_error(jnp.asarray(a), jnp.asarray(b), jnp.ones((3, 7), bool), metric)
    np.testing.assert_allclose(error, expected(a, b), rtol=1e-4)


def test_over_tokens_the_cosine_is_that_of_channels():
    a, b = np.random.default_rng(0).standard_normal((2, 3, 7, 5)).astype(np.float32)
    counted = np.ones((3, 7), bool)
    counted[:, 5:] = False
    error = feature_error(jnp.asarray(a), jnp.asarray(b), jnp.asarray(counted), "cosine", "tokens")
    x, y = a[:, :5], b[:, :5]
    cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(error, np.repeat(1 - cosines.mean(1, keepdims=True), 7, axis=1), rtol=1e-4)


def test_only_the_noisier_or_the_cleaner_tokens_count(objective, batch):
    keys_B = jax.random.split(jax.random.key(3), 32)
    draws = {name: of(objective, tokens=name).draw(keys_B, many(batch, 32)) for name in ("all", "noisier", "cleaner")}
    tau = draws["all"].student.corruption.tau()["video"]
    for name, extreme in (("noisier", tau.max(1)), ("cleaner", tau.min(1))):
        counted = np.asarray(draws[name].aligned["video"] > 0)
        np.testing.assert_array_equal(counted, np.asarray(tau) == np.asarray(extreme)[:, None])
        assert draws[name].aligned["video"].sum() == pytest.approx(1, rel=1e-4)
        np.testing.assert_array_equal(
            draws[name].weight["video"], draws["all"].weight["video"]
        )  # the flow loss is whole
    assert (np.asarray(draws["all"].aligned["video"]) > 0).all()


def test_context_tokens_are_not_the_cleaner_ones(objective, batch, keys_B):
    corruption = objective.draw(keys_B, batch).student.corruption.with_context(
        {"video": jnp.zeros((4, 20), bool).at[:, :7].set(True)}
    )
    counted = np.asarray(token_weight(corruption, {}, jnp.ones(4), "cleaner")["video"] > 0)
    assert not counted[:, :7].any() and counted[:, 7:].any(1).all()


def test_what_the_teacher_sees(objective, batch):
    keys_B, data = jax.random.split(jax.random.key(5), 4000), many(batch, 4000)
    seen = {view: of(objective, teacher_view=view).draw(keys_B, data) for view in ("min", "same", "interval")}
    student = np.asarray(seen["min"].student.corruption.levels["video"])
    np.testing.assert_array_equal(seen["min"].teacher.corruption.tau()["video"][:, 0], student.min(1))
    np.testing.assert_array_equal(seen["same"].teacher.corruption.levels["video"], student)
    decrease = student - np.asarray(seen["interval"].teacher.corruption.levels["video"])
    deep = (student > 0.2).all(1)  # elsewhere levels stop at 0
    for level in decrease[deep].T:
        assert stats.kstest(level, stats.uniform(0, 0.2).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(decrease[deep].T)[0, 1]) < 0.1  # each group draws its own
    assert (decrease >= 0).all() and (decrease <= student + 1e-7).all()
    np.testing.assert_array_equal(
        seen["interval"].teacher.corruption.assignment["video"], seen["interval"].student.corruption.assignment["video"]
    )


def test_the_teacher_may_keep_conditions_that_are_dropped_for_the_student(objective, batch, keys_B):
    dropping = dataclasses.replace(objective, condition_drop=1.0)
    shared, undropped = (of(dropping, teacher_keeps_condition=x).draw(keys_B, batch) for x in (False, True))
    null = objective.model.labels
    assert (shared.student.label == null).all() and (undropped.student.label == null).all()
    assert (shared.teacher.label == null).all()
    np.testing.assert_array_equal(undropped.teacher.label, batch["label"])
    unlabelled = of(dropping, teacher_keeps_condition=True).draw(keys_B, batch | {"label": np.full(4, -1)})
    assert (unlabelled.teacher.label == null).all()


def test_layer_sync_pulls_the_earlier_layer_and_runs_no_teacher(objective, batch, keys_B):
    variant = dataclasses.replace(objective, alignment=LayerSync(student_layer=1, teacher_layer=3))
    params = perturbed(variant.init(jax.random.key(0)))
    assert "projector" not in params and variant.draw(keys_B, batch).teacher is None
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params["model"])
    alignment = lambda p: loss_of(variant, p, broken, batch, keys_B)[1]["alignment_cosine/video"]
    value, gradient = jax.jit(jax.value_and_grad(alignment))(params)
    assert np.isfinite(value)
    reached = {name: sum(float(jnp.abs(g).sum()) for g in jax.tree.leaves(g)) for name, g in gradient["model"].items()}
    assert reached["embed"] > 0 and reached["single"] == 0  # block 3 is the first single-stream block, and the target
    terms = variant.terms(params, {"ema": broken}, batch, keys_B, variant.draw(keys_B, batch))
    np.testing.assert_array_equal(terms.student.taps[3]["video"], terms.target["video"])


@pytest.mark.parametrize(
    ("depth", "count"), [(1, 16 * 16 + 16), (2, 2 * 16 * 32 + 48), (3, 2 * 16 * 32 + 32 * 32 + 80)]
)
def test_projectors_of_other_depths(objective, depth, count):
    variant = of(objective, projector_depth=depth)
    params = jax.eval_shape(variant.init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params["projector"])) == count
    axes = {name: axes for name, axes in variant.logical_axes().items() if name.startswith("projector")}
    assert len(axes) == 2 * depth and all(
        len(set(filter(None, a))) == len(list(filter(None, a))) for a in axes.values()
    )


def test_a_projector_may_lead_elsewhere():
    from flax import nnx

    with nnx.use_eager_sharding(False):
        projector = Projector(6, rngs=nnx.Rngs(0), depth=3, outputs=4)
    assert projector(jnp.ones((2, 5, 6))).shape == (2, 5, 4)


@pytest.mark.parametrize("schedule", [UniformTimestep(), DualTimestep()])
@pytest.mark.parametrize(
    "alignment",
    [
        SRA(student_layer=1, teacher_layer=3),
        SelfFlow(student_layer=1, teacher_layer=3, over="tokens", projector_depth=0, tokens="noisier"),
    ],
)
def test_other_methods_go_with_schedules(objective, batch, keys_B, schedule, alignment):
    variant = dataclasses.replace(objective, schedule=schedule, alignment=alignment)
    params = perturbed(variant.init(jax.random.key(0)))
    loss, metrics = loss_of(variant, params, params["model"], batch, keys_B)
    name = "alignment_loss/video" if alignment.kind == "sra" else "alignment_cosine/video"
    assert np.isfinite(loss) and np.isfinite(metrics[name])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelfFlow(weight=-1), "alignment.weight is -1"),
        (lambda: SelfFlow(fade=5), "alignment.fade is 5"),
        (lambda: SelfFlow(until=3, fade=5), "alignment.until is 3"),
        (lambda: SelfFlow(metric="l1", over="tokens"), "alignment.over is tokens"),
        (lambda: SRA(interval=0.0), "alignment.interval is 0.0"),
        (lambda: SelfFlow(projector_depth=-1), "alignment.projector_depth is -1"),
        (lambda: LayerSync(student_layer=3, teacher_layer=3).check(5, 16, {}), "alignment.student_layer is 3"),
        (lambda: LayerSync(student_layer=3, teacher_layer=6).check(5, 16, {}), "alignment.teacher_layer is 6"),
        (lambda: SelfFlow(student_layer=0).check(20, 16, {}), "alignment.student_layer is 0"),
    ],
)
def test_impossible_settings_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
