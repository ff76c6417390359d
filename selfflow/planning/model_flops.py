"""Floating-point operations of a training step, from the shapes of the model and from the traced program.

Only matrix products are counted, with 2 operations for each multiply-add. `model_flops` counts a backward pass as twice
its forward pass (arXiv 2204.02311, appendix B), minus the gradient with respect to the inputs, and does not count
recomputation, selection or padding. `program_flops` counts all of these.
"""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax

from selfflow.config.setup import FlowSetup, setup_of
from selfflow.models.joint_config import JointConfig
from selfflow.models.sit import SiTConfig
from selfflow.objectives.alignment.base import SampleShape
from selfflow.planning.compile import batch_shapes
from selfflow.planning.flops import matmul_flops


@dataclass(frozen=True)
class StageCost:
    """Mean cost of a step in one stage of a curriculum.

    Attributes:
      start: number of steps before the stage.
      flops: mean operations of a step, weighted by the shares of the components.
    """

    start: int
    flops: float


class _Stream(NamedTuple):
    """Shape of one modality of a sample.

    Attributes:
      tokens: number of tokens.
      size: number of channels of a token.
    """

    tokens: int
    size: int


def model_flops(setup: FlowSetup, name: str) -> int:
    """Returns the operations of a step on a component: the student's forward and backward pass, and the objective's.

    Args:
      setup: setup of the experiment.
      name: name of the component.
    """
    experiment = setup.experiment
    model, separation = experiment.model, experiment.separation
    streams = {m: _Stream(stream.tokens, stream.token_size) for m, stream in setup.modalities[name].items()}
    counts = {m: stream.tokens for m, stream in streams.items()}
    count = sum(counts.values())
    # The number of levels is obtained from the shapes of the schedule's samples, without computation.
    key = jax.ShapeDtypeStruct((1,), jax.eval_shape(jax.random.key, 0).dtype)
    corruption = jax.eval_shape(lambda keys: experiment.schedule.sample(keys, counts), key)
    context = bool(experiment.schedule.context)
    levels = {m: level_BK.shape[1] + context for m, level_BK in corruption.levels.items()}

    # Number of pairs of tokens that attend to each other. With separated attention, tokens attend only to their own
    # group and to the text. The text of a joint transformer has one token for the label, and the tokens of the caption.
    joint_text = 1 + (experiment.text.tokens if experiment.text else 0)
    text = 0 if isinstance(model, SiTConfig) else joint_text
    student_pairs = teacher_pairs = (text + count) ** 2
    if separation:
        masked = sum(experiment.schedule.masked(m, n) for m, n in counts.items())
        within = text**2 + sum(group * (text + group) for group in (masked, count - masked))
        student_pairs = separation.whole * teacher_pairs + (1 - separation.whole) * within
        if separation.teacher:
            teacher_pairs = student_pairs

    def teacher_forward(levels: dict[str, int], depth: int) -> float:
        return _forward(model, streams, levels, text, teacher_pairs, depth)

    def network_forward(network: JointConfig | SiTConfig, levels: dict[str, int]) -> float:
        network_text = 0 if isinstance(network, SiTConfig) else joint_text
        pairs = (network_text + count) ** 2
        blocks = _forward(network, streams, levels, network_text, pairs, network.depth)
        return blocks + _head(network, streams, levels)

    student = _forward(model, streams, levels, text, student_pairs, model.depth) + _head(model, streams, levels)
    sample = SampleShape(model.width, counts, levels, context, teacher_forward, network_forward)
    total = 3 * student - _inputs(model, streams, levels, text) + setup.objective.extra_flops(sample)
    batch = experiment.mixture[name].batch_size
    return round(batch * total)


def program_flops(setup: FlowSetup, name: str) -> int:
    """Returns the operations of all matrix products in the traced program of a step, including recomputation.

    Args:
      setup: setup of the experiment.
      name: name of the component.
    """
    # Matrix products inside custom kernels are not counted, so plain attention is traced.
    model = setup.experiment.model
    execution = dataclasses.replace(model.execution, attention="xla", unroll=1)
    model = dataclasses.replace(model, execution=execution)
    plain = setup_of(dataclasses.replace(setup.experiment, model=model))
    state = jax.eval_shape(plain.init, jax.random.key(0))
    return matmul_flops(plain.step(), state, batch_shapes(plain, name))


def mean_flops(setup: FlowSetup) -> list[StageCost]:
    """Returns the mean cost of a step of a resolved experiment, for the initial mixture and each curriculum stage."""
    experiment = setup.experiment
    flops = {name: model_flops(setup, name) for name in experiment.mixture}

    def cost(start: int, weights: dict[str, float]) -> StageCost:
        return StageCost(start, sum(weight * flops[name] for name, weight in weights.items()))

    weights = {name: component.weight for name, component in experiment.mixture.items()}
    costs = [cost(0, weights)]
    for stage in experiment.curriculum:
        weights = stage.weights or weights  # a stage without weights keeps the previous ones
        costs.append(cost(stage.step, weights))
    return costs


def flops_of(costs: list[StageCost], steps: int) -> float:
    """Returns the operations of the first `steps` steps, with the costs of `mean_flops`."""
    total = 0.0
    for cost, following in itertools.zip_longest(costs, costs[1:]):
        end = steps if following is None else min(following.start, steps)
        total += max(0, end - cost.start) * cost.flops
    return total


def steps_within(costs: list[StageCost], flops: float) -> int:
    """Returns the maximum number of steps within `flops` operations, but at least one."""
    for cost, following in itertools.zip_longest(costs, costs[1:]):
        end = math.inf if following is None else following.start
        steps = flops / cost.flops
        if cost.start + steps < end:
            break
        flops -= (end - cost.start) * cost.flops
    # The tolerance keeps rounding errors from losing a step.
    return max(1, int(cost.start + steps + 1e-6))


def _forward(
    model: JointConfig | SiTConfig,
    streams: dict[str, _Stream],
    levels: dict[str, int],
    text: int,
    pairs: float,
    depth: int,
) -> float:
    """Returns the operations of the forward pass of one sample through the input layers and `depth` blocks.

    Args:
      model: config of the transformer.
      streams: shapes of the sample.
      levels: number of noise levels of each modality.
      text: number of text tokens.
      pairs: number of pairs of tokens that attend to each other.
      depth: number of blocks.
    """
    width, hidden = model.width, round(model.width * model.mlp_ratio)
    count = text + sum(stream.tokens for stream in streams.values())
    rows = _rows(model, levels)
    before = _inputs(model, streams, levels, text) + 2 * rows * width**2
    attention = 4 * pairs * width  # queries with keys, and weights with values
    if isinstance(model, SiTConfig):
        # Query, key, value and output projections, a two-layer MLP; each block computes its modulation.
        block = 2 * count * (4 * width**2 + 2 * width * hidden) + 2 * rows * 6 * width**2
        return before + depth * (block + attention)
    # All double blocks share a modulation of 6 vectors, and all single blocks a modulation of 3 vectors.
    modulation = 2 * 6 * width**2 * (1 + rows) + (2 * 3 * width**2 * rows if depth > model.double_blocks else 0)
    block = 2 * count * (4 * width**2 + 3 * width * hidden)  # a SwiGLU has three products
    return before + modulation + depth * (block + attention)


def _inputs(model: JointConfig | SiTConfig, streams: dict[str, _Stream], levels: dict[str, int], text: int) -> float:
    """Returns the operations of the input layers for tokens, captions and 256 sinusoidal features of noise levels."""
    patches = sum(2 * stream.tokens * stream.size for stream in streams.values())
    captions = 2 * (text - 1) * model.text if text else 0
    return model.width * (patches + captions + 2 * _rows(model, levels) * 256)


def _rows(model: JointConfig | SiTConfig, levels: dict[str, int]) -> int:
    """Returns the number of noise levels with a separate modulation; the text of a joint transformer adds one."""
    return sum(levels.values()) + (not isinstance(model, SiTConfig))


def _head(model: JointConfig | SiTConfig, streams: dict[str, _Stream], levels: dict[str, int]) -> float:
    """Returns the operations of the last layer and its modulation."""
    doubled = 2 if getattr(model, "learn_sigma", False) else 1
    readout = sum(2 * stream.tokens * model.width * stream.size * doubled for stream in streams.values())
    return 2 * _rows(model, levels) * 2 * model.width**2 + readout
