"""Setup of a resolved experiment: its shapes, objective, initial state, update and shardings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, assert_never, overload

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from selfflow.config.autoencoder_experiment import AutoencoderExperiment
from selfflow.config.experiment import Experiment
from selfflow.config.shapes import (
    MediaSpec,
    all_streams,
    audio_rate,
    component_cuts,
    component_media,
    component_streams,
)
from selfflow.config.training import TrainingConfig
from selfflow.input.media_batches import Cut
from selfflow.modality import Modality
from selfflow.models.attention import implementation_for
from selfflow.objectives.config import FlowMatching
from selfflow.objectives.flow import FlowObjective
from selfflow.objectives.reconstruction import ReconstructionObjective
from selfflow.objectives.self_flow import SelfFlowObjective
from selfflow.training.objective import Objective
from selfflow.training.sharding import check_batch, state_shardings
from selfflow.training.state import State, init_state
from selfflow.training.step import make_step

E = TypeVar("E", bound=TrainingConfig)


@dataclass(frozen=True)
class Setup(Generic[E]):
    """A resolved experiment and the objective that it defines.

    Attributes:
      experiment: the resolved experiment.
      objective: objective of the run.
    """

    experiment: E
    objective: Objective

    def optimizer(self) -> optax.GradientTransformation:
        """Returns the optimizer; for imported weights, which have no data, a transformation without state."""
        return self.experiment.optimizer.make() if self.experiment.data else optax.identity()

    def init(self, key: Key[Array, ""]) -> State:
        """Returns the state at step 0."""
        return init_state(self.objective, self.optimizer(), key)

    def step(self) -> Callable[..., tuple[State, dict[str, Any]]]:
        """Returns the update as a function to be compiled, see `training.step.make_step`."""
        experiment = self.experiment
        return make_step(
            self.objective,
            experiment.optimizer.make(),
            experiment.ema_decay,
            experiment.seed.noise,
            experiment.optimizer.accumulate,
        )

    def shardings(self, mesh: Mesh) -> State:
        """Returns the sharding of every array of the state on a mesh, as a `State` of `NamedSharding`s."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return state_shardings(self.objective, self.optimizer(), shapes, self.experiment.devices, mesh)

    def abstract_state(self, mesh: Mesh | None = None) -> State:
        """Returns the shapes, dtypes and shardings of the state, on a mesh or on the first device."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        if mesh is None:
            first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            shardings = jax.tree.map(lambda _: first, shapes)
        else:
            shardings = self.shardings(mesh)

        def sharded(x: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        return jax.tree.map(sharded, shapes, shardings)

    def check_devices(self, mesh: Mesh) -> None:
        """Raises `UserError` unless batches and parameters can be split over a mesh."""
        self.shardings(mesh)
        for name, component in self.experiment.mixture.items():
            check_batch(mesh, component.batch_size // self.experiment.optimizer.accumulate, f"mixture.{name}")


@dataclass(frozen=True)
class FlowSetup(Setup[Experiment]):
    """The setup of a flow-matching transformer.

    Attributes:
      objective: objective of the run; its `modalities` are the streams of all components.
      modalities: latent streams of each component, for clips of the component's length.
      media: shape and rate of the media that each stream encodes.
    """

    objective: FlowObjective
    modalities: dict[str, dict[str, Modality]]
    media: dict[str, dict[str, MediaSpec]]

    def check_devices(self, mesh: Mesh) -> None:
        """Raises `UserError` unless batches and parameters can be split over a mesh."""
        super().check_devices(mesh)
        experiment, separation = self.experiment, self.experiment.separation
        kernel = implementation_for(mesh.devices.flat[0].platform, experiment.model.dtype) != "xla"
        if separation is None or not kernel:
            return
        # The kernel computes samples with full attention and separated samples in two calls.
        for name, component in experiment.mixture.items():
            size = component.batch_size // experiment.optimizer.accumulate
            whole = round(separation.whole * size)
            for part in (whole, size - whole):
                check_batch(mesh, part, f"mixture.{name}, separation.whole {separation.whole}")


@dataclass(frozen=True)
class AutoencoderSetup(Setup[AutoencoderExperiment]):
    """The setup of an autoencoder.

    Attributes:
      objective: objective of the run.
      cuts: crop and length of the samples of each component.
    """

    objective: ReconstructionObjective
    cuts: dict[str, Cut]


@overload
def setup_of(experiment: Experiment) -> FlowSetup: ...
@overload
def setup_of(experiment: AutoencoderExperiment) -> AutoencoderSetup: ...
def setup_of(experiment):
    """Returns the setup of a resolved experiment, such as the experiment of a run.

    Raises:
      UserError: naming the field, if the shapes of data, autoencoders and network do not fit together.
    """
    if isinstance(experiment, AutoencoderExperiment):
        cuts, rate = component_cuts(experiment), audio_rate(experiment)
        objective = ReconstructionObjective(experiment.network, experiment.loss, rate, experiment.dtype)
        return AutoencoderSetup(experiment, objective, cuts)
    return FlowSetup(
        experiment,
        _flow_objective(experiment),
        modalities={name: component_streams(experiment, name) for name in experiment.mixture},
        media={name: component_media(experiment, name) for name in experiment.mixture},
    )


def _flow_objective(experiment: Experiment) -> FlowObjective:
    """Returns the objective of an experiment."""
    match experiment.objective:
        case FlowMatching():
            return SelfFlowObjective(
                experiment.model,
                all_streams(experiment),
                experiment.schedule,
                experiment.alignment,
                experiment.modality_weight,
                experiment.condition_drop,
                experiment.separation,
            )
        case _ as never:
            assert_never(never)
