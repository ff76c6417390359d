"""A toy objective with a second frozen network of another shape, and its steps on eight fake devices; run by
test_frozen.py.

python -m tests.training.distillation OUT.json
"""

import json
import os
import sys

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from selfflow.training.sharding import Devices, batch_sharding, shardings_of, state_shardings  # noqa: E402
from selfflow.training.state import init_ema, init_state, update_ema  # noqa: E402
from selfflow.training.step import make_step  # noqa: E402

OPTIMIZER = optax.adamw(0.01)


def _random(key, **shapes):
    keys = jax.random.split(key, len(shapes))
    return {name: jax.random.normal(k, shape) / shape[0] for k, (name, shape) in zip(keys, shapes.items())}


class Distillation:
    """A small network predicts a wider, frozen one, and stays near its own moving average."""

    def init(self, key):
        return {"model": _random(key, first=(8, 16), second=(16, 4))}

    def logical_axes(self):
        return {"model.first": ("embed", "mlp"), "model.second": ("mlp", "embed")}

    def init_frozen(self, params, key):
        return {"ema": init_ema(params["model"]), "reference": _random(key, first=(8, 24), second=(24, 4), scale=(4,))}

    def frozen_axes(self):
        ema = {name.removeprefix("model."): axes for name, axes in self.logical_axes().items()}
        return {"ema": ema, "reference": {"first": (None, "mlp"), "second": ("embed", None), "scale": (None,)}}

    def update_frozen(self, frozen, params, ema_decay):
        return frozen | {"ema": update_ema(frozen["ema"], params["model"], ema_decay)}

    def draw(self, keys_B, batch, step):
        return jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys_B)

    def loss(self, params, frozen, batch, keys_B, draw):
        def outputs(weights):
            return jnp.tanh(batch["x"] @ weights["first"]) @ weights["second"]

        reference = frozen["reference"]
        target = outputs(reference) * reference["scale"] + 0.1 * draw
        output = outputs(params["model"])
        loss = jnp.sum((output - target) ** 2) + jnp.sum((output - outputs(frozen["ema"])) ** 2)
        return loss, {"distance": jnp.sum(jnp.abs(output - target))}


def steps(devices: Devices, count: int) -> dict:
    """Three steps on a mesh: the state after each, whether the reference stayed, and where it lies."""
    objective, mesh = Distillation(), devices.mesh(jax.devices()[:count])
    init = lambda key: init_state(objective, OPTIMIZER, key)
    layout = state_shardings(objective, OPTIMIZER, jax.eval_shape(init, jax.random.key(0)), devices, mesh)
    batch = {"x": np.random.default_rng(0).standard_normal((8, 8))}
    with jax.set_mesh(mesh):
        state = jax.jit(init, out_shardings=layout)(jax.random.key(0))
        reference = jax.device_get(state.frozen["reference"])
        batch = jax.device_put(batch, batch_sharding(mesh))
        step = jax.jit(make_step(objective, OPTIMIZER, 0.9, 5, accumulate=2), out_shardings=(layout, None))
        for _ in range(3):
            state, metrics = step(state, batch)
    assert shardings_of(state).frozen == layout.frozen
    after = jax.device_get(state)
    same = jax.tree.map(np.array_equal, after.frozen["reference"], reference)
    arrays = {"params": after.params, "ema": after.frozen["ema"], "loss": metrics["loss"]}
    return {
        "arrays": {name: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for name, tree in arrays.items()},
        "reference_stays": all(jax.tree.leaves(same)),
        "specs": {name: str(sharding.spec) for name, sharding in layout.frozen["reference"].items()},
    }


def main(out: str) -> None:
    jax.config.update("jax_enable_x64", True)
    one, eight = steps(Devices(data=1), 1), steps(Devices(data=2, fsdp=2, tensor=2), 8)
    error = {}
    for name, expected in one["arrays"].items():
        error[name] = float(np.linalg.norm(eight["arrays"][name] - expected) / np.linalg.norm(expected))
    results = {"error": error, "specs": eight["specs"], "reference_stays": one["reference_stays"]}
    results["reference_stays_sharded"] = eight["reference_stays"]
    with open(out, "w", encoding="utf-8") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
