"""Three steps of a small autoencoder on meshes of eight fake devices, against one; run by test_autoencoder_run.py.

python -m tests.autoencoders.spread OUT.json
"""

import json
import os
import sys

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax  # noqa: E402
import numpy as np  # noqa: E402

from selfflow.config.resolve import resolve  # noqa: E402
from selfflow.training.sharding import Devices, batch_sharding, state_shardings  # noqa: E402
from tests.autoencoders.tiny_autoencoder import experiment  # noqa: E402
from tests.conftest import perturbed  # noqa: E402


def three_steps(devices: Devices, count: int) -> dict[str, np.ndarray]:
    made = resolve(experiment())
    mesh, objective, optimizer = devices.mesh(jax.devices()[:count]), made.objective, made.optimizer()
    shapes = jax.eval_shape(made.init, jax.random.key(0))
    placed = state_shardings(objective, optimizer, shapes, devices, mesh)
    media = np.random.default_rng(0).integers(0, 256, (8, 5, 8, 8, 3), np.uint8)
    with jax.set_mesh(mesh):
        state = jax.jit(made.init, out_shardings=placed)(jax.random.key(0))
        state = jax.device_put(state._replace(params=perturbed(state.params, 0, 0.05)), placed)
        batch = jax.device_put({"media": media, "weight": np.ones(8, np.float32)}, batch_sharding(mesh))
        step = jax.jit(made.step(), in_shardings=(placed, batch_sharding(mesh)), out_shardings=(placed, None))
        rows = []
        for _ in range(3):
            state, metrics = step(state, batch)
            rows.append([float(metrics[name]) for name in ("loss", "gradient_norm", "kl", "gradient")])
    kernel = state.params["model"]["encoder"]["levels"][0]["blocks"][0]["layers"][0].kernel
    assert kernel.sharding.spec[-1] == ("fsdp" if devices.fsdp > 1 else None)
    return np.array(rows)


if __name__ == "__main__":
    expected = three_steps(Devices(data=1), 1)
    errors = {}
    for name, devices in (("8x1", Devices(data=8)), ("2x4", Devices(data=2, fsdp=4))):
        errors[name] = float(np.max(np.abs(three_steps(devices, 8) / expected - 1)))
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(errors, file)
