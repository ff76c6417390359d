"""Which component a step draws from: shares, curricula, and no record passed over."""

import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.input.mixture import Component, MixturePlan, Pool, Stage, check_mixture
from tests.conftest import mentions

PAPER = {"image": Component(weight=0.57), "video": Component(weight=0.30), "audio": Component(weight=0.13)}


def pools(plan: MixturePlan) -> np.ndarray:
    return np.array([plan[i][0] for i in range(len(plan))])


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_every_component_gets_its_share_at_every_moment(seed):
    plan = MixturePlan(PAPER, (), 20_000, seed)
    found = pools(plan)
    for number, pool in enumerate(plan.pools):
        seen = np.cumsum(found == number)
        owed = PAPER[pool.component].weight * np.arange(1, 20_001)
        assert np.abs(seen - owed).max() < 5  # independent draws would stray by 70


def test_batches_of_a_component_are_counted_without_a_gap():
    plan = MixturePlan(PAPER, (), 500, 3)
    seen = {}
    for step in range(500):
        pool, batch = plan[step]
        assert batch == seen.get(pool, 0)
        seen[pool] = batch + 1


def test_a_longer_run_begins_alike_and_seeds_differ():
    stages = (Stage(step=100, weights={"image": 1.0}),)
    short, long = MixturePlan(PAPER, stages, 150, 7), MixturePlan(PAPER, stages, 400, 7)
    assert [short[i] for i in range(150)] == [long[i] for i in range(150)]
    assert (pools(MixturePlan(PAPER, (), 200, 1)) != pools(MixturePlan(PAPER, (), 200, 2))).any()


def test_a_curriculum_changes_weights_and_floors_at_its_step():
    stages = (
        Stage(step=100, weights={"image": 0.5, "audio": 0.5}),
        Stage(step=200, quality={"image": 0.5}),
        Stage(step=300, weights={"image": 1.0}, quality={"image": 0.0}),
    )
    plan = MixturePlan(PAPER, stages, 400, 0)
    found = [plan.pools[c] for c in pools(plan)]
    assert {c.component for c in found[:100]} == {"image", "video", "audio"}
    assert {c.component for c in found[100:300]} == {"image", "audio"} and {c.component for c in found[300:]} == {
        "image"
    }
    assert {c.quality for c in found[200:300] if c.component == "image"} == {0.5}
    # When the floor falls again the component goes on where it stopped, and repeats nothing.
    number = plan.pools.index(Pool("image", 0.0))
    drawn = [plan[i][1] for i in range(400) if plan[i][0] == number]
    assert drawn == list(range(len(drawn))) and found[300].quality == 0.0


@pytest.mark.parametrize(
    "mixture, curriculum, words",
    [
        ({}, (), "mixture empty"),
        ({"a": Component(weight=0.5), "b": Component(weight=0.4)}, (), "mixture.*.weight 1 0.9 a 0.5 b 0.4"),
        ({"a": Component(weight=1.5), "b": Component(weight=-0.5)}, (), "mixture.b.weight b -0.5"),
        (PAPER, (Stage(step=5, weights={"image": 0.5}),), "curriculum[0].weights 1 0.5"),
        (PAPER, (Stage(step=5, weights={"imag": 1.0}),), "curriculum[0].weights imag"),
        (PAPER, (Stage(step=5, quality={"smell": 1.0}),), "curriculum[0].quality smell"),
        (PAPER, (Stage(step=5), Stage(step=5)), "curriculum[1].step 5"),
        (PAPER, (Stage(step=0),), "curriculum[0].step 0"),
    ],
)
def test_mixtures_that_make_no_sense_are_named(mixture, curriculum, words):
    with pytest.raises(UserError, match=mentions(words)):
        check_mixture(mixture, curriculum)
