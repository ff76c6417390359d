"""Five steps of a small joint model on meshes of eight fake devices, against the same on one; run by test_sharding.py.

python -m tests.training.spread float64 OUT.json
"""

import dataclasses
import json
import os
import sys

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import selfflow.models.joint  # noqa: E402
from selfflow.benchmark.step import random_batch  # noqa: E402
from selfflow.config.resolve import resolve  # noqa: E402
from selfflow.models.attention import attention  # noqa: E402
from selfflow.models.execution import Execution  # noqa: E402
from selfflow.training.sharding import Devices, batch_sharding, state_shardings  # noqa: E402
from tests.conftest import perturbed  # noqa: E402
from tests.tiny import experiment  # noqa: E402

STEPS = 5


def wide_attention(q, k, v, *_, **__):
    """Attention wholly in the type of its inputs: JAX's own has its softmax in float32."""
    scores = jnp.einsum("bnah,bmah->banm", q, k) / q.shape[-1] ** 0.5
    out = jnp.einsum("banm,bmah->bnah", jax.nn.softmax(scores), v)
    return out.reshape(*out.shape[:2], -1)


def five_steps(devices: Devices, count: int, dtype: str, split_tokens: bool) -> dict:
    tiny_experiment = experiment()
    execution = Execution(unroll=1, attention="xla", split_tokens=split_tokens)
    model = dataclasses.replace(tiny_experiment.model, dtype=dtype, execution=execution)
    mixture = {
        name: dataclasses.replace(component, batch_size=8) for name, component in tiny_experiment.mixture.items()
    }
    setup = resolve(dataclasses.replace(tiny_experiment, model=model, mixture=mixture))
    objective, optimizer, mesh = setup.objective, setup.optimizer(), devices.mesh(jax.devices()[:count])
    shapes = jax.eval_shape(setup.init, jax.random.key(0))
    layout = state_shardings(objective, optimizer, shapes, devices, mesh)
    with jax.set_mesh(mesh):
        state = jax.jit(setup.init, out_shardings=layout)(jax.random.key(0))
        wide = lambda tree: jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, tree)
        # Off their first values: zeros would hide most of the network.
        state = state._replace(params=perturbed(state.params, 0, 0.05), frozen=perturbed(state.frozen, 1, 0.05))
        state = jax.device_put(wide(state), layout)
        batch = jax.device_put(random_batch(setup, "joint"), batch_sharding(mesh))
        whole = jax.jit(setup.step(), in_shardings=(layout, batch_sharding(mesh)), out_shardings=(layout, None))
        losses = []
        for number in range(STEPS):
            state, metrics = whole(state, batch)
            losses.append(float(metrics["loss"]))
            if not number:
                first = (
                    float(metrics["gradient_norm"]),
                    np.concatenate(
                        [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(state.optimizer) if x.ndim]
                    ),
                )
        assert jax.tree.map(lambda x: x.sharding, state.params) == layout.params
    flat = lambda tree: np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])
    return {
        "loss": np.array(losses),
        "gradient": np.array([first[0]]),
        "moments": first[1],
        "params": flat(state.params),
        "ema": flat(state.frozen),
    }


def main(dtype: str, out: str, *meshes: str) -> None:
    jax.config.update("jax_enable_x64", dtype == "float64")
    selfflow.models.joint.attention = wide_attention if dtype == "float64" else attention
    expected = five_steps(Devices(data=1), 1, dtype, False)
    worst = {}
    for name in meshes:
        results = five_steps(Devices(*map(int, name.split("x"))), 8, dtype, split_tokens=name == "4x1x2")
        worst[name] = {k: float(np.linalg.norm(results[k] - x) / np.linalg.norm(x)) for k, x in expected.items()}
    with open(out, "w", encoding="utf-8") as file:
        json.dump(worst, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
