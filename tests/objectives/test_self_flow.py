"""The objective: what depends on what, proved with gradients and with NaNs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfflow.modality import to_tokens
from selfflow.noise import DiffusionForcing, DualTimestep, FullMasking, UniformTimestep, corrupt, draw_eps
from selfflow.objectives.alignment import NoAlignment, SelfFlow
from selfflow.objectives.alignment.base import cosine, feature_error
from selfflow.objectives.draw import token_weight
from tests.conftest import perturbed


def loss_of(objective, params, ema, batch, keys_B, draw=None):
    draw = draw or objective.draw(keys_B, batch)
    return objective.loss(params, {"ema": ema}, batch, keys_B, draw)


def size(tree) -> float:
    return float(sum(jnp.abs(x).sum() for x in jax.tree.leaves(tree)))


def test_gradients_reach_student_and_projector_and_not_the_teacher(objective, params, batch, keys_B):
    gradient = jax.jit(jax.grad(lambda p, ema: loss_of(objective, p, ema, batch, keys_B)[0], argnums=(0, 1)))
    student, teacher = gradient(params, perturbed(params["model"], 1))
    assert size(teacher) == 0.0
    # Every trained array but the projections of a modality that is not in the batch.
    for path, g in jax.tree_util.tree_leaves_with_path(student):
        name = jax.tree_util.keystr(path)
        assert (size(g) == 0) == ("image" in name), name


def test_alignment_reaches_the_first_layers_alone(objective, params, batch, keys_B):
    ema = perturbed(params["model"], 1)

    def alignment(p):
        return loss_of(objective, p, ema, batch, keys_B)[1]["alignment_cosine/video"]

    gradient = jax.jit(jax.grad(alignment))(params)
    layers = jax.tree.map(lambda g: jnp.abs(g).sum(axis=tuple(range(1, g.ndim))), gradient["model"]["double"])
    per_layer = np.sum([np.asarray(x) for x in jax.tree.leaves(layers)], axis=0)
    assert per_layer[0] > 0 and per_layer[1] == 0  # student layer 1 of two double-stream blocks
    assert size(gradient["model"]["single"]) == size(gradient["model"]["readout"]) == 0
    assert size(gradient["projector"]) > 0


def test_teacher_layers_above_k_and_its_head_are_never_touched(objective, params, batch, keys_B):
    ema = params["model"]
    k = objective.alignment.teacher_layer
    first = objective.model.double_blocks
    single = jax.tree.map(lambda x: x.at[k - first :].set(jnp.nan), ema["single"])
    nan = lambda tree: jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), tree)
    broken = ema | {"single": single, "readout": nan(ema["readout"]), "final_modulation": nan(ema["final_modulation"])}
    whole, _ = loss_of(objective, params, ema, batch, keys_B)
    cut, metrics = loss_of(objective, params, broken, batch, keys_B)
    assert whole == cut and np.isfinite(metrics["alignment_cosine/video"])
    # The check itself can fail: one layer lower is needed.
    needed = ema | {"single": jax.tree.map(lambda x: x.at[k - first - 1 :].set(jnp.nan), ema["single"])}
    assert np.isnan(loss_of(objective, params, needed, batch, keys_B)[0])


def test_student_and_teacher_share_noise_label_and_positions(objective, params, batch, keys_B):
    """At one level for all, with equal weights and equal layers, the two views are the same numbers."""
    same = dataclasses.replace(objective, schedule=UniformTimestep())
    draw = same.draw(keys_B, batch)
    label_B = np.asarray(draw.student.label)
    assert set(label_B) - {3} and 3 in label_B  # some labels dropped, some not
    teacher = same.terms(params, {"ema": params["model"]}, batch, keys_B, draw).target
    again = same.apply(params["model"], *_inputs(same, batch, keys_B, draw), taps=(same.alignment.teacher_layer,))
    for m in batch["latents"]:
        np.testing.assert_allclose(teacher[m], again.taps[3][m], rtol=1e-4, atol=1e-4)


def _inputs(objective, batch, keys_B, draw):
    """Inputs of the model in the student's forward pass."""
    x = to_tokens(objective.modalities, batch["latents"])
    corruption = draw.student.corruption
    noisy = corrupt(x, draw_eps(keys_B, x), corruption)
    return noisy, corruption.levels, draw.student.label, corruption.assignment


def test_velocity_to_predict_is_noise_minus_data(objective, params, batch, keys_B):
    draw = objective.draw(keys_B, batch)
    velocity = objective.terms(params, {"ema": params["model"]}, batch, keys_B, draw).velocity
    x = to_tokens(objective.modalities, batch["latents"])
    eps = draw_eps(keys_B, x)
    np.testing.assert_allclose(velocity["audio"], eps["audio"] - x["audio"], rtol=1e-5, atol=1e-6)


def _with_corruption(draw, corruption, batch):
    """The draw with another corruption."""
    weight = token_weight(corruption, {}, batch["weight"])
    student = draw.student._replace(corruption=corruption)
    teacher = draw.teacher._replace(corruption=corruption.at_min_level())
    return draw._replace(student=student, weight=weight, aligned=weight, teacher=teacher)


def test_context_tokens_enter_no_loss(objective, params, batch, keys_B):
    free = objective.draw(keys_B, batch)
    context = {"video": jnp.zeros((4, 20), bool).at[:, :7].set(True)}
    corruption = free.student.corruption.with_context(context)
    draw = _with_corruption(free, corruption, batch)

    def per_token(shift):
        # What is predicted for the context tokens does not matter: only what others see of them does.
        terms = objective.terms(params, {"ema": params["model"]}, batch, keys_B, draw)
        error = jnp.square(terms.student.velocity["video"] + shift - terms.velocity["video"]).mean(-1)
        return jnp.sum(error * draw.weight["video"])

    gradient = jax.grad(per_token)(jnp.zeros((4, 20, 1)))
    assert (gradient[:, :7] == 0).all() and (gradient[:, 7:] != 0).all()
    np.testing.assert_allclose(draw.weight["video"].sum(), 1.0, rtol=1e-6)
    # The same of the whole loss: the velocity target of context tokens enters through x0 alone, which they show to
    # others, so the loss must not change where no other token can see it.
    _, metrics = loss_of(objective, params, params["model"], batch, keys_B, draw)
    assert metrics["flow_count/video"].sum() == 4 * 13
    of_weight = jax.grad(
        lambda w: objective.loss(params, {"ema": params["model"]}, batch, keys_B, draw._replace(weight=w, aligned=w))[0]
    )
    # The derivative of the loss by each token's weight: flow and alignment error of that token.
    sensitivity = of_weight(draw.weight)["video"]
    by_hand = loss_of(objective, params, params["model"], batch, keys_B, draw)[0]
    others = {m: jnp.sum(of_weight(draw.weight)[m] * draw.weight[m]) for m in draw.weight}
    np.testing.assert_allclose(sum(others.values()), by_hand, rtol=1e-5)
    assert (sensitivity[:, :7] > 0).all() and (draw.weight["video"][:, :7] == 0).all()
    all_context = free.student.corruption.with_context({"video": jnp.ones((4, 20), bool)})
    draw = _with_corruption(free, all_context, batch)
    loss, metrics = loss_of(objective, params, params["model"], batch, keys_B, draw)
    assert np.isfinite(loss) and metrics["flow_loss/video"] == 0


def test_an_unreadable_sample_weighs_nothing(objective, params, batch, keys_B):
    """Its slot stays: the loss is that of the others, and does not depend on its contents."""
    ema = perturbed(params["model"], 1)
    without = batch | {"weight": np.array([1, 0, 1, 1], np.float32)}
    draw = objective.draw(keys_B, without)
    loss, metrics = loss_of(objective, params, ema, without, keys_B, draw)
    other = without | {"latents": {m: np.where(np.arange(4).reshape(4, *[1] * (x.ndim - 1)) == 1, 9.0, x)
                                   for m, x in batch["latents"].items()}}  # fmt: skip
    again, _ = loss_of(objective, params, ema, other, keys_B, draw)
    np.testing.assert_allclose(loss, again, rtol=1e-6)
    assert metrics["flow_count/video"].sum() == 3 * 20 and loss_of(objective, params, ema, batch, keys_B)[0] != loss
    none = batch | {"weight": np.zeros(4, np.float32)}
    gradient = jax.grad(lambda p: loss_of(objective, p, ema, none, keys_B)[0])(params)
    assert size(gradient) == 0.0


def test_padding_enters_no_loss(objective, params, batch, keys_B):
    ema = perturbed(params["model"], 1)
    frames = {"video": np.array([5, 3, 1, 0]), "audio": np.array([10, 6, 2, 0])}
    padded = batch | {"frames": frames}
    draw = objective.draw(keys_B, padded)
    assert (draw.weight["video"] > 0).sum() == 4 * (5 + 3 + 1) and (draw.weight["audio"] > 0).sum() == 5 + 3 + 1
    np.testing.assert_allclose(draw.weight["video"].sum(), 1, rtol=1e-6)
    loss, _ = loss_of(objective, params, ema, padded, keys_B, draw)
    beyond = lambda m, x: (
        np.arange(x.shape[1]).reshape(1, -1, *[1] * (x.ndim - 2)) >= frames[m].reshape(4, *[1] * (x.ndim - 1))
    )
    other = padded | {"latents": {m: np.where(beyond(m, x), 9.0, x) for m, x in batch["latents"].items()}}
    np.testing.assert_allclose(loss_of(objective, params, ema, other, keys_B, draw)[0], loss, rtol=1e-5)
    # Sample 3 is all padding, as an unreadable record is: it must not turn the loss into NaN.
    gradient = jax.grad(lambda p: loss_of(objective, p, ema, padded, keys_B)[0])(params)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    results, again = (objective.diagnose(params, {"ema": ema}, b, keys_B) for b in (padded, other))
    for name in results:
        np.testing.assert_allclose(results[name], again[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_label_and_caption_are_dropped_together(objective, batch):
    objective = dataclasses.replace(objective, model=dataclasses.replace(objective.model, text=6))
    keys_B = jax.random.split(jax.random.key(0), 400)
    many = {m: np.repeat(x[:1], 400, axis=0) for m, x in batch["latents"].items()}
    caption = (np.ones((400, 3, 6), np.float16), np.ones((400, 3), bool))
    repeated_batch = {
        "latents": many,
        "label": np.ones(400, np.int32),
        "weight": np.ones(400, np.float32),
        "caption": caption,
    }
    draw = objective.draw(keys_B, repeated_batch)
    dropped = np.asarray(draw.student.label) == 3
    np.testing.assert_array_equal(dropped, ~np.asarray(draw.student.caption.mask).any(1))
    assert 0.4 < dropped.mean() < 0.6  # condition_drop is one half


def test_each_modality_is_a_mean_of_its_own(objective, params, batch, keys_B):
    """25 audio tokens weigh as much as 400 video tokens; weights multiply a modality's two losses."""
    heavy = dataclasses.replace(objective, modality_weight={"audio": 3.0})
    plain, m = loss_of(objective, params, params["model"], batch, keys_B)
    loss, _ = loss_of(heavy, params, params["model"], batch, keys_B)
    gamma = objective.alignment.weight
    part = {k: m[f"flow_loss/{k}"] + gamma * (1 - m[f"alignment_cosine/{k}"]) for k in ("video", "audio")}
    np.testing.assert_allclose(plain, part["video"] + part["audio"], rtol=1e-5)
    np.testing.assert_allclose(loss, part["video"] + 3 * part["audio"], rtol=1e-5)


def test_buckets_of_tau_add_up_to_the_loss(objective, params, batch, keys_B):
    _, m = loss_of(objective, params, params["model"], batch, keys_B)
    for k in ("video", "audio"):
        np.testing.assert_allclose(
            m[f"flow_sum/{k}"].sum() / m[f"flow_count/{k}"].sum(), m[f"flow_loss/{k}"], rtol=1e-5
        )


@pytest.mark.parametrize("schedule", [UniformTimestep(), DualTimestep(), FullMasking(), DiffusionForcing()])
@pytest.mark.parametrize("alignment", [NoAlignment(), SelfFlow(student_layer=1, teacher_layer=3)])
def test_every_schedule_goes_with_every_alignment(objective, batch, keys_B, schedule, alignment):
    objective = dataclasses.replace(objective, schedule=schedule, alignment=alignment)
    params = objective.init(jax.random.key(0))
    assert ("projector" in params) == (alignment.kind != "none")
    loss, metrics = loss_of(objective, params, params["model"], batch, keys_B)
    # At zero initialisation the velocity is 0, whose flow loss is E (eps - x0)^2, about 2 a modality.
    assert metrics["flow_loss/video"] == pytest.approx(2.0, abs=0.5) and np.isfinite(loss)


def test_cosine_is_safe_and_right():
    a, b = np.random.default_rng(0).standard_normal((2, 50, 8))
    expected = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(cosine(jnp.asarray(a), jnp.asarray(b)), expected, rtol=1e-4, atol=1e-6)
    zero = jax.grad(lambda x: cosine(x, jnp.ones(8)).sum())(jnp.zeros(8))
    assert np.isfinite(zero).all()
    # Half precision squares of 300 overflow; the cosine must not.
    half = jnp.full((1, 8), 300.0, jnp.float16)
    assert feature_error(half[None], half[None], jnp.ones((1, 1), bool)) == pytest.approx(0, abs=1e-6)


def test_diagnostics_agree_with_the_loss(objective, params, batch, keys_B):
    ema = perturbed(params["model"], 1)
    _, metrics = loss_of(objective, params, ema, batch, keys_B)
    results = objective.diagnose(params, {"ema": ema}, batch, keys_B)
    for m in ("video", "audio"):
        np.testing.assert_allclose(results[f"cosine/projected/{m}"], metrics[f"alignment_cosine/{m}"], atol=1e-5)
        assert 1 <= results[f"rank/student/{m}"] <= 16 + 1e-3
    assert dataclasses.replace(objective, alignment=NoAlignment()).diagnose(params, {"ema": ema}, batch, keys_B) == {}
