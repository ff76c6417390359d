"""The step's benchmark: what it counts must be what the step does."""

import dataclasses

import jax
import numpy as np
import pytest

from selfflow.benchmark.step import PerToken, StepRate, matmul_peak, mixture_mean, random_batch, step_rates
from selfflow.config.files import load_experiment
from selfflow.config.resolve import resolve
from selfflow.encoders.text import Text
from selfflow.errors import UserError
from selfflow.modality import Modality
from selfflow.models.execution import Execution
from selfflow.models.separation import Separation
from selfflow.models.sit import SiTConfig
from selfflow.noise import DiffusionForcing, DualTimestep, UniformTimestep
from selfflow.objectives.alignment import NoAlignment, SelfFlow
from selfflow.objectives.self_flow import SelfFlowObjective
from selfflow.planning.flops import matmul_flops
from selfflow.planning.model_flops import model_flops
from tests.conftest import TINY, mentions, perturbed


@pytest.mark.slow
def test_a_small_step_is_timed_and_counted(tiny_experiment):
    setup = resolve(
        dataclasses.replace(
            tiny_experiment,
            mixture={"image": dataclasses.replace(tiny_experiment.mixture["image"], weight=1.0)},
            schedule=DualTimestep(),
        )
    )
    peak = matmul_peak("float32")
    (rate,) = step_rates(setup, rounds=3, peak=peak)
    assert 0 < rate.step_seconds < 10 and rate.spread_seconds >= 0 and rate.peak_memory_bytes > 1e5
    assert rate.tokens_per_second == pytest.approx(4 * 16 / rate.step_seconds)
    assert rate.mfu == pytest.approx(rate.model_flops / rate.step_seconds / peak)
    # Student forward and backward at 3 times the forward; the teacher's 2 of 3 blocks and the projector on top.
    plain = resolve(dataclasses.replace(setup.experiment, alignment=NoAlignment()))
    (vanilla,) = step_rates(plain, rounds=1, peak=peak)
    assert vanilla.alignment_ratio is None and rate.alignment_ratio > 0
    assert 1.1 < rate.flops / vanilla.flops < 1.6


@pytest.mark.parametrize("separation", [None, Separation(whole=0.25), Separation(whole=0.0, teacher=True)])
@pytest.mark.parametrize("name", ["quickstart", "sit_s"])
def test_what_the_shapes_demand_is_what_the_program_does(name, separation):
    """Two counts that share no line; the program's selections of levels are the difference."""
    experiment = load_experiment(TINY.parents[1] / "experiments" / f"{name}.py")
    setup = resolve(dataclasses.replace(experiment, separation=separation))
    state = jax.eval_shape(setup.init, jax.random.key(0))
    for component in experiment.mixture:
        counted = matmul_flops(setup.step(), state, random_batch(setup, component))
        assert 0.997 * counted < model_flops(setup, component) < counted


def test_modulation_for_every_token_gives_the_same_numbers(tiny_experiment, keys_B):
    config = SiTConfig(
        width=16, heads=2, depth=4, mlp_ratio=2.0, input_size=8, channels=3, labels=3, execution=Execution(unroll=1)
    )
    image = {"image": Modality((8, 8, 3), (2, 2))}
    fields = (config, image, DualTimestep(), SelfFlow(student_layer=1, teacher_layer=3), {}, 0.1)
    latents = {"image": jax.random.normal(jax.random.key(1), (4, 8, 8, 3))}
    batch = {"latents": latents, "label": np.arange(4) % 3, "weight": np.ones(4, np.float32)}
    params = perturbed(jax.jit(SelfFlowObjective(*fields).init)(jax.random.key(0)))

    def of(objective):
        loss = lambda p: objective.loss(p, {"ema": p["model"]}, batch, keys_B, objective.draw(keys_B, batch))[0]
        return jax.jit(jax.value_and_grad(loss))(params)

    per_level, per_token = of(SelfFlowObjective(*fields)), of(PerToken(*fields))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), per_level, per_token)
    flops = lambda o: matmul_flops(
        lambda p: o.loss(p, {"ema": p["model"]}, batch, keys_B, o.draw(keys_B, batch))[0], params
    )
    assert flops(PerToken(*fields)) > 1.2 * flops(SelfFlowObjective(*fields))
    with pytest.raises(UserError, match=mentions("per-token SiT")):
        step_rates(resolve(tiny_experiment), 1, 1.0, per_token=True)


def test_captions_and_other_schedules_are_counted(tiny_experiment):
    model = dataclasses.replace(tiny_experiment.model, text=384)
    for schedule in (UniformTimestep(), DiffusionForcing()):
        changed = resolve(dataclasses.replace(tiny_experiment, model=model, text=Text(tokens=16), schedule=schedule))
        state = jax.eval_shape(changed.init, jax.random.key(0))
        counted = matmul_flops(changed.step(), state, random_batch(changed, "joint"))
        assert 0.98 * counted < model_flops(changed, "joint") <= counted


def test_a_batch_has_the_shapes_of_its_component(tiny_experiment):
    batch = random_batch(resolve(tiny_experiment), "joint")
    shapes = jax.tree.map(np.shape, batch)
    assert shapes["latents"] == {"video": (2, 25, 4, 4, 32), "audio": (2, 50, 128)}
    assert shapes["label"] == shapes["weight"] == (2,) and (batch["label"] == -1).all()


def test_the_mean_is_over_the_steps_of_the_mixture(tiny_experiment):
    setup = resolve(tiny_experiment)  # both components with weight one half
    rates = [
        StepRate("joint", 3.0, 0.0, 100.0, 40, 30, 0.1, 1.5, None, 7, 1.0),
        StepRate("image", 1.0, 0.0, 500.0, 20, 10, 0.1, 1.25, None, 9, 2.0),
    ]
    mean = mixture_mean(setup, rates)
    assert mean["step_seconds"] == 2.0 and mean["tokens_per_second"] == (300 + 500) / 4 and mean["flops"] == 20
    assert mean["model_flops"] == 30
    assert mean["alignment_ratio"] == pytest.approx(4 / (2.0 + 0.8)) and mean["peak_memory_bytes"] == 9
    assert mean["mfu"] == pytest.approx(0.1) and mean["compile_seconds"] == 3.0
