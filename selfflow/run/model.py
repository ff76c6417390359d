"""Network and parameters of a run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from selfflow.config.setup import FlowSetup
from selfflow.modality import Modality
from selfflow.models.joint import Output
from selfflow.serialization import digest, to_json
from selfflow.training.checkpoints import fetch_checksums
from selfflow.training.state import State


@dataclass(frozen=True)
class Model:
    """Network and parameters of a run.

    Attributes:
      apply: forward pass (params, tokens, levels, label, assignment, taps=, stop_at=) -> `Output`, as
        `SelfFlowObjective.apply`.
      params: parameters of the network.
      modalities: all streams of the network.
      null_label: label for no class, as in classifier-free guidance.
      depth: number of blocks.
      step: number of updates; 0 for untrained weights.
      identity: hash of the network and its weights, independent of how they are sharded.
    """

    apply: Callable[..., Output]
    params: Any = field(repr=False)
    modalities: dict[str, Modality]
    null_label: int
    depth: int
    step: int
    identity: str


def model_of(
    setup: FlowSetup, state: State | None, weights: Literal["ema", "student", "untrained"], mesh: Mesh | None
) -> Model:
    """Returns the network of an experiment with its parameters.

    Args:
      setup: setup of the experiment.
      state: a trained state; None for random weights from `seed.init`, with the gates of all blocks open.
      weights: weights of the state to use.
      mesh: devices over which random weights are sharded; by default only the first device.
    """
    objective, config = setup.objective, setup.experiment.model
    if state is None:
        shardings = None if mesh is None else setup.shardings(mesh).params["model"]

        def init() -> Any:
            return objective.init(jax.random.key(setup.experiment.seed.init))["model"]

        params = jax.jit(init, out_shardings=shardings)()
        # At initialisation the gates of all blocks are zero, and the network would return its tokens unchanged.
        apply = partial(objective.apply, open_gates=True)
    else:
        params = state.frozen["ema"] if weights == "ema" else state.params["model"]
        apply = objective.apply

    content = {
        "weights": fetch_checksums(params),
        "model": to_json(config),
        "gates": "open" if state is None else "its own",
    }
    content["model"].pop("execution")  # affects speed and memory, not the values
    return Model(
        apply,
        params,
        objective.modalities,
        config.labels,
        config.depth,
        step=0 if state is None else int(state.step),
        identity=digest(content),
    )
