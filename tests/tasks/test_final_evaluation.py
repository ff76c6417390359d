"""What a run proves of itself at its end."""

import dataclasses

import pytest

from selfflow.config.resolve import resolve
from selfflow.models.separation import Separation
from selfflow.noise import DualTimestep
from selfflow.run.init_state import initial_state
from selfflow.run.prepare_data import prepare_data
from selfflow.tasks.final_evaluation import flow_losses
from tests.conftest import perturbed


def test_held_out_flow_losses_are_of_the_weights_alone(tiny_experiment, data_dir):
    """Arms of a study are compared by them: neither the schedule nor the separation of an arm changes its losses."""
    feed, _ = prepare_data(resolve(tiny_experiment), data_dir)
    state = initial_state(resolve(tiny_experiment))
    state = state._replace(frozen={"ema": perturbed(state.frozen["ema"])})
    tau = tiny_experiment.schedule.tau
    found = []
    for schedule, separation in (
        (tiny_experiment.schedule, None),
        (DualTimestep(tau=tau), Separation(whole=0.5, teacher=True)),
    ):
        arm = resolve(dataclasses.replace(tiny_experiment, schedule=schedule, separation=separation))
        found.append({name: row["loss"] for name, row in flow_losses(arm, feed, state).items()})
    assert found[0].keys() == {"joint/video", "joint/audio", "image/image"}
    assert found[1] == pytest.approx(found[0], rel=1e-5)
