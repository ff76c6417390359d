"""A step of the SiT and one of torch with the released code's arithmetic do the same."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from selfflow.interop import load_released_sit
from selfflow.interop.released_sit import released_layout
from selfflow.modality import Modality, to_tokens
from selfflow.models.execution import Execution
from selfflow.noise import DualTimestep, draw_eps
from selfflow.objectives.alignment import SelfFlow
from selfflow.objectives.self_flow import SelfFlowObjective
from selfflow.training.optimizer import AdamW
from selfflow.training.state import State
from selfflow.training.step import make_step, sample_keys
from tests.conftest import perturbed
from tests.interop.released import HEADS, SAFETENSORS, settings
from tests.models.flux2 import assert_near

pytestmark = pytest.mark.parity

BATCH, DECAY, RATE, SEED = 6, 0.9, 1e-3, 3


@pytest.fixture(scope="module")
def torch_sit():
    from tests.parity import torch_sit

    return torch_sit


@pytest.fixture(scope="module")
def objective() -> SelfFlowObjective:
    _, config = load_released_sit(SAFETENSORS, num_heads=HEADS)
    alignment = SelfFlow(student_layer=settings()["student_layer"], teacher_layer=settings()["teacher_layer"])
    config = dataclasses.replace(config, execution=Execution(unroll=1))  # quicker to compile
    image = {"image": Modality((8, 8, 4), (2, 2))}
    return SelfFlowObjective(config, image, DualTimestep(), alignment, modality_weight={}, condition_drop=0.3)


def released(objective: SelfFlowObjective, model: dict, projector: dict | None = None) -> dict[str, np.ndarray]:
    """Parameters, or their gradients, by their released names."""
    whole = model if projector is None else model | {"projector": projector}
    return released_layout(whole, objective.model, projector is not None)


@pytest.fixture(scope="module")
def state(objective) -> State:
    """The recorded weights, in which nothing is zero, and a teacher that has lagged behind."""
    model = nnx.to_pure_dict(nnx.state(load_released_sit(SAFETENSORS, num_heads=HEADS)[0]))
    params = {"projector": model.pop("projector"), "model": model}
    teacher = perturbed(model, size=0.02)
    return State(np.zeros((), np.int32), params, {"ema": teacher}, AdamW(RATE).resolved(1).make().init(params))


@pytest.fixture(scope="module")
def batch() -> dict:
    random = np.random.default_rng(0)
    latents = {"image": random.standard_normal((BATCH, 8, 8, 4)).astype(np.float32)}
    return {"latents": latents, "label": random.integers(0, 10, BATCH), "weight": np.ones(BATCH, np.float32)}


@pytest.fixture
def other(torch_sit, objective, state):
    """The torch step with copies of the same weights."""
    tensors = lambda arrays: {name: torch_sit.torch.from_numpy(x.copy()) for name, x in arrays.items()}
    alignment = objective.alignment
    shape = torch_sit.Shape(HEADS, 2, alignment.student_layer, alignment.teacher_layer)
    weights = tensors(released(objective, state.params["model"], state.params["projector"]))
    teacher = tensors(released(objective, state.frozen["ema"]))
    return torch_sit.Step(weights, teacher, shape, learning_rate=RATE, ema_decay=DECAY, gamma=alignment.weight)


def drawn(torch_sit, objective, batch, step: int):
    """What our step draws at a step, as tensors: clean tokens and the noise."""
    keys_B = sample_keys(SEED, step, BATCH)
    tokens = to_tokens(objective.modalities, batch["latents"])
    draw, eps = objective.draw(keys_B, batch), draw_eps(keys_B, tokens)
    as_tensor = lambda x, kind=np.float32: torch_sit.torch.from_numpy(np.array(x, kind))
    noise = torch_sit.Noise(
        as_tensor(draw.student.corruption.levels["image"]),
        as_tensor(draw.student.corruption.assignment["image"], bool),
        as_tensor(eps["image"]),
        as_tensor(draw.student.label, np.int64),
    )
    return as_tensor(tokens["image"]), noise, (keys_B, draw)


def test_loss_and_gradients(torch_sit, objective, state, batch, other):
    tokens, noise, (keys_B, draw) = drawn(torch_sit, objective, batch, 0)
    assert noise.masked.any() and (noise.label == 10).any() and (noise.levels[:, 0] < noise.levels[:, 1]).any()
    differentiate = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
    (loss, metrics), gradient = differentiate(state.params, state.frozen, batch, keys_B, draw)
    flow, alignment = torch_sit.losses(other.weights, other.teacher, other.shape, tokens, noise)
    total = flow + objective.alignment.weight * alignment
    assert flow.item() == pytest.approx(float(metrics["flow_loss/image"]), rel=1e-5)
    assert alignment.item() == pytest.approx(1 - float(metrics["alignment_cosine/image"]), rel=1e-5)
    assert total.item() == pytest.approx(float(loss), rel=1e-5)
    total.backward()
    expected = {name: x.grad.numpy() for name, x in other.weights.items() if x.requires_grad}
    found = released(objective, gradient["model"], gradient["projector"])
    assert_near({name: found[name] for name in expected}, expected, 1e-4)


def test_updates_of_weights_and_ema(torch_sit, objective, state, batch, other):
    optimizer = AdamW(RATE).resolved(1)
    step = jax.jit(make_step(objective, optimizer.make(), DECAY, SEED))
    start = parts(objective, state)
    for number in range(2):
        tokens, noise, _ = drawn(torch_sit, objective, batch, number)
        state, metrics = step(state, batch)
        loss, gradient_norm = other(tokens, noise)
        assert loss == pytest.approx(float(metrics["loss"]), rel=1e-5)
        assert gradient_norm == pytest.approx(float(metrics["gradient_norm"]), rel=1e-5) and gradient_norm > 1
    theirs = {"params": other.weights, "ema": other.teacher}
    for who, weights in parts(objective, state).items():
        begun = start[who]
        found = {name: x - begun[name] for name, x in weights.items() if name != "pos_embed"}
        expected = {name: theirs[who][name].detach().numpy() - begun[name] for name in found}
        assert_near(without_key_bias(found), without_key_bias(expected), 1e-4)


def parts(objective, state: State) -> dict[str, dict[str, np.ndarray]]:
    """Trained weights and EMA by their released names."""
    return {
        "params": released(objective, state.params["model"], state.params["projector"]),
        "ema": released(objective, state.frozen["ema"]),
    }


def without_key_bias(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """It adds the same to all scores of a query: its gradient is rounding alone, which Adam makes a whole update."""
    return {
        name: np.delete(x, np.s_[len(x) // 3 : 2 * len(x) // 3]) if name.endswith("attn.qkv.bias") else x
        for name, x in weights.items()
    }
