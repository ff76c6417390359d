"""A training of a handful of numbers, by the real step and the real loop: what tests of the loop run."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from selfflow.training.checkpoints import Checkpoints
from selfflow.training.loop import Cadence, Limits, train
from selfflow.training.metrics import MetricsLog
from selfflow.training.profile import Profile, Trace
from selfflow.training.signals import interruptible
from selfflow.training.state import State, init_ema, init_state, update_ema
from selfflow.training.step import make_step

WIDTH = 8


class Line:
    """A linear map to 1; samples with `root` add one of 0, whose value is finite and whose slope is not."""

    def __init__(self, width: int = WIDTH):
        self.width = width

    def init(self, key):
        return {"model": {"w": jax.random.normal(key, (self.width,)) / self.width}}

    def init_frozen(self, params, key):
        return {"ema": init_ema(params["model"])}

    def update_frozen(self, frozen, params, ema_decay):
        return {"ema": update_ema(frozen["ema"], params["model"], ema_decay)}

    def draw(self, keys_B, batch, step):
        return jnp.zeros(len(keys_B))

    def loss(self, params, frozen, batch, keys_B, draw):
        w = params["model"]["w"]
        under = jnp.where(batch["root"] > 0, 0 * w[0], 1.0)
        return ((batch["x"] @ w - 1) ** 2).sum() + (batch["root"] * jnp.sqrt(under)).sum(), {}


OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(0.01), weight_decay=0.1))


def batch(step: int, bad: str = "", width: int = WIDTH) -> dict[str, np.ndarray]:
    """Four samples of a step, counted from 0."""
    x = np.random.default_rng(step).standard_normal((4, width)).astype(np.float32)
    root = np.zeros(4, np.float32)
    if bad == "loss":
        x[2, 0] = np.nan
    if bad == "gradient":
        root[1] = 1
    return {"x": x, "root": root}


def fresh(width: int = WIDTH) -> State:
    return init_state(Line(width), OPTIMIZER, jax.random.key(0))


class LineTask:
    """Task of the training loop; `before(step)` is called before each step, counted from 1."""

    def __init__(self, width: int, bad, before):
        self._width, self._bad, self._before = width, bad, before
        self._step = jax.jit(make_step(Line(width), OPTIMIZER, 0.9, 0), donate_argnums=0)

    def batches(self, start):
        for step in itertools.count(start):
            self._before(step + 1)
            bad = "loss" if step + 1 in self._bad else ""
            yield batch(step, bad, self._width), {"component": "line", "tokens": 4}

    def ids(self, step):
        return [f"{step}-{i}" for i in range(4)]

    def step(self, state, batch):
        return self._step(state, batch)

    def diagnose(self, state):
        return {}

    def summarise(self, metrics):
        return {name: float(value) for name, value in metrics.items()}

    def evaluate(self, state):
        return {}


def run(
    folder: Path,
    steps: int,
    bad=(),
    *,
    before=lambda step: None,
    every: int = 3,
    limits=Limits(),
    profile=Profile(),
    width: int = WIDTH,
    place=lambda tree: tree,
    logs: Path | None = None,
) -> State:
    """Trains into a folder, or resumes; `before(step)` is called before each step, counted from 1."""
    folder.mkdir(exist_ok=True, parents=True)
    checkpoints = Checkpoints(folder)
    start, state = checkpoints.latest() or 0, place(fresh(width))
    if start:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        state = checkpoints.restore(shapes, start)
    (logs or folder).mkdir(exist_ok=True)
    log = MetricsLog(logs or folder, start)
    try:
        with interruptible() as interruption:
            return train(
                state,
                LineTask(width, bad, before),
                steps=steps,
                cadence=Cadence(log_every=100, checkpoint_every=every),
                limits=limits,
                log=log,
                checkpoints=checkpoints,
                interruption=interruption,
                hooks=[Trace(profile, folder, start, steps)],
            )
    finally:
        log.close()
        checkpoints.close()
