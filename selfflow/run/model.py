"""The network of a run with some weights."""

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
    """A network with some weights of a run.

    Attributes:
      apply: as `SelfFlowObjective.apply`: (params, tokens, levels, label, assignment, taps=, stop_at=) -> `Output`.
      params: its parameters.
      modalities: all streams that it knows.
      null_label: the label that stands for none.
      depth: number of blocks.
      step: finished updates; 0 for the untrained.
      identity: hash of the network and its weights, however these are spread over devices.
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
    """The network of an experiment.

    Args:
      setup: of the experiment.
      state: a trained state; None for fresh weights from `seed.init`, with the gates of all blocks open.
      weights: "ema" or "student", of the state.
      mesh: devices that fresh weights are spread over; by default the first alone.
    """
    objective, config = setup.objective, setup.experiment.model
    trained = state is not None
    if trained:
        params = state.frozen["ema"] if weights == "ema" else state.params["model"]
    else:
        seed = setup.experiment.seed.init
        shardings = None if mesh is None else setup.shardings(mesh).params["model"]
        params = jax.jit(lambda: objective.init(jax.random.key(seed))["model"], out_shardings=shardings)()
    facts = {"weights": fetch_checksums(params), "model": to_json(config), "gates": "its own" if trained else "open"}
    facts["model"].pop("execution")  # it changes how numbers are computed, not what they are
    return Model(
        # An untrained network with its own gates, which are closed, hands its tokens on as they are.
        objective.apply if trained else partial(objective.apply, open_gates=True),
        params,
        objective.modalities,
        config.labels,
        config.depth,
        int(state.step) if trained else 0,
        digest(facts),
    )
