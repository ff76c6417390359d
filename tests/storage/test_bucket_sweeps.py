"""Sweeps whose runs train into a bucket."""

import json
from pathlib import Path

import pytest

from selfflow.config.experiment import Experiment
from selfflow.errors import UserError
from selfflow.sweep.folder import describe, enter_sweep
from selfflow.sweep.load import Sweep, SweepRun
from selfflow.sweep.members import Budget, Member
from tests.conftest import mentions

pytestmark = pytest.mark.resilience


def description_of(experiment: Experiment, *names: str) -> dict:
    members = {name: SweepRun(Member(name, {}), experiment, 1e9) for name in names}
    return describe(Sweep("", Budget(), experiment, members), ["x.py"])


def test_a_bucket_holds_one_sweep_too(bucket, store, tiny_experiment):
    folder = Path(f"{bucket}/runs")  # as flags are parsed, with one slash less
    enter_sweep(folder, description_of(tiny_experiment, "a", "b"))
    enter_sweep(folder, description_of(tiny_experiment, "a", "b"))
    more = description_of(tiny_experiment, "a", "b", "c")
    enter_sweep(folder, more)
    with pytest.raises(UserError, match=mentions(f"{bucket}/runs", "x.py a --workdir")):
        enter_sweep(folder, description_of(tiny_experiment, "c"))
    assert json.loads(store.objects["bucket/runs/sweep.json"][0]) == more
