"""How depth is run changes cost alone: numbers, gradients, memory and the size of the program."""

import dataclasses

import jax
import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.models.execution import Execution
from selfflow.objectives.alignment import NoAlignment
from selfflow.planning.flops import matmul_flops


def run_as(objective, **execution):
    return dataclasses.replace(objective, model=dataclasses.replace(objective.model, execution=Execution(**execution)))


def deep(objective, blocks: int):
    return dataclasses.replace(objective, model=dataclasses.replace(objective.model, single_blocks=blocks))


def gradient_of(objective, batch, keys_B):
    draw = objective.draw(keys_B, batch)
    return lambda params: jax.grad(lambda p: objective.loss(p, {"ema": p["model"]}, batch, keys_B, draw)[0])(params)


@pytest.fixture
def objective(objective):
    return dataclasses.replace(objective, alignment=NoAlignment())


@pytest.fixture
def expected(objective, params, batch, keys_B):
    return jax.jit(gradient_of(run_as(objective, unroll=9), batch, keys_B))(params)


@pytest.mark.parametrize("unroll, remat", [(1, "none"), (1, "dots"), (2, "block")])
def test_gradients_are_those_of_unrolled_blocks(objective, params, batch, keys_B, expected, unroll, remat):
    actual = jax.jit(gradient_of(run_as(objective, unroll=unroll, remat=remat), batch, keys_B))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5), actual, expected)


def test_what_is_computed_again_costs_arithmetic(objective, params, batch, keys_B):
    flops = lambda remat: matmul_flops(gradient_of(run_as(objective, unroll=1, remat=remat), batch, keys_B), params)
    # All of the forward pass, the attention's products alone, nothing.
    assert flops("block") > flops("dots") > flops("none")


def test_a_loop_with_remat_keeps_less(objective, batch, keys_B):
    objective = deep(objective, 8)
    params = jax.eval_shape(objective.init, jax.random.key(0))

    def temporaries(remat):
        gradient = gradient_of(run_as(objective, unroll=1, remat=remat), batch, keys_B)
        return jax.jit(gradient).lower(params).compile().memory_analysis().temp_size_in_bytes

    none, dots, block = temporaries("none"), temporaries("dots"), temporaries("block")
    assert block < 0.6 * none and block < dots < none


def test_the_program_of_a_loop_does_not_grow_with_depth(objective, batch, keys_B):
    def size(blocks, unroll):
        variant = deep(run_as(objective, unroll=unroll), blocks)
        params = jax.eval_shape(variant.init, jax.random.key(0))
        return len(jax.jit(gradient_of(variant, batch, keys_B)).lower(params).as_text())

    # Not to the letter: numbers of two digits are longer than numbers of one.
    assert size(24, 1) < 1.02 * size(6, 1)
    assert size(24, 24) > 1.5 * size(6, 6)


def test_a_loop_of_no_blocks_is_refused():
    with pytest.raises(UserError, match="model.execution.unroll is 0"):
        Execution(unroll=0)


@pytest.mark.parametrize("attention, here", [("splash", "tpu"), ("cudnn", "gpu")])
def test_a_kernel_of_other_hardware_is_refused(attention, here):
    Execution(attention=attention).check(here)
    Execution().check("cpu")
    with pytest.raises(UserError, match=f"model.execution.attention '{attention}' runs on a {here.upper()}"):
        Execution(attention=attention).check("cpu")
