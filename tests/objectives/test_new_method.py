"""An alignment method outside of the package: its class is enough for loss, step, check, FLOPs and diagnostics."""

import ast
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import selfflow
from selfflow.benchmark.step import random_batch
from selfflow.config.resolve import resolve
from selfflow.errors import UserError
from selfflow.noise import Corruption
from selfflow.objectives.alignment import Alignment
from selfflow.objectives.alignment.base import FeatureAlignment, check_block
from selfflow.planning.flops import matmul_flops
from selfflow.planning.model_flops import model_flops
from selfflow.training.optimizer import AdamW
from selfflow.training.state import init_state
from selfflow.training.step import make_step
from tests.conftest import perturbed


@dataclass(frozen=True)
class CleanTeacher(FeatureAlignment):
    """The target are the EMA copy's features of the clean sample after two blocks, side by side."""

    kind: Literal["clean_teacher"] = "clean_teacher"
    layers: tuple[int, int] = (2, 3)
    width: int = 16
    modalities: tuple[str, ...] = ("video", "audio", "image")

    @property
    def target_channels(self):
        return dict.fromkeys(self.modalities, 2 * self.width)

    def check(self, depth, width, modalities):
        super().check(depth, width, modalities)
        for block in self.layers:
            check_block("layers", block, depth)
        if width != self.width:
            raise UserError(f"alignment.width is {self.width}, but the model has {width}: set it to that")

    def draw_teacher(self, student, undropped, schedule, keys_B):
        assignment = student.corruption.assignment
        levels = {m: jnp.zeros((len(keys_B), 1)) for m in assignment}
        clean = Corruption(levels, jax.tree.map(jnp.zeros_like, assignment), {})
        return undropped._replace(corruption=clean)

    def target(self, forward, frozen, student, batch, draw):
        ema = jax.lax.stop_gradient(frozen["ema"])
        taps = forward(ema, draw.teacher, taps=self.layers, stop_at=max(self.layers), teacher=True).taps
        first, second = (taps[block] for block in self.layers)
        return {m: jnp.concatenate([first[m], second[m]], axis=-1) for m in first}

    def extra_flops(self, sample):
        levels = dict.fromkeys(sample.levels, 1)
        return super().extra_flops(sample) + sample.forward(levels, max(self.layers))


@pytest.fixture
def aligned(objective):
    return dataclasses.replace(objective, alignment=CleanTeacher(student_layer=1, projector_depth=3))


@pytest.fixture
def aligned_params(aligned):
    return perturbed(jax.jit(aligned.init)(jax.random.key(0)))


def size(tree) -> float:
    return float(sum(jnp.abs(x).sum() for x in jax.tree.leaves(tree)))


def test_its_loss_and_gradient(aligned, aligned_params, batch, keys_B):
    draw, ema = aligned.draw(keys_B, batch), perturbed(aligned_params["model"], 1)

    def alignment(params, ema):
        loss, metrics = aligned.loss(params, {"ema": ema}, batch, keys_B, draw)
        return metrics["alignment_cosine/video"], loss

    differentiate = jax.jit(jax.value_and_grad(alignment, argnums=(0, 1), has_aux=True))
    (value, loss), (student, teacher) = differentiate(aligned_params, ema)
    assert np.isfinite(loss) and -1 <= value <= 1
    assert size(teacher) == size(student["model"]["single"]) == size(student["model"]["readout"]) == 0
    assert size(student["model"]["embed"]) > 0 and size(student["projector"]["video"]) > 0
    assert student["projector"]["video"]["linear3"]["kernel"].shape == (32, 32)
    # Blocks of the teacher above the last one that it needs are never touched.
    above = ema | {"single": jax.tree.map(lambda x: x.at[1:].set(jnp.nan), ema["single"])}
    (same, _), _ = differentiate(aligned_params, above)
    assert same == value


def test_its_step_and_diagnostics(aligned, aligned_params, batch, keys_B):
    optimizer = AdamW(learning_rate=1e-3).make()
    state = init_state(aligned, optimizer, jax.random.key(0))._replace(params=aligned_params)
    state, metrics = jax.jit(make_step(aligned, optimizer, 0.9, 5, accumulate=2))(state, batch)
    assert metrics["skipped"] == 0 and {"alignment_cosine/video", "alignment_cosine/audio"} <= set(metrics)
    diagnostics = aligned.diagnose(state.params, state.frozen, batch, keys_B)
    assert {f"cosine/projected/{m}" for m in ("video", "audio")} <= set(diagnostics)
    assert not any(name.startswith("cosine/direct") for name in diagnostics)  # the target has channels of its own


def test_its_check_and_its_flops(tiny_experiment):
    width = tiny_experiment.model.width
    alignment = CleanTeacher(student_layer=1, layers=(1, 2), width=width)
    for change in ({"layers": (1, 9)}, {"width": width + 1}):
        name, value = next(iter(change.items()))
        with pytest.raises(UserError, match=f"alignment.{name} is {value[1] if name == 'layers' else value}"):
            resolve(dataclasses.replace(tiny_experiment, alignment=dataclasses.replace(alignment, **change)))
    experiment = resolve(dataclasses.replace(tiny_experiment, alignment=alignment))
    state = jax.eval_shape(experiment.init, jax.random.key(0))
    counted = matmul_flops(experiment.step(), state, random_batch(experiment, "joint"))
    assert 0.97 * counted < model_flops(experiment, "joint") <= counted


def test_the_type_of_a_method_is_tested_nowhere():
    """`isinstance` on a method outside of its folder would leave new methods out."""
    methods = {method.__name__ for method in get_args(Alignment)} | {"FeatureAlignment", "EMATeacher"}
    folder = Path(selfflow.__file__).parent
    lines = []
    for path in folder.rglob("*.py"):
        if folder / "objectives" / "alignment" in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                names = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
                if names & methods:
                    lines.append(f"{path.relative_to(folder)}:{node.lineno}")
    assert not lines
