"""The network of a run with some weights."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh

from selfflow.modality import Modality
from selfflow.models.joint import Output
from selfflow.training.checkpoints import fetched_sums
from selfflow.tree import to_json

if TYPE_CHECKING:
    from selfflow.run import Run


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


def model_of(run: "Run", weights: str, step: int | None, mesh: Mesh | None) -> Model:
    """What `Run.model` gives, read anew."""
    objective, config, mine = run.objective, run.experiment.model, weights != "untrained"
    if mine:
        state = run.weights(step, mesh)
        params = state.frozen["ema"] if weights == "ema" else state.params["model"]
    else:
        seed = run.experiment.seed.init
        places = None if mesh is None else run.experiment.shardings(mesh).params["model"]
        params = jax.jit(lambda: objective.init(jax.random.key(seed))["model"], out_shardings=places)()
    told = {"weights": fetched_sums(params), "model": to_json(config), "gates": "its own" if mine else "open"}
    told["model"].pop("execution")  # which changes how numbers are reached
    return Model(
        # An untrained network with its own gates, which are closed, hands its tokens on as they are.
        objective.apply if mine else partial(objective.apply, open_gates=True),
        params,
        objective.modalities,
        config.labels,
        config.depth,
        int(state.step) if mine else 0,
        hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16],
    )
