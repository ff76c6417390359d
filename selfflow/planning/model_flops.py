"""Floating-point operations that a training step demands, counted from the shapes of the model and its batch.

Matrix products alone, 2 operations for each multiply-add; a backward pass is twice its forward pass (arXiv 2204.02311,
appendix B), less the gradient of the network's inputs. Nothing that is computed again, selected or padded is
counted: what a program does beyond this number, as `flops.matmul_flops` counts it, is its own expense.
"""

import math

import jax

from selfflow.config.setup import FlowSetup
from selfflow.models.joint_config import JointConfig
from selfflow.models.sit import SiTConfig
from selfflow.objectives.alignment.base import SampleShape


def model_flops(setup: FlowSetup, name: str) -> int:
    """Operations of one step on a component of the mixture: student forward and backward, and those of the alignment.

    Args:
      setup: of the experiment.
      name: the component.
    """
    experiment = setup.experiment
    model, separation = experiment.model, experiment.separation
    tokens = {m: (stream.tokens, stream.token_size) for m, stream in setup.modalities[name].items()}
    counts = {m: n for m, (n, _) in tokens.items()}
    count = sum(counts.values())
    key = jax.ShapeDtypeStruct((1,), jax.eval_shape(jax.random.key, 0).dtype)  # which takes no device
    corruption = jax.eval_shape(lambda keys: experiment.schedule.sample(keys, counts), key)
    context = bool(experiment.schedule.context)
    levels = {m: level_BK.shape[1] + context for m, level_BK in corruption.levels.items()}

    # Pairs of tokens that attend to each other: all, or those of one group.
    text = 0 if isinstance(model, SiTConfig) else 1 + (experiment.text.tokens if experiment.text else 0)
    student_pairs = teacher_pairs = (text + count) ** 2
    if separation:
        masked = sum(experiment.schedule.masked(m, n) for m, n in counts.items())
        within = text**2 + sum(group * (text + group) for group in (masked, count - masked))
        student_pairs = separation.whole * teacher_pairs + (1 - separation.whole) * within
        if separation.teacher:
            teacher_pairs = student_pairs

    def teacher_forward(levels: dict[str, int], depth: int) -> float:
        return _forward(model, tokens, levels, text, teacher_pairs, depth)

    student = _forward(model, tokens, levels, text, student_pairs, model.depth) + _head(model, tokens, levels)
    sample = SampleShape(model.width, counts, levels, context, teacher_forward)
    total = 3 * student - _inputs(model, tokens, levels, text) + experiment.alignment.extra_flops(sample)
    batch = experiment.mixture[name].batch_size
    return round(batch * total)


def mean_flops(setup: FlowSetup) -> list[tuple[int, float]]:
    """What a step of a resolved experiment costs on average over the components' shares, from stage to stage.

    Returns:
      (steps that are done before, operations of a step from then on) of the mixture, and of each stage of the
      curriculum.
    """
    experiment = setup.experiment
    costs = {name: model_flops(setup, name) for name in experiment.mixture}
    weights, found = {name: component.weight for name, component in experiment.mixture.items()}, []
    for step, changed in ((0, {}), *((stage.step, stage.weights) for stage in experiment.curriculum)):
        weights = changed or weights
        found.append((step, sum(weight * costs[name] for name, weight in weights.items())))
    return found


def flops_of(costs: list[tuple[int, float]], steps: int) -> float:
    """Operations of the first steps, of costs as `mean_flops` tells them."""
    ends = [*(start for start, _ in costs[1:]), math.inf]
    return sum(max(0, min(end, steps) - start) * mean for (start, mean), end in zip(costs, ends))


def steps_within(costs: list[tuple[int, float]], flops: float) -> int:
    """The most steps that take no more operations than `flops`, but at least one."""
    for (start, mean), (end, _) in zip(costs, [*costs[1:], (math.inf, 0.0)]):
        steps = flops / mean
        if start + steps < end:
            break
        flops -= (end - start) * mean
    return max(1, int(start + steps + 1e-6))  # what is a whole number of steps but for rounding is that


def _forward(
    model: JointConfig | SiTConfig,
    tokens: dict[str, tuple[int, int]],
    levels: dict[str, int],
    text: int,
    pairs: float,
    depth: int,
) -> float:
    """Of one sample, through `depth` blocks; `pairs` of tokens attend to each other."""
    width, hidden = model.width, round(model.width * model.mlp_ratio)
    count = text + sum(n for n, _ in tokens.values())
    rows = _rows(model, levels)
    before = _inputs(model, tokens, levels, text) + 2 * rows * width**2
    attention = 4 * pairs * width
    if isinstance(model, SiTConfig):
        block = 2 * count * (4 * width**2 + 2 * width * hidden) + 2 * rows * 6 * width**2
        return before + depth * (block + attention)
    modulation = 2 * 6 * width**2 * (1 + rows) + (2 * 3 * width**2 * rows if depth > model.double_blocks else 0)
    block = 2 * count * (4 * width**2 + 3 * width * hidden)  # a SwiGLU has three products
    return before + modulation + depth * (block + attention)


def _inputs(
    model: JointConfig | SiTConfig, tokens: dict[str, tuple[int, int]], levels: dict[str, int], text: int
) -> float:
    """The first layers, of tokens, captions and noise levels."""
    captions = 2 * (text - 1) * model.text if text else 0
    return model.width * (sum(2 * n * size for n, size in tokens.values()) + captions + 2 * _rows(model, levels) * 256)


def _rows(model: JointConfig | SiTConfig, levels: dict[str, int]) -> int:
    """Levels of one sample; the text stream has one of its own."""
    return sum(levels.values()) + (not isinstance(model, SiTConfig))


def _head(model: JointConfig | SiTConfig, tokens: dict[str, tuple[int, int]], levels: dict[str, int]) -> float:
    doubled = 2 if getattr(model, "learn_sigma", False) else 1
    readout = sum(2 * n * model.width * size * doubled for n, size in tokens.values())
    return 2 * _rows(model, levels) * 2 * model.width**2 + readout
