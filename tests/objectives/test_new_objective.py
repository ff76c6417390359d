"""An objective outside of the package with a second frozen network, from its registration to the export of a run."""

import dataclasses
import json
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfflow.benchmark.step import random_batch
from selfflow.config.experiment import Experiment
from selfflow.config.resolve import resolve
from selfflow.config.shapes import all_streams
from selfflow.errors import UserError
from selfflow.interop.export import export
from selfflow.modality import Modality, to_tokens
from selfflow.models.joint_config import JointConfig
from selfflow.noise import Schedule, draw_eps
from selfflow.objectives.alignment import NoAlignment, SelfFlow
from selfflow.objectives.config import FlowMatching
from selfflow.objectives.flow import flow_error
from selfflow.objectives.self_flow import SelfFlowObjective
from selfflow.planning.compile import slice_devices
from selfflow.planning.flops import matmul_flops
from selfflow.planning.model_flops import mean_flops, model_flops, program_flops
from selfflow.planning.plan import make_plan
from selfflow.representation.health import health_of_run
from selfflow.representation.views import views
from selfflow.run.init_state import frozen_of_runs, initial_state
from selfflow.run.run import open_run
from selfflow.tasks.train import train
from selfflow.training.sharding import Devices
from selfflow.training.state import State, init_ema
from tests.conftest import mentions


@dataclass(frozen=True)
class Distillation:
    """The settings, which belong into objectives/config.py."""

    kind: Literal["distillation"] = "distillation"
    uses: ClassVar[tuple[str, ...]] = ()
    reference_model: JointConfig | None = None
    """Shape of the reference; None for that of the student, from whose initial weights it then starts."""
    reference: str = ""
    """RUN or RUN:STEP whose EMA is the reference."""


@dataclass(frozen=True)
class DistillationObjective:
    """The student predicts the velocity of a frozen reference network at the noise levels of the schedule."""

    model: JointConfig
    modalities: dict[str, Modality]
    schedule: Schedule
    settings: Distillation

    def network(self, model: JointConfig) -> SelfFlowObjective:
        return SelfFlowObjective(model, self.modalities, self.schedule, NoAlignment(), {}, condition_drop=0.0)

    @property
    def student(self):
        return self.network(self.model)

    @property
    def reference(self):
        return self.network(self.settings.reference_model or self.model)

    def init(self, key):
        return self.student.init(key)

    def logical_axes(self):
        return self.student.logical_axes()

    def init_frozen(self, params, key):
        reference = init_ema(params["model"])
        if self.settings.reference_model:
            reference = self.reference.init(key)["model"]
        return {"ema": init_ema(params["model"]), "reference": reference}

    def frozen_from(self):
        return {"reference": self.settings.reference} if self.settings.reference else {}

    def frozen_axes(self):
        return self.student.frozen_axes() | {"reference": self.reference.frozen_axes()["ema"]}

    def update_frozen(self, frozen, params, ema_decay):
        return frozen | self.student.update_frozen(frozen, params, ema_decay)

    def draw(self, keys_B, batch, step):
        return self.student.draw(keys_B, batch, step)

    def loss(self, params, frozen, batch, keys_B, draw):
        x = to_tokens(self.modalities, batch["latents"])
        eps = draw_eps(keys_B, x)
        target = self.reference.forward(x, eps, draw, frozen["reference"], draw.student).velocity
        velocity = self.student.forward(x, eps, draw, params["model"], draw.student).velocity
        error = flow_error(velocity, jax.lax.stop_gradient(target))
        loss = {m: jnp.sum(error_BN * draw.weight[m]) for m, error_BN in error.items()}
        return sum(loss.values()), {f"distillation_loss/{m}": value for m, value in loss.items()}

    def apply(self, model_params, *args, **kwargs):
        return self.student.apply(model_params, *args, **kwargs)

    def diagnose(self, params, frozen, batch, keys_B):
        return self.loss(params, frozen, batch, keys_B, self.draw(keys_B, batch, 0))[1]

    def held_out_metrics(self, model_params, batch, keys_B, tau):
        return self.student.held_out_metrics(model_params, batch, keys_B, tau)

    def extra_flops(self, sample):
        return sample.network(self.reference.model, sample.levels)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The two registrations: the union in the experiment, and the objective of the settings."""

    def objective_of(experiment):
        streams = all_streams(experiment)
        return DistillationObjective(experiment.model, streams, experiment.schedule, experiment.objective)

    def registered_objective(experiment):
        if isinstance(experiment.objective, Distillation):
            return objective_of(experiment)
        return flow_objective(experiment)

    from selfflow.config import setup

    flow_objective = setup._flow_objective
    monkeypatch.setattr(setup, "_flow_objective", registered_objective)
    monkeypatch.setitem(Experiment.__annotations__, "objective", FlowMatching | Distillation)


@pytest.fixture
def distilled(tiny_experiment, tiny_run) -> Experiment:
    """A student of another shape than its reference, which is the EMA of the tiny run."""
    return dataclasses.replace(
        tiny_experiment,
        objective=Distillation(reference_model=tiny_experiment.model, reference=f"{tiny_run}:12"),
        model=dataclasses.replace(tiny_experiment.model, width=16, rotary=(2, 2, 2, 2)),
        alignment=NoAlignment(),
        condition_drop=0.0,
        mixture={"image": dataclasses.replace(tiny_experiment.mixture["image"], weight=1.0)},
        schedule=dataclasses.replace(tiny_experiment.schedule, context={}),
        steps=2,
        cadence=dataclasses.replace(tiny_experiment.cadence, log_every=1),
        final_evaluation=dataclasses.replace(tiny_experiment.final_evaluation, samples=1, probe_clips=0),
    )


@pytest.mark.slow
def test_it_trains_to_the_end_and_its_run_is_opened_and_exported(distilled, tiny_run, data_dir, tmp_path):
    summary = train(distilled, tmp_path / "run", data_dir)
    assert np.isfinite(summary["flow_loss"]["image/image"]["loss"]) and summary["files"]
    run = open_run(tmp_path / "run")
    assert run.experiment.objective == distilled.objective
    rows = run.metrics()
    assert all(np.isfinite(row["distillation_loss/image"]) for row in rows if "loss" in row)
    assert any("distillation_loss/image/image" in row for row in rows)  # of the held-out batch

    # The reference is the EMA of the other run and stays; the student is narrower and moves.
    state, other = run.weights(), open_run(tiny_run).weights(12)
    jax.tree.map(np.testing.assert_array_equal, state.frozen["reference"], other.frozen["ema"])
    first = jax.tree.leaves(run.setup.objective.init(jax.random.key(distilled.seed.init)))
    assert any((a != b).any() for a, b in zip(first, jax.tree.leaves(state.params)))

    assert np.isfinite(run.sample(1, modalities=("image",)).latents["image"]).all()
    (tmp_path / "out").mkdir()
    assert not export(run, tmp_path / "out").projector
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model"]["width"] == 16

    # What reads the alignment is for flow matching alone.
    clips = run.data("test")
    for tool in (lambda: views(run, clips, [0]), lambda: health_of_run(run, clips, (0.5,))):
        with pytest.raises(UserError, match=mentions("objective DistillationObjective")):
            tool()


def test_operations_of_the_reference_are_counted(distilled):
    setup = resolve(distilled)
    state = jax.eval_shape(setup.init, jax.random.key(0))
    counted = matmul_flops(setup.step(), state, random_batch(setup, "image"))
    flops = model_flops(setup, "image")
    assert program_flops(setup, "image") == counted and 0.97 * counted < flops <= counted
    assert mean_flops(setup)[0].flops == flops
    plain = resolve(dataclasses.replace(distilled, objective=FlowMatching()))
    assert flops > 1.5 * model_flops(plain, "image")  # the reference is twice as wide


@pytest.mark.tpu
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache entry")
def test_a_plan_has_the_memory_of_the_reference(distilled):
    pytest.importorskip("libtpu", reason="no libtpu: pip install 'selfflow[tpu]'")
    setup = resolve(distilled)
    plan = make_plan(setup, "v5e:2x2", setup.experiment.devices.mesh(slice_devices("v5e:2x2", 1)))
    assert plan.memory.ema > 3 * plan.memory.parameters
    assert plan.bounds.components[0].model_flops == model_flops(setup, "image")


def test_a_reference_of_the_same_shape_starts_as_the_initial_student(tiny_experiment, distilled, tiny_run):
    same = {"objective": Distillation(), "model": tiny_experiment.model}
    state = initial_state(resolve(dataclasses.replace(distilled, **same, init_from=f"{tiny_run}:12")))
    old = open_run(tiny_run).weights(12)
    jax.tree.map(np.testing.assert_array_equal, state.params["model"], old.params["model"])
    jax.tree.map(np.testing.assert_array_equal, state.frozen["reference"], old.params["model"])
    jax.tree.map(np.testing.assert_array_equal, state.frozen["ema"], old.frozen["ema"])


def test_a_run_that_does_not_fit_the_reference_is_named(tiny_run):
    reference, mesh = open_run(tiny_run).weights(12).frozen["ema"], Devices().mesh(jax.devices()[:1])

    def start(source, tree):
        state = State(jnp.zeros((), jnp.int32), {}, {"reference": tree}, None)
        return frozen_of_runs({"reference": source}, state, mesh).frozen["reference"]

    jax.tree.map(np.testing.assert_array_equal, start(f"{tiny_run}:12", reference), reference)
    wider = jax.tree.map(lambda x: jnp.zeros((7, *x.shape)), reference)
    with pytest.raises(UserError, match=mentions("objective.reference", f"{tiny_run}:12", "shape (7,")):
        start(f"{tiny_run}:12", wider)
    for tree in (reference | {"guidance": jnp.zeros(3)}, {m: x for m, x in reference.items() if m != "embed"}):
        with pytest.raises(UserError, match="objective.reference.*(guidance|embed)"):
            start(f"{tiny_run}:12", tree)
    with pytest.raises(UserError, match=mentions("objective.reference", f"{tiny_run}:x")):
        start(f"{tiny_run}:x", reference)


@pytest.mark.parametrize(
    "field, value",
    [
        ("alignment", SelfFlow(student_layer=1, teacher_layer=2)),
        ("condition_drop", 0.1),
        ("modality_weight", {"image": 2.0}),
    ],
)
def test_fields_without_effect_are_refused(distilled, field, value):
    with pytest.raises(UserError, match=mentions(field, "objective distillation")):
        resolve(dataclasses.replace(distilled, **{field: value}))
