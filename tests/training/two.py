"""One of two processes that train together, its parameters and batches split over both; run by test_interrupt.py.

python -m tests.training.two PORT NUMBER FOLDER STEPS SECONDS-BETWEEN-STEPS
"""

import os
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

import tests.training.small as small  # noqa: E402
from selfflow.errors import Interrupted  # noqa: E402


def main(port: str, number: str, folder: str, steps: str, pause: str) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number))
    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))

    def spread(tree):
        split = lambda x: NamedSharding(mesh, PartitionSpec("fsdp") if x.ndim else PartitionSpec())
        put = lambda x: jax.make_array_from_callback(x.shape, split(x), lambda at: np.asarray(x)[at])
        return jax.tree.map(put, tree)

    def before(step):
        time.sleep(float(pause))
        if step == 5 and number == "0":
            (Path(folder) / "reached").touch()

    plain = small.batch
    small.batch = lambda *arguments: spread(plain(*arguments))
    try:
        with jax.set_mesh(mesh):
            state = small.run(
                Path(folder), int(steps), bad=(2,), before=before, place=spread, logs=Path(folder) / number, every=10**6
            )
            norm = jax.jit(jnp.linalg.norm, out_shardings=NamedSharding(mesh, PartitionSpec()))(
                state.params["model"]["w"]
            )
            print("norm", float(norm), flush=True)
    except Interrupted as stopped:
        print(stopped, flush=True)
        sys.exit(stopped.status)


if __name__ == "__main__":
    main(*sys.argv[1:])
