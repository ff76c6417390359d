"""Views of clips: those of training, token by token."""

import jax
import numpy as np
import pytest

from selfflow.data.shards import BadRecord
from selfflow.errors import UserError
from selfflow.modality import to_tokens
from selfflow.noise import DiffusionForcing, DualTimestep, FullMasking, LogitNormalTau, UniformTimestep
from selfflow.representation.views import tau_marginals, views
from selfflow.run.run import open_run
from tests.conftest import mentions


@pytest.fixture(scope="module")
def run(tiny_run):
    return open_run(tiny_run)


@pytest.fixture(scope="module")
def seen(run):
    return views(run, run.data("test"), [2, 5, 7], seed=4, context=True)


def test_the_loss_is_that_of_training(run, seen):
    clips, keys_B = run.data("test"), jax.random.split(jax.random.key(4), 3)
    latents = {m: np.stack([clips.latents(i)[m] for i in (2, 5, 7)]) for m in clips.shapes}
    batch = {"latents": latents, "label": np.full(3, -1), "weight": np.ones(3, np.float32)}
    state = run.weights()
    draw = run.objective.draw(keys_B, batch)
    loss, metrics = jax.jit(run.objective.loss)(state.params, state.frozen, batch, keys_B, draw)
    assert seen.loss["total"] == pytest.approx(float(loss), rel=1e-4)
    for m in latents:
        assert seen.loss[f"flow/{m}"] == pytest.approx(float(metrics[f"flow_loss/{m}"]), rel=1e-4)
        counted = np.asarray(draw.weight[m])
        assert (seen.flow[m] * counted).sum() == pytest.approx(seen.loss[f"flow/{m}"], rel=1e-4)
        assert ((1 - seen.cosine[m]) * counted).sum() == pytest.approx(seen.loss[f"alignment/{m}"], rel=1e-4)
        np.testing.assert_array_equal(seen.tau[m], draw.student.corruption.tau()[m])


def test_the_teacher_sees_the_lower_level_and_less_noise(run, seen):
    clips = run.data("test")
    assert seen.ids == [clips.ids[i] for i in (2, 5, 7)] and seen.seconds == pytest.approx(2.0)
    for m, levels_BK in seen.levels.items():
        assert levels_BK.shape == (3, 2)
        held = seen.context.get(m, np.zeros_like(seen.tau[m], bool))
        lowest = np.where(held, 0, levels_BK.min(axis=1, keepdims=True))
        np.testing.assert_array_equal(seen.teacher_tau[m], lowest)
        of_levels = (seen.tau[m][..., None] == levels_BK[:, None]).any(-1)
        assert (of_levels | held).all() and (seen.tau[m] >= seen.teacher_tau[m]).all()
    away = lambda view: np.mean(
        [np.abs(seen.media[view][m].astype(float) - seen.media["data"][m]).mean() for m in seen.tau]
    )
    assert 0 < away("teacher") < away("student")
    # Given tokens are the data.
    for m, held in seen.context.items():
        tokens = lambda view: to_tokens(seen.modalities, {m: run.autoencoder(m).encode(seen.media[view][m])})[m]
        if m == "video" and held.any():
            np.testing.assert_allclose(tokens("student")[held], tokens("data")[held], atol=0.2)


def test_marginals_are_p_of_tau_masked_or_not():
    schedule = DualTimestep({"audio": LogitNormalTau(shift=2.0)}, mask_ratio={"audio": 0.5, "video": 0.25})
    found = tau_marginals(schedule, "audio", 8, draws=4000, bins=5)
    assert found.tau.shape == found.masked.shape == (4000, 8) and (found.masked.sum(axis=1) == 4).all()
    assert found.density.sum() / 5 == pytest.approx(1, abs=1e-6)
    for taus in (found.tau[found.masked], found.tau[~found.masked], found.tau[:, 3]):
        density = np.histogram(taus, bins=5, range=(0, 1), density=True)[0]
        np.testing.assert_allclose(density, found.density, atol=0.12)
    np.testing.assert_array_equal(found.teacher_tau, found.tau.min(axis=1))
    full = tau_marginals(FullMasking(mask_ratio={"video": 0.25}), "video", 8, draws=10)
    assert full.masked.sum() == 20 and (full.tau[full.masked] == 1).all()
    for schedule in (DiffusionForcing(), UniformTimestep()):
        assert not tau_marginals(schedule, "video", 8, draws=10).masked.any()


def test_there_is_no_context_by_default(run, seen):
    found = views(run, run.data("test"), [2, 5, 7], seed=4)
    assert found.context == {} and set(seen.context) == {"video", "audio"}
    for m, levels_BK in found.levels.items():
        np.testing.assert_array_equal(levels_BK, seen.levels[m])
        assert ((found.tau[m][..., None] == levels_BK[:, None]).any(-1)).all()


def test_clips_that_do_not_exist_or_cannot_be_read_are_named(run, monkeypatch):
    with pytest.raises(UserError, match=mentions("clip 99 test 0 11")):
        views(run, run.data("test"), [0, 99])
    with pytest.raises(UserError, match=mentions("component image")):
        views(run, run.data("test", "image"), [0, 1])
    clips = run.data("test")

    def torn(i):
        raise BadRecord("test-00000.array_record", "torn")

    monkeypatch.setattr(clips, "latents", torn)
    with pytest.raises(UserError, match=mentions("clip 3", clips.ids[3], "test-00000.array_record torn")):
        views(run, clips, [3])
