"""The joint transformer has the form of FLUX.2: diffusers' implementation as tests/parity recorded it."""

import jax
import numpy as np
import pytest

from tests.models.flux2 import CONFIG, VIDEO, assert_near, ours, recorded, transformer

# Sines of 1000 tau in float32 are good to about 2e-5; another epsilon, order of halves or pairing of channels is off by
# more than 1e-2.
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def golden():
    return recorded()


@pytest.fixture(scope="module")
def results(golden):
    return ours(CONFIG, VIDEO, transformer(golden["weight"], CONFIG, "video"), golden["input"])


def test_blocks_and_velocity_are_flux2_s(results, golden):
    outputs, to_inputs, _ = results
    assert_near(outputs, golden["output"], TOLERANCE)
    assert_near(to_inputs, golden["input_gradient"], TOLERANCE)


def test_gradients_to_weights_are_flux2_s(results, golden):
    zeros = {name: np.zeros_like(weight) for name, weight in golden["weight"].items()}
    recorded_only = transformer(zeros | golden["weight_gradient"], CONFIG, "video")
    pairs = zip(jax.tree.leaves(results[2]), jax.tree.leaves(recorded_only))
    compared = [(np.where(there, ours_, 0), there) for ours_, there in pairs if there.any()]
    assert len(compared) == len(golden["weight_gradient"])
    assert_near(*map(list, zip(*compared)), TOLERANCE)
