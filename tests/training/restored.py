"""Saves a state from eight fake devices and restores it on eight, four and one; run by test_checkpoints.py.

python -m tests.training.restored FOLDER
"""

import dataclasses
import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax  # noqa: E402
import numpy as np  # noqa: E402

from selfflow.config.resolve import resolve  # noqa: E402
from selfflow.training.checkpoints import Checkpoints, checksums  # noqa: E402
from selfflow.training.sharding import Devices  # noqa: E402
from tests.conftest import perturbed  # noqa: E402
from tests.tiny import experiment  # noqa: E402


def main(folder: Path) -> None:
    setup = resolve(dataclasses.replace(experiment(), devices=Devices(data=2, fsdp=2, tensor=2)))
    mesh = setup.experiment.devices.mesh()
    state = jax.jit(setup.init)(jax.random.key(0))
    state = jax.device_put(state._replace(params=perturbed(state.params)), setup.shardings(mesh))
    checkpoints = Checkpoints(folder)
    checkpoints.save(state, 0)
    checkpoints.wait()
    sums = jax.jit(checksums)(jax.device_get(state))  # of whole arrays
    for devices, count in ((setup.experiment.devices, 8), (Devices(data=1, fsdp=2, tensor=2), 4), (Devices(), 1)):
        here = devices.mesh(jax.devices()[:count])
        placed = resolve(dataclasses.replace(setup.experiment, devices=devices))
        found = checkpoints.restore_newest(placed.abstract_state(here))
        assert jax.tree.map(lambda x: x.sharding, found) == placed.shardings(here)
        jax.tree.map(np.testing.assert_array_equal, found, state)
        jax.tree.map(np.testing.assert_array_equal, jax.jit(checksums)(found), sums)
    checkpoints.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
