"""Alignment with a frozen encoder: its target, its gradients, and the settings that are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfflow.benchmark.step import random_batch
from selfflow.config.resolve import resolve
from selfflow.encoders import EffNetLite0, FeatureFiles
from selfflow.errors import UserError
from selfflow.objectives.alignment import ExternalEncoder
from selfflow.planning.flops import matmul_flops
from selfflow.planning.model_flops import model_flops
from selfflow.representation.health import health
from selfflow.serialization import from_json, to_json
from tests.conftest import perturbed

VIDEO = FeatureFiles("nowhere", 5)


@pytest.fixture
def external(objective):
    alignment = ExternalEncoder(student_layer=1, encoders={"video": VIDEO, "audio": None})
    return dataclasses.replace(objective, alignment=alignment)


@pytest.fixture
def with_features(batch):
    features = np.random.default_rng(1).standard_normal((4, 20, 5)).astype(np.float16)
    return batch | {"features": {"video": features}}


@pytest.fixture
def trained(external):
    return perturbed(jax.jit(external.init)(jax.random.key(0)))


def loss_of(objective, params, ema, batch, keys_B):
    return objective.loss(params, {"ema": ema}, batch, keys_B, objective.draw(keys_B, batch))


def size(tree) -> float:
    return float(sum(jnp.abs(x).sum() for x in jax.tree.leaves(tree)))


def test_gradients_reach_student_and_projector_and_nothing_else(external, trained, with_features, keys_B):
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), trained["model"])  # no teacher runs

    def of(params, features):
        batch = with_features | {"features": {"video": features}}
        loss, metrics = loss_of(external, params, broken, batch, keys_B)
        assert "alignment_cosine/audio" not in metrics
        return metrics["alignment_cosine/video"], loss

    features = jnp.asarray(with_features["features"]["video"], jnp.float32)
    (value, loss), (student, target) = jax.jit(jax.value_and_grad(of, argnums=(0, 1), has_aux=True))(trained, features)
    assert np.isfinite(value) and np.isfinite(loss) and size(target) == 0
    reached = {name: size(g) for name, g in student["model"].items()}
    assert reached["embed"] > 0 and reached["double"] > 0 and reached["single"] == 0 and reached["readout"] == 0
    assert set(student["projector"]) == {"video"} and all(size(g) > 0 for g in jax.tree.leaves(student["projector"]))


def test_the_loss_is_that_of_the_cosine_by_hand(external, trained, with_features, keys_B):
    draw = external.draw(keys_B, with_features)
    terms = external.terms(trained, {"ema": None}, with_features, keys_B, draw)
    x = np.asarray(terms.student.taps[1]["video"], np.float64).reshape(-1, 16)
    linear = trained["projector"]["video"]
    for i in (1, 2, 3):
        x = x @ np.asarray(linear[f"linear{i}"]["kernel"]) + np.asarray(linear[f"linear{i}"]["bias"])
        x = x / (1 + np.exp(-x)) if i < 3 else x
    features = with_features["features"]["video"].astype(np.float64)
    x = x.reshape(4, 20, 5)
    cosines = (x * features).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(features, axis=-1)
    loss, metrics = loss_of(external, trained, None, with_features, keys_B)
    np.testing.assert_allclose(metrics["alignment_cosine/video"], cosines.mean(), rtol=1e-3)
    flow = sum(metrics[f"flow_loss/{m}"] for m in ("video", "audio"))
    np.testing.assert_allclose(loss - flow, 0.5 * (1 - cosines.mean()), rtol=1e-3)


def test_context_padding_and_unread_samples_do_not_count(external, trained, with_features, keys_B):
    batch = with_features | {"frames": {"video": np.array([5, 3, 5, 5]), "audio": np.full(4, 10)}}
    batch |= {"weight": np.array([1, 1, 1, 0], np.float32)}
    draw = external.draw(keys_B, batch)
    corruption = draw.student.corruption.with_context({"video": jnp.zeros((4, 20), bool).at[0, :4].set(True)})
    student = draw.student._replace(corruption=corruption)
    aligned = draw.aligned | {"video": draw.aligned["video"].at[0, :4].set(0)}
    draw = draw._replace(student=student, aligned=aligned)
    cosine = lambda features: external.loss(
        trained, {"ema": None}, batch | {"features": {"video": features}}, keys_B, draw
    )[1]["alignment_cosine/video"]
    other = with_features["features"]["video"].copy()
    other[0, :4], other[1, 12:], other[3] = 9, 9, 9
    assert cosine(other) == cosine(with_features["features"]["video"])
    other[1, 11] = 9
    assert cosine(other) != cosine(with_features["features"]["video"])


def test_a_batch_without_features_is_no_batch_of_it(external, trained, batch, keys_B):
    with pytest.raises(ValueError, match="no features of video"):
        loss_of(external, trained, None, batch, keys_B)


def test_diagnostics_leave_out_what_has_no_meaning(external, trained, with_features, keys_B):
    results = external.diagnose(trained, {"ema": trained["model"]}, with_features, keys_B)
    kinds = {"cosine/projected", "cosine/centred", "cosine/other_sample"}
    kinds |= {f"{what}/{who}" for what in ("norm", "rank") for who in ("student", "teacher")}
    assert set(results) == {f"{kind}/video" for kind in kinds} and all(np.isfinite(x) for x in results.values())
    features = with_features["features"]["video"].astype(np.float32)
    np.testing.assert_allclose(results["norm/teacher/video"], np.linalg.norm(features, axis=-1).mean(), rtol=1e-4)
    tables = health(external, trained, {"ema": trained["model"]}, [with_features["latents"]], (0.5,), layers=(1,))
    assert all(pair.projected is None for pair in tables.pairs)


def test_projectors_have_axes_and_other_widths_of_their_own(external):
    encoders = {"video": VIDEO, "image": EffNetLite0()}
    variant = dataclasses.replace(external, alignment=dataclasses.replace(external.alignment, encoders=encoders))
    params = jax.eval_shape(variant.init, jax.random.key(0))["projector"]
    assert params["image"]["linear3"]["kernel"].shape == (32, 112)
    assert params["video"]["linear3"]["kernel"].shape == (32, 5)
    axes = {name: axes for name, axes in variant.logical_axes().items() if name.startswith("projector")}
    assert len(axes) == 12 and axes["projector.video.linear3.kernel"] == ("mlp", None)
    assert axes["projector.video.linear1.kernel"] == ("embed", "mlp")


def test_its_operations_are_counted(tiny_experiment):
    alignment = ExternalEncoder(
        student_layer=1, encoders={"video": EffNetLite0(), "image": FeatureFiles("nowhere", 40), "audio": None}
    )
    for depth in (1, 3):
        arm = dataclasses.replace(alignment, projector_depth=depth)
        changed = resolve(dataclasses.replace(tiny_experiment, alignment=arm))
        state = jax.eval_shape(changed.init, jax.random.key(0))
        batch = random_batch(changed, "joint")
        assert {m: x.shape for m, x in batch["features"].items()} == {"video": (2, 100, 112)}
        counted = matmul_flops(changed.step(), state, batch)
        assert 0.97 * counted < model_flops(changed, "joint") <= counted


def test_an_experiment_with_it_reads_back(tiny_experiment):
    alignment = ExternalEncoder(student_layer=1, encoders={"video": VIDEO, "image": EffNetLite0(), "audio": None})
    experiment = resolve(dataclasses.replace(tiny_experiment, alignment=alignment)).experiment
    assert from_json(to_json(experiment), type(experiment), "experiment.json") == experiment


@pytest.mark.parametrize(
    ("encoders", "more", "message"),
    [
        ({"video": VIDEO, "image": None}, {}, "alignment.encoders has no entry for audio"),
        ({"video": VIDEO, "image": None, "audio": None, "depth": VIDEO}, {}, "alignment.encoders.depth: "),
        ({"video": None, "image": None, "audio": None}, {}, "alignment.encoders names no encoder"),
        ({"video": None, "image": None, "audio": EffNetLite0()}, {}, "alignment.encoders.audio is efficientnet_lite0"),
        ({"video": VIDEO, "image": None, "audio": None}, {"projector_depth": 0}, "alignment.projector_depth is 0"),
        ({"video": VIDEO, "image": None, "audio": None}, {"student_layer": 9}, "alignment.student_layer is 9"),
    ],
)
def test_encoders_that_do_not_fit_are_named(tiny_experiment, encoders, more, message):
    with pytest.raises(UserError, match=message):
        alignment = ExternalEncoder(**{"student_layer": 1, "encoders": encoders} | more)
        resolve(dataclasses.replace(tiny_experiment, alignment=alignment))
