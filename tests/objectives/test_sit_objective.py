"""The objective with a SiT: the same loss and alignment, one modality."""

import dataclasses

import jax
import numpy as np
import pytest

from selfflow.config.files import load_experiment
from selfflow.config.resolve import resolve
from selfflow.errors import UserError
from selfflow.modality import Modality
from selfflow.models.joint import Caption
from selfflow.models.sit import SiTConfig
from selfflow.noise import DualTimestep
from selfflow.objectives.alignment import SelfFlow
from selfflow.objectives.self_flow import SelfFlowObjective
from tests.conftest import TINY, perturbed


@pytest.fixture(scope="module")
def made():
    config = SiTConfig(width=16, heads=2, depth=4, patch_size=2, input_size=8, channels=3, labels=3)
    modalities = {"image": Modality((8, 8, 3), (2, 2))}
    objective = SelfFlowObjective(
        config, modalities, DualTimestep(), SelfFlow(student_layer=1, teacher_layer=3), {}, 0.5
    )
    params = perturbed(jax.jit(objective.init)(jax.random.key(0)))
    latents = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32)
    batch = {"latents": {"image": latents}, "label": np.array([0, 1, 2, -1]), "weight": np.ones(4, np.float32)}
    return objective, params, batch, jax.random.split(jax.random.key(7), 4)


def test_student_and_teacher_are_the_same_network_at_two_views(made):
    objective, params, batch, keys_B = made
    draw = objective.draw(keys_B, batch)
    gradient = jax.jit(jax.grad(lambda p, ema: objective.loss(p, {"ema": ema}, batch, keys_B, draw)[0], argnums=(0, 1)))
    student, teacher = gradient(params, perturbed(params["model"], 1))
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(teacher))
    for path, g in jax.tree_util.tree_leaves_with_path(student):
        assert np.isfinite(g).all() and np.abs(g).sum() > 0, jax.tree_util.keystr(path)
    _, metrics = objective.loss(params, {"ema": params["model"]}, batch, keys_B, draw)
    assert -1 <= metrics["alignment_cosine/image"] <= 1 and metrics["flow_count/image"].sum() == 4 * 16


def test_it_takes_one_modality_and_no_caption(made):
    objective, params, batch, keys_B = made
    c = objective.draw(keys_B, batch).student.corruption
    x = np.zeros((4, 16, 12), np.float32)
    call = lambda tokens, **more: objective.apply(
        params["model"], tokens, c.levels, np.zeros(4, int), c.assignment, **more
    )
    assert set(call({"image": x}, taps=(2,)).taps[2]) == {"image"}
    with pytest.raises(ValueError, match="a SiT takes one modality"):
        call({"image": x, "video": x})
    with pytest.raises(ValueError, match="a SiT takes one modality"):
        call({"image": x}, caption=Caption(np.zeros((4, 2, 6)), np.ones((4, 2), bool)))


def test_an_experiment_whose_latents_do_not_fit_is_refused():
    experiment = load_experiment(TINY.parents[1] / "experiments" / "sit_s.py")
    assert resolve(experiment).experiment.model.tokens == 256
    with pytest.raises(UserError, match=r"a SiT of this model takes one modality \(16, 16, 4\)"):
        resolve(dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, input_size=16)))
